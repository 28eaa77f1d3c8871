// By heads: what cannot be divided by rows, or is not worth it, is divided by heads.
//
//     rows of all heads on every rank  ->  all rows of some heads  ->  Plan::run  ->  rows of all heads
// Each rank gets all rows of some query heads and of their key head, plans and runs them as one process would
// that has no other heads, and sends every rank its rows of the result (the all-to-all of DeepSpeed-Ulysses,
// Jacobs et al. 2023). Every path goes, and every option but dense bias and mask; as many ranks work as there
// are query heads, no more.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "fastrope/attend/make_plan.hpp"
#include "fastrope/attend/plan.hpp"
#include "fastrope/core/error.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/stored_rows.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/tensor_view.hpp"
#include "fastrope/exact/row_kernels.hpp"
#include "fastrope/mpi/exchange.hpp"
#include "fastrope/mpi/layout.hpp"
#include "fastrope/mpi/messages.hpp"
#include "fastrope/mpi/ranks.hpp"
#include "fastrope/mpi/unit_exchange.hpp"
#include "fastrope/mpi/whole_options.hpp"
#include "fastrope/plan/head_report.hpp"
#include "fastrope/problem/run_status.hpp"
#include "fastrope/problem/shapes.hpp"

namespace fastrope::inline FASTROPE_TARGET::mpi::detail {

/// Units, and the plans of those that are this rank's, in the same order.
template <class Real>
struct UnitPlans {
  std::vector<HeadUnit> units = {};
  std::vector<fastrope::Plan<Real>> plans = {};
  std::unique_ptr<const WholeOptions> options = {};  ///< what the plans refer to
};

inline void pack(Packer& to, const HeadReport& head) {
  to(head.path, head.entry_bound, head.degree, head.rank, head.error_bound, head.rounding, head.reason,
     head.candidates.size());
  for (const Candidate& c : head.candidates)
    to(c.path, c.feasible, c.entry_bound, c.degree, c.rank, c.simplex_rank, c.error_bound, c.rounding, c.work,
       c.seconds, c.exact_rows, c.how, c.reason);
}
inline HeadReport unpack(Unpacker& from) {
  HeadReport head;
  std::size_t candidates = 0;
  from(head.path, head.entry_bound, head.degree, head.rank, head.error_bound, head.rounding, head.reason,
       candidates);
  head.candidates.resize(candidates);
  for (Candidate& c : head.candidates)
    from(c.path, c.feasible, c.entry_bound, c.degree, c.rank, c.simplex_rank, c.error_bound, c.rounding,
         c.work, c.seconds, c.exact_rows, c.how, c.reason);
  return head;
}

/// Plans every unit on its rank. Returns the reports of all heads; collective. Throws Error, the same on
/// every rank, where one does.
template <class Real>
std::vector<HeadReport> plan_units(const Ranks& ranks, const Layout& layout, UnitPlans<Real>& all,
                                   const StoredRows& q, const StoredRows& k, const StoredRows& v,
                                   const Storage& storage, Traffic& traffic) {
  const UnitExchange<Real> units(ranks, layout, all.units, q, k, v);
  const std::vector<UnitRows> rows = units.collect(traffic);
  Packer packer;
  ranks.agree([&] {
    for (const HeadUnit& unit : all.units) {
      if (!units.is_mine(unit)) continue;
      const UnitRows& own = rows[all.plans.size()];
      try {
        all.plans.push_back(fastrope::detail::plan_tensors<Real>(
            units.queries(own, unit), units.keys(own), units.values(own), storage,
            all.options->of(unit.heads, unit.kv_head), nullptr, {}));
      } catch (const Error& error) {
        fastrope::detail::fail("of the heads from ", unit.heads.begin, " to ", unit.heads.end, ": ",
                               error.what());
      }
      for (const HeadReport& head : all.plans.back().report().heads) pack(packer, head);
    }
  });
  const std::vector<Buffer> packed = gather(ranks, packer.bytes(), traffic);
  std::vector<HeadReport> heads;
  ranks.agree([&] {
    std::vector<Unpacker> from(packed.begin(), packed.end());
    for (const HeadUnit& unit : all.units)
      for (Index h = 0; h < unit.heads.size(); ++h)
        heads.push_back(unpack(from[static_cast<std::size_t>(unit.rank)]));
  });
  return heads;
}

/// The units' heads of x.out, and of reports [heads] what runs say: rows computed again, and the errors of a
/// spot check of `verify` rows; collective. Types: CallTypes. Throws Error, the same on every rank, where it
/// fails on one.
template <class Types, class Real>
void attend_by_heads(const Ranks& ranks, const Layout& layout, const UnitPlans<Real>& all,
                     const ExactTensors<Real>& x, Index verify, std::span<HeadReport> reports,
                     Traffic& traffic) {
  const UnitExchange<Real> units(ranks, layout, all.units, x.q, x.k, x.v);
  const std::vector<UnitRows> rows = units.collect(traffic);
  const Shapes& s = layout.whole;
  std::vector<double> repaired(reports.size()), verified(reports.size()), errors(reports.size());
  std::vector<Buffer> results;
  ranks.agree([&] {
    for (const HeadUnit& unit : all.units) {
      if (!units.is_mine(unit)) continue;
      const UnitRows& own = rows[results.size()];
      const fastrope::Plan<Real>& plan = all.plans[results.size()];
      const Index heads = unit.heads.size();
      const auto k = contiguous(reinterpret_cast<const typename Types::Key*>(own.k.data()), 1, s.n_k, s.d);
      const auto v =
          contiguous(reinterpret_cast<const typename Types::Value*>(own.v.data()), 1, s.n_k, s.d_v);
      OutputRows out = x.out;
      Buffer& result =
          results.emplace_back(static_cast<std::size_t>(heads * s.n_q * s.d_v * out.type->bytes));
      out.data = result.data();
      out.heads = heads;
      out.rows = s.n_q;
      out.row_stride = s.d_v;
      out.head_stride = s.n_q * s.d_v;
      const auto workspace = std::make_unique_for_overwrite<std::byte[]>(plan.workspace_bytes());
      std::vector<Index> again(static_cast<std::size_t>(heads));
      const RunStatus status = plan.template run_tensors<typename Types::Operand>(
          {units.queries(own, unit), k, v, out}, std::span(workspace.get(), plan.workspace_bytes()),
          {again, {}});
      if (status != RunStatus::ok) fastrope::detail::fail("the executor failed while attending");
      const fastrope::Report checked = plan.verify_rows(
          units.queries(own, unit), k, v, packed_rows(out.type, out.data, heads, s.n_q, s.d_v), verify);
      for (Index h = 0; h < heads; ++h) {
        const auto head = static_cast<std::size_t>(unit.heads.begin + h),
                   of_unit = static_cast<std::size_t>(h);
        repaired[head] = static_cast<double>(again[of_unit]);
        verified[head] = static_cast<double>(checked.heads[of_unit].verified_rows);
        errors[head] = checked.heads[of_unit].observed_error;
      }
    }
  });
  units.distribute(results, x.out, traffic);
  for (std::vector<double>* numbers : {&repaired, &verified, &errors}) ranks.sum(*numbers);
  for (const HeadUnit& unit : all.units)
    for (auto h = static_cast<std::size_t>(unit.heads.begin); h < static_cast<std::size_t>(unit.heads.end);
         ++h) {
      reports[h].repaired_rows = static_cast<Index>(repaired[h]);
      reports[h].verified_rows = static_cast<Index>(verified[h]);
      reports[h].observed_error = errors[h];
    }
}

}  // namespace fastrope::inline FASTROPE_TARGET::mpi::detail
