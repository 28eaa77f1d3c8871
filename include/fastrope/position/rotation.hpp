// Rotation: rows turned by their positions' angles, from a table of cosines and sines.
//
// Angles position * theta are formed in double (a float product would be off by 0.1 rad at position 2^20) and
// turned by angle addition: with position = high + low, low < 64,
//     cos(p theta) = cos(high theta) cos(low theta) - sin(high theta) sin(low theta),
// two library calls per pair for 64 rows, each entry within 4 epsilon of double, then rounded to Real.
#pragma once

#include <array>
#include <cmath>
#include <span>
#include <vector>

#include "fastrope/core/index.hpp"
#include "fastrope/position/rope.hpp"

namespace fastrope {

/// Fills and applies the table of one RopeFrequencies.
///
/// A table row belongs to one position: cos then sin of its angles, [2, pairs], times the attention factor.
class Rotation {
 public:
  /// d: columns of the rows to turn; without `frequencies`, rows are left as they are.
  explicit Rotation(RopeFrequencies frequencies = {}) : frequencies_(std::move(frequencies)) {
    for (Index low = 0; low < kBlock; ++low)
      for (double theta : frequencies_.theta) low_.push_back(unit(static_cast<double>(low) * theta));
  }

  Index pairs() const { return frequencies_.pairs(); }
  /// Elements in a table row.
  Index row_size() const { return 2 * pairs(); }
  const RopeFrequencies& frequencies() const { return frequencies_; }

  /// table: [rows.size(), row_size()] for positions position_of(i), i in rows; within 1e-7 (float) or 1e-9
  /// (double, at |position| <= 2^20) of the true cosine and sine times the attention factor.
  template <class Real, class PositionOf>
  void fill(Range rows, PositionOf&& position_of, Real* table) const {
    for (Index m = 0; m < pairs(); ++m) {
      Position high = 1;  // never a multiple of kBlock, so the first row sets it
      Unit at_high{};
      for (Index i = rows.begin; i < rows.end; ++i) {
        const Position p = position_of(i);
        const Position low = ((p % kBlock) + kBlock) % kBlock;
        if (p - low != high) {
          high = p - low;
          at_high = unit(static_cast<double>(high) * frequencies_.theta[m]);
        }
        const Unit at_low = low_[low * pairs() + m];
        Real* row = table + (i - rows.begin) * row_size();
        const double gain = frequencies_.attention_factor;
        row[m] = static_cast<Real>(gain * (at_high.cosine * at_low.cosine - at_high.sine * at_low.sine));
        row[pairs() + m] =
            static_cast<Real>(gain * (at_high.sine * at_low.cosine + at_high.cosine * at_low.sine));
      }
    }
  }

  /// Turns x [d] in place by one table row.
  template <class Real>
  void apply(const Real* table_row, Real* x) const {
    const Index n = pairs();
    const Index step = frequencies_.pairing == RopePairing::interleaved ? 2 : 1;
    const Index partner = frequencies_.pairing == RopePairing::interleaved ? 1 : n;
    for (Index m = 0; m < n; ++m) {
      const Real c = table_row[m], s = table_row[n + m];
      Real& a = x[step * m];
      Real& b = x[step * m + partner];
      const Real turned = c * a - s * b;
      b = s * a + c * b;
      a = turned;
    }
  }

 private:
  static constexpr Index kBlock = 64;
  struct Unit {
    double cosine = 1;
    double sine = 0;
  };
  static Unit unit(double angle) { return {std::cos(angle), std::sin(angle)}; }

  RopeFrequencies frequencies_;
  std::vector<Unit> low_ = {};  // [kBlock, pairs]
};

}  // namespace fastrope
