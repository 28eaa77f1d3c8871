// Stage: an exact call is a fixed sequence of rounds of independent tasks. The rounds of many calls can be
// run together, so that a batch waits for its threads as often as one call does.
#pragma once

#include "fastrope/core/target.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// The tasks of a stage need all tasks of the stages before it.
enum class Stage {
  prepare,  ///< rotation tables and lag lines
  load,     ///< keys are packed, or queries loaded
  attend,   ///< blocks of rows, or splits of the keys
  finish,   ///< splits are merged
};

/// In the order in which they run.
inline constexpr Stage kStages[] = {Stage::prepare, Stage::load, Stage::attend, Stage::finish};

}  // namespace fastrope::inline FASTROPE_TARGET
