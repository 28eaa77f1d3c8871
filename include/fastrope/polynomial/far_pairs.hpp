// Far pairs: which rows meet which keys through features. With a mask, rows are taken in chunks; keys that
// every row of a chunk may attend to are far, the rest are near and exact.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/polynomial/state.hpp"
#include "fastrope/problem/problem.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// A chunk of the rows of each query head, whose far keys are [first, far), and, if some function of the lag
/// wants them apart, those of `later`, which begin behind these.
struct FarPairs {
  Range rows;
  Index far;
  Index first = 0;
  Range later = {};

  /// All far keys are below it.
  Index reach() const { return later.empty() ? far : later.end; }
};

/// The factor e^(level - slope lag) of far pairs, beside that of their entries.
struct FarFactor {
  double level = 0;
  double slope = 0;
};

/// What takes a state from the keys that it holds to others.
struct StateChange {
  bool restart = false;  ///< from nothing
  Range add = {};
  Range remove = {};
};

/// The keys of a state whose ends both move one way. What is removed leaves its rounding behind, so the state
/// begins anew when that was much more than it holds.
class StateWindow {
 public:
  StateChange move_to(Range next) {
    constexpr Index kMostRemoved = 4;  // times what is held
    const Range kept = intersect(keys_, next);
    StateChange change{.restart = kept.empty()};
    if (!change.restart) {
      change.remove = kept.begin > keys_.begin ? Range{keys_.begin, kept.begin} : Range{kept.end, keys_.end};
      change.add = next.begin < kept.begin ? Range{next.begin, kept.begin} : Range{kept.end, next.end};
      removed_ += change.remove.size();
      change.restart = removed_ > kMostRemoved * next.size();
    }
    if (change.restart) {
      removed_ = 0;
      change = {.restart = true, .add = next, .remove = {}};
    }
    keys_ = next;
    return change;
  }

 private:
  Range keys_ = {};
  Index removed_ = 0;
};

/// Why a problem's rows cannot be split like that, or its weights not be polynomials of the dot product;
/// empty when they can.
inline std::string polynomial_refusal(const Problem& problem) {
  if (problem.weights) return "relative weights do not separate into query and key factors";
  if (!problem.bias.empty()) return "a lag bias does not separate into query and key factors";
  if (problem.gates.given() && problem.kernel.is_softmax()) return "gates are done by the exact path";
  if (problem.softcap > 0) return "softcap is not a polynomial of the dot product";
  if (!problem.sinks.empty()) return "attention sinks are done by the exact path";
  if (problem.is_dense()) return "a dense bias or mask is done by the exact path";
  if (problem.grid.has_ranges()) return "key_ranges are done by the exact path";
  if (!problem.grid.ascending_queries()) return "query positions do not ascend";
  const Index last = problem.shapes.n_q - 1;
  if (last >= 0 && problem.grid.keys_of(last).begin > 0)
    return "the mask drops early keys (a window), which a running state cannot forget";
  return {};
}

/// Chunks of `rows` rows: far are the whole blocks of keys that the chunk's first row may attend to, or all
/// keys. Neighbours with the same far keys are one chunk. Larger chunks have no pairs that smaller ones,
/// whose size divides theirs, have not. Requires an empty refusal, rows > 0.
template <class Real>
std::vector<FarPairs> far_chunks(const Problem& problem, Index rows) {
  const LagGrid& grid = problem.grid;
  std::vector<FarPairs> chunks;
  for (Index i = 0; i < grid.n_q(); i += rows) {
    const Index reach = std::max<Index>(grid.keys_of(i).end, 0);
    const Index far = reach == grid.n_k() ? reach : round_down(reach, kKeyBlock<Real>);
    const Range chunk{i, std::min(i + rows, grid.n_q())};
    if (!chunks.empty() && chunks.back().far == far)
      chunks.back().rows.end = chunk.end;
    else
      chunks.push_back({chunk, far});
  }
  return chunks;
}

}  // namespace fastrope::inline FASTROPE_TARGET
