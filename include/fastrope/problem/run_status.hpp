// RunStatus: what became of running a plan, which throws nothing.
#pragma once

#include "fastrope/core/target.hpp"

namespace fastrope::inline FASTROPE_TARGET {

enum class RunStatus {
  ok,
  shape_mismatch,         ///< tensors are not of the plan's shapes, or null; nothing was written
  workspace_too_small,    ///< fewer than workspace_bytes(); nothing was written
  executor_failed,        ///< the caller's executor threw or broke its contract; out has no meaning
  position_out_of_range,  ///< a recurrence is as long as rope's phases are held; nothing was written
};

}  // namespace fastrope::inline FASTROPE_TARGET
