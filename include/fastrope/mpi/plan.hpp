// Plan over ranks: attention of a sequence that is spread over MPI ranks, decided once (decision.hpp), to be
// run any number of times.
//
// Heads run by states (states.hpp), by exact pieces (exact_call.hpp) or each on one rank (by_heads.hpp). Rows
// whose sums by states cannot be vouched for are computed again by exact pieces in double.
#pragma once

#include <mpi.h>

#include <algorithm>
#include <cstddef>
#include <memory>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

#include "fastrope/attend/plan.hpp"
#include "fastrope/core/error.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/paged_view.hpp"
#include "fastrope/core/stored_rows.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/tensor_view.hpp"
#include "fastrope/exact/row_kernels.hpp"
#include "fastrope/mpi/by_heads.hpp"
#include "fastrope/mpi/decision.hpp"
#include "fastrope/mpi/exact_call.hpp"
#include "fastrope/mpi/exact_rows.hpp"
#include "fastrope/mpi/exchange.hpp"
#include "fastrope/mpi/head_part.hpp"
#include "fastrope/mpi/layout.hpp"
#include "fastrope/mpi/rank_problems.hpp"
#include "fastrope/mpi/ranks.hpp"
#include "fastrope/mpi/spot_check.hpp"
#include "fastrope/mpi/states.hpp"
#include "fastrope/plan/head_report.hpp"
#include "fastrope/problem/options.hpp"
#include "fastrope/problem/problem.hpp"

namespace fastrope::inline FASTROPE_TARGET::mpi {

/// What was decided, the same on every rank, and what this rank did.
struct Report {
  int ranks = 1;
  double share = 1;  ///< of the pairs of queries and keys that are computed by exact pieces, those that this
                     ///< rank did; 0 where there are none
  Index bytes_sent = 0;  ///< to other ranks: keys, values, queries and partial results, and what it gave to
                         ///< reductions: states, and for a plan samples of rows and their bounds
  Index bytes_received = 0;            ///< of reductions as much as was given
  std::vector<HeadReport> heads = {};  ///< of all query heads, in order
};

/// A planned call with arithmetic in Real, of make_plan; the same on every rank. Making it, run and its end
/// are collective. What options refer to must outlive it.
template <class Real>
class Plan {
 public:
  /// As make_plan. storage: of the tensors.
  Plan(MPI_Comm comm, const StoredRows& q, const StoredRows& k, const StoredRows& v, const Storage& storage,
       const Options& options)
      : ranks_(comm), options_(options), types_(types_of(q, k, v)) {
    Shapes own;
    ranks_.agree([&] { own = shapes_of(q, k, v); });
    layout_ = detail::lay_out(ranks_, own, options_, types_);
    decision_ = detail::Decider<Real>(ranks_, layout_, options_, storage).decide(q, k, v, planned_);
    if (!decision_.units.units.empty())
      ranks_.agree([&] {
        own_keys_ = detail::own_problem(layout_, options_, 0, own.n_k);
        own_rows_ = detail::own_problem(layout_, options_, own.n_q, decision_.units.of_all ? 0 : own.n_k);
      });
    planned_.bytes_sent += ranks_.bytes_reduced();
    planned_.bytes_received += ranks_.bytes_reduced();
  }

  /// Path, bounds and reason of every head.
  const std::vector<HeadReport>& heads() const { return decision_.heads; }
  /// What this rank sent, and gave to reductions, when the plan was made; and what it received.
  Index bytes_planned() const { return planned_.bytes_sent; }
  Index bytes_received_to_plan() const { return planned_.bytes_received; }

  /// This rank's rows of out, of tensors of the planned sizes and types; with a tolerance of those that were
  /// planned. Then the spot check that options.verify asks for. Allocates messages and workspaces. Throws
  /// Error, the same on every rank, where something fails on one.
  template <TensorLike Q, RowsLike K, RowsLike V, TensorLike Out>
  Report run(const Q& q, const K& k, const V& v, Out&& out) const {
    using Types = detail::CallTypes<Q, K, V>;
    static_assert(std::is_same_v<typename Types::Real, Real>, "the plan is of another arithmetic");
    using DoubleTypes = detail::CallTypes<Q, K, V, double>;
    const auto out_view = as_tensor(out);
    const ExactTensors<Real> x{as_tensor(q), k, v, out_view};
    const ExactTensors<double> double_x{x.q, k, v, out_view};
    ranks_.agree([&] {
      if (shapes_of(x.q, x.k, x.v) != layout_.own || types_of(x.q, x.k, x.v) != types_)
        fastrope::detail::fail("q, k and v are not of the sizes and types that were planned");
      require_output(layout_.own, x.out);
    });
    const Index reduced = ranks_.bytes_reduced();
    Report report{.ranks = ranks_.count(), .heads = decision_.heads};
    detail::Traffic traffic;
    if (!decision_.units.units.empty()) {
      std::unique_ptr<bool[]> unvouched;
      ranks_.agree([&] {
        unvouched = std::make_unique<bool[]>(static_cast<std::size_t>(layout_.own.heads * layout_.own.n_q));
      });
      detail::attend_by_states(ranks_, *own_keys_, *own_rows_, decision_.units, x, unvouched.get());
      repair<DoubleTypes>(x, double_x, unvouched.get(), report, traffic);
    }
    for (const detail::HeadPart& part : decision_.exact)
      traffic += detail::ExactCall<Types>(
                     ranks_, layout_,
                     {detail::heads_of(x.q, part.heads), detail::heads_of(x.k, part.kv_heads),
                      detail::heads_of(x.v, part.kv_heads), detail::heads_of(x.out, part.heads)},
                     options_, decision_.allow_pairs)
                     .run();
    if (const Index rows = std::min(options_.verify, layout_.whole.n_q); rows > 0 && decision_.by_rows()) {
      const std::vector<double> errors = detail::observed_errors<DoubleTypes>(
          ranks_, layout_, options_, double_x, as_rows(v), out_view, rows, traffic);
      for (std::size_t h = 0; h < errors.size(); ++h) {
        report.heads[h].verified_rows = rows;
        report.heads[h].observed_error = errors[h];
      }
    }
    if (!decision_.by_heads.units.empty())
      detail::attend_by_heads<Types>(ranks_, layout_, decision_.by_heads, x, options_.verify, report.heads,
                                     traffic);
    report.share = traffic.pairs > 0 ? traffic.own_pairs / traffic.pairs : 0;
    report.bytes_sent = traffic.bytes_sent + ranks_.bytes_reduced() - reduced;
    report.bytes_received = traffic.bytes_received + ranks_.bytes_reduced() - reduced;
    return report;
  }

 private:
  /// What all ranks must have alike to compute the same.
  static std::vector<Index> types_of(const StoredRows& q, const StoredRows& k, const StoredRows& v) {
    return {q.type->bytes,    q.type->elements, k.type->bytes, k.type->elements, v.type->bytes,
            v.type->elements, k.is_scaled(),    v.is_scaled(), sizeof(Real),     simd::kLanes<Real>};
  }

  /// Computes the rows again of which some head's sums cannot be vouched for. double_x: the tensors of x.
  template <class Types>
  void repair(const ExactTensors<Real>& x, const ExactTensors<double>& double_x, const bool* unvouched,
              Report& report, detail::Traffic& traffic) const {
    const Index heads = layout_.own.heads, n_q = layout_.own.n_q, d_v = layout_.own.d_v;
    std::vector<double> counts(static_cast<std::size_t>(heads));
    std::vector<Index> rows;
    for (Index i = 0; i < n_q; ++i) {
      const Index before = std::ssize(rows);
      for (Index h = 0; h < heads; ++h) {
        if (!unvouched[h * n_q + i]) continue;
        ++counts[static_cast<std::size_t>(h)];
        if (std::ssize(rows) == before) rows.push_back(i);
      }
    }
    ranks_.sum(counts);
    for (std::size_t h = 0; h < counts.size(); ++h)
      report.heads[h].repaired_rows = static_cast<Index>(counts[h]);
    if (std::all_of(counts.begin(), counts.end(), [](double count) { return count == 0; })) return;

    const std::vector<double> results =
        detail::exact_rows<Types>(ranks_, layout_, options_, double_x, rows, traffic);
    for (Index h = 0; h < heads; ++h)
      for (Index r = 0; r < std::ssize(rows); ++r)
        if (const Index i = rows[static_cast<std::size_t>(r)]; unvouched[h * n_q + i])
          x.out.template write<Real>(h, i, results.data() + (h * std::ssize(rows) + r) * d_v, 1, d_v);
  }

  Ranks ranks_;
  Options options_;
  std::vector<Index> types_;
  detail::Layout layout_ = {};
  detail::Decision<Real> decision_ = {};
  // Where some head is approximated: the keys of this rank, and its rows with those keys that they see in
  // part.
  std::optional<Problem> own_keys_ = {}, own_rows_ = {};
  detail::Traffic planned_ = {};
};

}  // namespace fastrope::inline FASTROPE_TARGET::mpi
