// RunStatus: what became of running a plan, which throws nothing; RunDetails: what it tells beside the
// output.
#pragma once

#include <span>

#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"

namespace fastrope::inline FASTROPE_TARGET {

enum class RunStatus {
  ok,
  shape_mismatch,         ///< tensors are not of shapes that the plan takes, or null; nothing was written
  workspace_too_small,    ///< fewer than workspace_bytes(); nothing was written
  executor_failed,        ///< the caller's executor threw or broke its contract; out has no meaning
  lse_unavailable,        ///< lse was asked for, and a head is approximated; nothing was written
  places_refused,         ///< positions or key ranges that run reads are not such as plans take; nothing was
                          ///< written
  position_out_of_range,  ///< a recurrence is as long as rope's phases are held; nothing was written
  gates_refused,          ///< a log gate is above 0, or an input gate not below infinity; nothing was written
  promise_broken,         ///< a recurrence's entries may be beyond its radius; nothing was written
};

/// Memory for what a run can tell of its rows; what is empty is not wanted.
struct RunDetails {
  /// [heads]: rows of heads that do not run the exact path which were computed again by it.
  std::span<Index> repaired_rows = {};
  /// [heads * n_q]: |out - exact| <= row_bounds[h * n_q + i] max|V| in row i of head h, V that of its key
  /// head, rounding included, that to out's type as well; infinity where nothing is known, 0 for a row
  /// without keys. With softmax the error_bound of each head.
  std::span<double> row_bounds = {};
};

}  // namespace fastrope::inline FASTROPE_TARGET
