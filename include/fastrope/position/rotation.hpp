// Rotation: rows turned by their positions' angles, from a table of cosines and sines.
//
// Angles position * theta are formed in double (a float product would be off by 0.1 rad at position 2^20) and
// turned by angle addition: with position = high + low, low < 64,
//     cos(p theta) = cos(high theta) cos(low theta) - sin(high theta) sin(low theta),
// two library calls per pair for 64 rows. The 64 of low theta, made with the frequencies, are formed so too,
// of multiples of 8 theta and the 8 below them. Where sections turn by positions of their own, each pair
// takes the factors of its section's high and low; the sums are the same, so that equal positions give equal
// tables.
//
// Rounding, u = 2^-53, a the attention factor, P = max |p|, Theta = max theta. theta is off by up to t u
// theta (rope.hpp; t = 1.25 with a long double of 64 bits), and the product with an integer below 2^53 rounds
// once more: all angles together are off by (|high| + low) (t + 1) u Theta, |high| + low <= P + 126, and no
// cosine or sine changes by more than its angle. Beyond that, in the length of (cos, sin), which is 1,
//     3 sqrt(2) u for the library's cos and sin of high theta and of both parts of low theta, each within u
//     (a unit in the last place), sqrt(2) u for the products of both parts: with p, q and r, s the sizes of
//     their cosines and sines, (p r + q s)^2 + (q r + p s)^2 = 1 + 4 p q r s <= 2,  and u for their sums;
// and in an entry, relative to a, u for the products with a, u for those of high and low, u for their sum. So
// each entry is within
//     phase_error(P) = a u [(t + 1.05) (P + 128) Theta + 10],
// where 1.05 and 10 > 4 sqrt(2) + 4 leave room for second orders: 2.7e-10 at 2^20, 5.5e-7 at 2^31, for a = 1
// and Theta <= 1.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#include "fastrope/core/index.hpp"
#include "fastrope/core/shared_array.hpp"
#include "fastrope/core/simd.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/position/rope.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// Fills and applies the table of one RopeFrequencies.
///
/// A table row belongs to one position: cos then sin of its angles, [2, pairs], times the attention factor.
class Rotation {
 public:
  /// Without frequencies, rows are left as they are.
  explicit Rotation(RopeFrequencies frequencies = {})
      : frequencies_(std::make_shared<const RopeFrequencies>(std::move(frequencies))) {
    // Row after row, those of multiples of kSome and below it by the library, the others from two of them.
    const Index n = pairs();
    std::vector<double> table(static_cast<std::size_t>(kBlock * row_size()));
    for (Index low = 0; low < kBlock; ++low) {
      const bool by_library = low < kSome || low % kSome == 0;
      double* row = table.data() + low * row_size();
      const double *x = row - low % kSome * row_size(), *y = table.data() + low % kSome * row_size();
      for (Index m = 0; m < n; ++m) {
        const double angle = static_cast<double>(low) * frequencies_->theta[m];
        row[m] = by_library ? std::cos(angle) : x[m] * y[m] - x[n + m] * y[n + m];
        row[n + m] = by_library ? std::sin(angle) : x[n + m] * y[m] + x[m] * y[n + m];
      }
    }
    low_ = std::make_shared<const std::vector<double>>(std::move(table));
  }

  Index pairs() const { return frequencies_->pairs(); }
  /// Elements in a table row.
  Index row_size() const { return 2 * pairs(); }
  const RopeFrequencies& frequencies() const { return *frequencies_; }

  /// How far a table's entry may be, before it is rounded to Real, from the true cosine or sine times the
  /// attention factor, for positions of at most `farthest` in absolute value. Requires farthest <=
  /// frequencies().max_position().
  double phase_error(Position farthest) const {
    if (pairs() == 0) return 0;  // nothing is turned
    constexpr double kUnit = 0x1p-53;
    constexpr double kTheta =
        1 + 0x1p9 * static_cast<double>(std::numeric_limits<long double>::epsilon() / 0x1p-52L);
    return frequencies_->attention_factor * kUnit *
           ((kTheta + 1.05) * (static_cast<double>(farthest) + 2 * kBlock) * frequencies_->largest_theta() +
            10);
  }

  /// table: [rows.size(), row_size()] for positions position_of(i, section), i in rows; within
  /// phase_error(max |position|), and half an epsilon of Real, of the true cosine and sine times the
  /// attention factor. Requires |position| <= frequencies().max_position().
  template <class Real, class PositionOf>
  void fill(Range rows, PositionOf&& position_of, Real* table) const {
    for (Index first = 0; first < pairs(); first += kPairs)
      fill_pairs(rows, position_of, {first, std::min(first + kPairs, pairs())}, table);
  }

  /// Keeps the table of positions 0 .. rows - 1, row_size() elements of Real each; copies share it.
  template <class Real>
  void keep(Index rows) {
    std::vector<Real> table(static_cast<std::size_t>(rows * row_size()));
    fill(
        Range{0, rows}, [](Index i, Index) { return Position{i}; }, table.data());
    std::get<SharedArray<Real>>(kept_) = std::move(table);
  }
  /// The table that is kept, where it has `rows` rows; else null.
  template <class Real>
  const Real* kept(Index rows) const {
    const SharedArray<Real>& table = std::get<SharedArray<Real>>(kept_);
    return static_cast<Index>(table.size()) >= rows * row_size() ? table.data() : nullptr;
  }

  /// Turns x [d] in place by one table row.
  template <class Real>
  void apply(const Real* table_row, Real* x) const {
    using namespace simd;
    const Index n = pairs();
    const Real* sines = table_row + n;
    const bool interleaved = frequencies_->pairing == RopePairing::interleaved;
    Real* turning = x + frequencies_->begin;
    Index m = 0;
    for (; m + kLanes<Real> <= n; m += kLanes<Real>) {
      const Vec<Real> c = load(table_row + m), s = load(sines + m);
      Vec<Real> a, b;
      if (interleaved) {
        load_pairs(turning + 2 * m, a, b);
      } else {
        a = load(turning + m);
        b = load(turning + n + m);
      }
      const Vec<Real> turned_a = fma(c, a, neg(mul(s, b))), turned_b = fma(s, a, mul(c, b));
      if (interleaved) {
        store_pairs(turned_a, turned_b, turning + 2 * m);
      } else {
        store<Real>(turned_a, turning + m);
        store<Real>(turned_b, turning + n + m);
      }
    }
    for (; m < n; ++m) {
      Real& a = x[frequencies_->first_column(m)];
      Real& b = x[frequencies_->second_column(m)];
      const Real turned = table_row[m] * a - sines[m] * b;
      b = sines[m] * a + table_row[m] * b;
      a = turned;
    }
  }

  /// The transpose of that: from the gradient of a turned row to the row's own.
  template <class Real>
  void apply_transposed(const Real* table_row, Real* x) const {
    const Real* sines = table_row + pairs();
    for (Index m = 0; m < pairs(); ++m) {
      Real& a = x[frequencies_->first_column(m)];
      Real& b = x[frequencies_->second_column(m)];
      const Real of_a = table_row[m] * a + sines[m] * b;
      b = table_row[m] * b - sines[m] * a;
      a = of_a;
    }
  }

 private:
  static constexpr Index kBlock = 64;  // positions that share a `high`
  static constexpr Index kSome = 8;    // and of these, what `low` is split by
  static_assert(kBlock % kSome == 0);
  static constexpr Index kPairs = 64;  // pairs whose cosines at `high` are held at once

  template <class Real, class PositionOf>
  void fill_pairs(Range rows, PositionOf&& position_of, Range pair_range, Real* table) const {
    double high_cosine[kPairs], high_sine[kPairs];
    double mixed_cosine[kPairs], mixed_sine[kPairs];  // at `low`s that differ by section
    std::array<Position, RopeFrequencies::kMaxSections> high, low;
    high.fill(1);  // never a multiple of kBlock, so the first row sets it
    for (Index i = rows.begin; i < rows.end; ++i) {
      for (Index s = 0; s < frequencies_->sections; ++s) {
        const auto at = static_cast<std::size_t>(s);
        const Position p = position_of(i, s);
        low[at] = ((p % kBlock) + kBlock) % kBlock;
        if (p - low[at] == high[at]) continue;
        high[at] = p - low[at];
        for (Index m = 0; m < pair_range.size(); ++m) {
          const Index pair = pair_range.begin + m;
          if (frequencies_->section(pair) != s) continue;
          const double angle =
              static_cast<double>(high[at]) * frequencies_->theta[static_cast<std::size_t>(pair)];
          high_cosine[m] = frequencies_->attention_factor * std::cos(angle);
          high_sine[m] = frequencies_->attention_factor * std::sin(angle);
        }
      }
      const double* low_cosine = low_->data() + low[0] * row_size() + pair_range.begin;
      const double* low_sine = low_cosine + pairs();
      if (frequencies_->sections > 1) {
        for (Index m = 0; m < pair_range.size(); ++m) {
          const Index pair = pair_range.begin + m;
          const auto at = static_cast<std::size_t>(frequencies_->section(pair));
          const double* row = low_->data() + low[at] * row_size() + pair;
          mixed_cosine[m] = row[0];
          mixed_sine[m] = row[pairs()];
        }
        low_cosine = mixed_cosine;
        low_sine = mixed_sine;
      }
      Real* cosine = table + (i - rows.begin) * row_size() + pair_range.begin;
      Real* sine = cosine + pairs();
      for (Index m = 0; m < pair_range.size(); ++m) {
        cosine[m] = static_cast<Real>(high_cosine[m] * low_cosine[m] - high_sine[m] * low_sine[m]);
        sine[m] = static_cast<Real>(high_sine[m] * low_cosine[m] + high_cosine[m] * low_sine[m]);
      }
    }
  }

  std::shared_ptr<const RopeFrequencies> frequencies_;
  // [kBlock, row_size]: cosines and sines of positions 0..kBlock-1; shared by copies.
  std::shared_ptr<const std::vector<double>> low_;
  std::tuple<SharedArray<float>, SharedArray<double>> kept_ = {};
};

}  // namespace fastrope::inline FASTROPE_TARGET
