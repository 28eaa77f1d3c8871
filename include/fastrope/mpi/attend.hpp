// mpi::attend: attention over a sequence that is spread over MPI ranks, planned and run in one call.
#pragma once

#include <mpi.h>

#include "fastrope/attend/plan.hpp"
#include "fastrope/core/paged_view.hpp"
#include "fastrope/core/stored_rows.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/tensor_view.hpp"
#include "fastrope/mpi/plan.hpp"
#include "fastrope/problem/options.hpp"

namespace fastrope::inline FASTROPE_TARGET::mpi {

/// A plan for a sequence whose rows are spread over the ranks of comm; collective. q [heads, n_q, d],
/// k [kv_heads, n_k, d] and v [kv_heads, n_k, d_v] are this rank's rows, which follow those of the ranks
/// before, n_q and n_k any numbers, also 0. Types, sizes and options are the same on all ranks;
/// query_positions, key_positions, those of sections, gates, the rows of key_ranges, dense_bias and
/// dense_mask are of this rank's rows, the keys in these are counted over all ranks. By default the queries
/// of all ranks stand where the last keys of all do.
///
/// By rows: a softmax head is exact, or with a tolerance approximated by states as fastrope::make_plan has
/// it, where positions are the default ones, there is no mask that forgets keys and no bias, and, unless rows
/// see all keys, each rank's queries see all keys of the ranks before it and none of those after. By heads,
/// each on one rank that gets all its rows, which must fit there: polynomial kernels, gates, positions of
/// sections, a forced path that is not by rows, and with a tolerance what fastrope::make_plan approximates in
/// another way, if that is predicted to be faster than exact on all ranks.
///
/// Throws Error, the same on every rank, for tensors and options that clash on some rank or differ between
/// ranks, and for a forced path that cannot be run. Cost: that of fastrope::make_plan for this rank's rows,
/// and messages whose size does not depend on how many there are; by heads, that for all rows of this rank's
/// heads, which are sent to it.
template <TensorLike Q, RowsLike K, RowsLike V>
Plan<ArithmeticOf<ElementOf<Q>>> make_plan(MPI_Comm comm, const Q& q, const K& k, const V& v,
                                           const Options& options) {
  using Real = ArithmeticOf<ElementOf<Q>>;
  return {comm, as_tensor(q), as_rows(k), as_rows(v), storage_of<Real, Q, K, V, ElementOf<Q>>(), options};
}

/// make_plan and Plan::run: out [heads, n_q, d_v] are this rank's rows of the result. Ensures |out - exact|
/// <= options.tolerance max|V| as fastrope::attend does. Allocates, for exact heads, messages of its own k, v
/// and q, and twice those of the largest rank. MPI is called by the calling thread alone, so
/// MPI_THREAD_FUNNELED is enough. Cost: of exact heads each rank computes about its share of the pairs that
/// the mask allows, sends its keys at most once to every other, and, where a mask leaves ranks with unequal
/// work, a part of its queries; of those by states that of its own rows, and r (d_v + 1) numbers are
/// reduced, whatever n; of heads by heads all of some, whose q, k, v and out are sent.
template <TensorLike Q, RowsLike K, RowsLike V, TensorLike Out>
Report attend(MPI_Comm comm, const Q& q, const K& k, const V& v, Out&& out, const Options& options) {
  const auto plan = make_plan(comm, q, k, v, options);
  Report report = plan.run(q, k, v, out);
  report.bytes_sent += plan.bytes_planned();
  report.bytes_received += plan.bytes_received_to_plan();
  return report;
}

}  // namespace fastrope::inline FASTROPE_TARGET::mpi
