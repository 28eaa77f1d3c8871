// CostModel: seconds of work on one core, from a few measured rates.
//
// Where a path begins to pay follows from the rates; nothing else decides it. Only their ratios matter to a
// choice. bench/calibrate measures a machine's.
#pragma once

#include <algorithm>
#include <span>
#include <utility>
#include <vector>

#include "fastrope/core/index.hpp"
#include "fastrope/core/simd.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/plan/path_work.hpp"
#include "fastrope/plan/work.hpp"
#include "fastrope/polynomial/far_pairs.hpp"
#include "fastrope/problem/problem.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// Work per second of one core in float; double takes twice the time. The defaults are what bench/calibrate
/// gave, medians of several runs: for AVX2 on Zen 3, but for `element`, which lies between its 1.4e8 and the
/// 2.4e8 of Emerald Rapids, and `look`, which was 6e3 before looks became faster; for AVX-512 on Emerald
/// Rapids, but for `tile`, between its 1.9e11 and the 1.1e11 of Zen 4. Narrower vectors are taken to be
/// slower than AVX2 in proportion.
struct CostModel {
  double tile = kWide ? 1.5e11 : kVector * 7.1e10;   ///< flops in the tile kernels
  double weigh = kWide ? 3.7e9 : kVector * 1.2e9;    ///< scores turned into weights
  double feature = kWide ? 1.0e10 : kVector * 4e9;   ///< monomials
  double transform = kWide ? 2.4e10 : 2.2e10;        ///< flops in Fourier transforms
  double element = kWide ? 2.3e8 : kVector * 1.9e8;  ///< elements outside of the kernels
  double round = 2.5e5;                              ///< rounds of tasks
  double look = kWide ? 1.4e4 : 8.0e3;               ///< heads sampled and fitted

  template <class Real>
  double seconds(const Work& w) const {
    return sizeof(Real) / 4.0 *
               (w.tile / tile + w.weigh / weigh + w.feature / feature + w.transform / transform +
                w.element / element) +
           w.round / round;
  }

  /// The ways to divide the rows among which best_chunks chooses: make_chunks(rows), of kLeastChunk rows
  /// times a power of two.
  static constexpr Index kLeastChunk = 192;
  template <class MakeChunks>
  static std::vector<std::vector<FarPairs>> chunkings(const Problem& problem, MakeChunks&& make_chunks) {
    std::vector<std::vector<FarPairs>> ways = {make_chunks(kLeastChunk)};
    for (Index rows = 2 * kLeastChunk; ways.back().size() > 1 && rows < 2 * problem.shapes.n_q; rows *= 2)
      ways.push_back(make_chunks(rows));
    return ways;
  }
  /// The chunks for which the polynomial path is cheapest.
  template <class Real>
  std::vector<FarPairs> best_chunks(const Problem& problem, double rank, Index heads,
                                    const std::vector<std::vector<FarPairs>>& ways) const {
    std::vector<double> costs;
    for (const std::vector<FarPairs>& chunks : ways)
      costs.push_back(seconds<Real>(polynomial_work<Real>(problem, rank, heads, chunks)));
    return ways[static_cast<std::size_t>(std::min_element(costs.begin(), costs.end()) - costs.begin())];
  }
  template <class Real>
  std::vector<FarPairs> best_chunks(const Problem& problem, double rank, Index heads) const {
    return best_chunks<Real>(problem, rank, heads,
                             chunkings(problem, [&](Index rows) { return far_chunks<Real>(problem, rows); }));
  }

 private:
  static constexpr bool kWide = simd::kLanes<float> >= 16;
  static constexpr double kVector = static_cast<double>(simd::kLanes<float>) / 8;
};

}  // namespace fastrope::inline FASTROPE_TARGET