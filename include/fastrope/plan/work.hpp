// Work: what a path has to do for one head, counted. The cost model's rates turn it into seconds.
#pragma once

#include "fastrope/core/target.hpp"

namespace fastrope::inline FASTROPE_TARGET {

struct Work {
  double tile = 0;       ///< flops in the tile kernels
  double weigh = 0;      ///< scores turned into weights: mask, maximum, exponential, sum
  double feature = 0;    ///< monomials evaluated, summed and scaled
  double transform = 0;  ///< flops in Fourier transforms, 2.5 N log2 N each
  double element = 0;    ///< elements packed, turned, bounded, scaled or accumulated outside of the kernels
  double round = 0;      ///< rounds of tasks, each started and waited for

  /// Floating-point operations in products, features and transforms.
  double flops() const { return tile + 2 * feature + transform; }

  Work& operator+=(const Work& more) {
    tile += more.tile;
    weigh += more.weigh;
    feature += more.feature;
    transform += more.transform;
    element += more.element;
    round += more.round;
    return *this;
  }
  friend Work operator+(Work a, const Work& b) { return a += b; }
  /// The same work a number of times, or a share of it.
  friend Work operator*(double times, const Work& w) {
    return {times * w.tile,      times * w.weigh,   times * w.feature,
            times * w.transform, times * w.element, times * w.round};
  }
};

}  // namespace fastrope::inline FASTROPE_TARGET
