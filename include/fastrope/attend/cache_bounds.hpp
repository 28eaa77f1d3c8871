// CacheBounds: what planning has seen of the keys and values of a cache that grows.
#pragma once

#include <utility>
#include <vector>

#include "fastrope/core/error.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/plan/look.hpp"
#include "fastrope/problem/problem.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// Lets make_plan look at new keys and values alone: bounds of those before are kept, block by block. For one
/// sequence of one layer; not to be used by two plans at once. Memory: O(kv_heads n_k / 64), times d where
/// axes were chosen. Real: the arithmetic of the plans.
template <class Real>
class CacheBounds {
 public:
  /// Keys that were looked at so far: a plan that does not look, since that could not pay, leaves its keys to
  /// the next. They and their values must be what they were when make_plan sees them again, and at the same
  /// positions.
  Index rows() const { return rows_; }

  /// Begins anew, as for another sequence, or when a cache has dropped keys.
  void clear() { *this = {}; }

  /// Calls use(heads), the memory of each key head, for a call with the keys so far and more. Throws Error,
  /// naming the values, where they cannot be; if use throws, the bounds are cleared. Returns what use
  /// returns.
  template <class Use>
  auto update(const Problem& problem, Use&& use) {
    const Shapes& s = problem.shapes;
    const LagGrid& grid = problem.grid;
    if (!grid.in_order()) detail::fail("bounds that are kept need keys in ascending order of position");
    if (s.n_k < rows_)
      detail::fail("the cache has ", s.n_k, " keys, ", rows_, " were looked at before: clear() the bounds");
    const Seen now{s.kv_heads, s.d, s.d_v, problem.rotation.frequencies(), place_of(problem, 0)};
    if (rows_ > 0 && (now != seen_ || place_of(problem, rows_ - 1) != last_))
      detail::fail("the bounds are of ", seen_.kv_heads, " heads, d ", seen_.d, ", d_v ", seen_.d_v, ", ",
                   rows_, " keys at positions ", seen_.first.front(), " to ", last_.front(),
                   " and their rope, the call has ", s.kv_heads, " heads, d ", s.d, ", d_v ", s.d_v,
                   ", keys at ", now.first.front(), " to ", grid.key_position(rows_ - 1),
                   problem.sections > 0 ? " or others for a section" : "", ": clear() the bounds");
    std::vector<KeyMemory> heads = std::move(heads_);
    clear();
    heads.resize(static_cast<std::size_t>(s.kv_heads));
    auto result = use(heads);
    heads_ = std::move(heads);
    seen_ = now;
    rows_ = s.n_k;
    last_ = place_of(problem, rows_ - 1);
    return result;
  }

 private:
  /// What must stay the same.
  struct Seen {
    Index kv_heads = 0, d = 0, d_v = 0;
    RopeFrequencies rope = {};
    std::vector<Position> first = {};  ///< the place of the first key

    friend bool operator==(const Seen&, const Seen&) = default;
  };

  /// Where key j stands, and what each section turns it by; nothing where there is no such key.
  static std::vector<Position> place_of(const Problem& problem, Index j) {
    if (j < 0 || j >= problem.shapes.n_k) return {};
    std::vector<Position> place = {problem.grid.key_position(j)};
    for (Index s = 0; s < problem.sections; ++s) place.push_back(problem.key_turn(j, s));
    return place;
  }

  std::vector<KeyMemory> heads_ = {};
  Seen seen_ = {};
  Index rows_ = 0;
  std::vector<Position> last_ = {};  // the place of the last key
};

}  // namespace fastrope::inline FASTROPE_TARGET
