// Laws of partial softmax states: taken up in any pieces and merged in any order, they equal the whole.
#include "fastrope/exact/online_softmax.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "support/inputs.hpp"
#include "support/norms.hpp"

namespace {

using fastrope::Error;
using fastrope::Index;
using fastrope::merge;
using fastrope::Range;
using fastrope::SoftmaxRows;
using fastrope::SoftmaxTotals;
using fastrope::Workspace;
using fastrope::simd::kLanes;
using fastrope_test::Inputs;
using fastrope_test::max_abs;
using fastrope_test::max_abs_difference;
using fastrope_test::Tensor;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// A softmax result of one row: out [d_v] and lse.
struct Whole {
  std::vector<double> out;
  double lse = -kInfinity;
};

/// softmax(x) v over the keys of a range, in double; natural-log logits.
template <class Real>
Whole softmax(const std::vector<Real>& x, const Tensor<Real>& v, Range keys) {
  Whole whole{std::vector<double>(static_cast<std::size_t>(v.cols)), -kInfinity};
  double top = -kInfinity, sum = 0;
  for (Index j = keys.begin; j < keys.end; ++j)
    top = std::max(top, static_cast<double>(x[static_cast<std::size_t>(j)]));
  if (top == -kInfinity) return whole;
  for (Index j = keys.begin; j < keys.end; ++j) {
    const double weight = std::exp(static_cast<double>(x[static_cast<std::size_t>(j)]) - top);
    sum += weight;
    for (Index c = 0; c < v.cols; ++c)
      whole.out[static_cast<std::size_t>(c)] += weight * static_cast<double>(v(0, j, c));
  }
  for (double& o : whole.out) o /= sum;
  whole.lse = top + std::log(sum);
  return whole;
}

/// States with memory of their own, one row: a stretch, with the values that the caller of weigh() adds, and
/// what was before.
template <class Real>
class Row {
 public:
  explicit Row(Index d_v)
      : d_v_(d_v),
        state_(make<SoftmaxRows<Real>>(memory_, fastrope::round_up(d_v, kLanes<Real>))),
        totals_(make<SoftmaxTotals>(totals_memory_, fastrope::round_up(d_v, kLanes<Real>))) {
    state_.clear(1);
    totals_.clear(1);
  }

  const SoftmaxRows<Real>& state() const { return state_; }
  const SoftmaxTotals& totals() const { return totals_; }
  /// Ends the stretch.
  void fold() const {
    totals_.add(0, state_, 0);
    state_.clear_sums(1);
  }

  /// Takes up keys with natural-log logits x and values v.
  void attend(const std::vector<Real>& x, const Tensor<Real>& v, Range keys) {
    const Index padded = fastrope::round_up(keys.size(), kLanes<Real>);
    std::vector<Real> scores(static_cast<std::size_t>(padded), -std::numeric_limits<Real>::infinity());
    for (Index j = keys.begin; j < keys.end; ++j)
      scores[static_cast<std::size_t>(j - keys.begin)] =
          x[static_cast<std::size_t>(j)] * static_cast<Real>(fastrope::kLog2E);
    state_.weigh(1, scores.data(), padded, padded);
    for (Index j = keys.begin; j < keys.end; ++j)
      for (Index c = 0; c < d_v_; ++c)
        state_.row(0)[c] += scores[static_cast<std::size_t>(j - keys.begin)] * v(0, j, c);
    fold();
  }

  /// out as a [1, 1, d_v] tensor.
  Tensor<Real> out() const {
    Tensor<Real> result(1, 1, d_v_);
    totals_.template write<Real>(0, result.view(), 0, 0);
    return result;
  }
  double lse() const { return totals_.lse(0); }

 private:
  template <class State>
  static State make(std::vector<std::byte>& memory, Index width) {
    Workspace counting;
    State(1, width, counting);
    memory.resize(counting.bytes());
    Workspace workspace(memory);
    return State(1, width, workspace);
  }

  Index d_v_;
  std::vector<std::byte> memory_ = {}, totals_memory_ = {};
  SoftmaxRows<Real> state_;
  SoftmaxTotals totals_;
};

template <class Real>
class OnlineSoftmax : public testing::Test {
 protected:
  static constexpr double kEpsilon = std::numeric_limits<Real>::epsilon();
  static constexpr Index kKeys = 120;
  static constexpr Index kValues = 7;

  OnlineSoftmax() : v_(inputs_.gaussian<Real>(1, kKeys, kValues)) {
    x_ = inputs_.gaussian<Real>(1, 1, kKeys, 4).values;
  }

  /// Bound on the relative error of weights: a sum of kKeys terms, logits rounded in base 2, an exponential
  /// and a rescaling for each piece.
  double tolerance(Index pieces) const {
    double largest = 0;
    for (Real x : x_) largest = std::max(largest, std::abs(static_cast<double>(x)));
    return kEpsilon * (static_cast<double>(kKeys + 4 * pieces) + 4 * largest);
  }

  void expect_whole(const Tensor<Real>& out, double lse, const Whole& whole, Index pieces) const {
    for (Index c = 0; c < kValues; ++c)
      EXPECT_NEAR(out(0, 0, c), whole.out[static_cast<std::size_t>(c)],
                  tolerance(pieces) * max_abs(v_.view()));
    EXPECT_NEAR(lse, whole.lse, tolerance(pieces) * (1 + std::abs(whole.lse)));
  }

  /// Cuts 0, .., kKeys at random places into `pieces` ranges, some of them empty.
  std::vector<Range> split(Index pieces) {
    std::vector<Index> cuts{0, kKeys};
    for (Index i = 1; i < pieces; ++i) cuts.push_back(inputs_.integer(0, kKeys));
    std::sort(cuts.begin(), cuts.end());
    std::vector<Range> ranges;
    for (std::size_t i = 1; i < cuts.size(); ++i) ranges.push_back({cuts[i - 1], cuts[i]});
    return ranges;
  }

  Inputs inputs_{51};
  Tensor<Real> v_;
  std::vector<Real> x_;
};

using Reals = testing::Types<float, double>;
TYPED_TEST_SUITE(OnlineSoftmax, Reals);

TYPED_TEST(OnlineSoftmax, KeysInAnyPiecesEqualTheWhole) {
  const Whole whole = softmax(this->x_, this->v_, {0, this->kKeys});
  for (const Index pieces : {1, 2, 5, 40}) {
    for (int round = 0; round < 20; ++round) {
      Row<TypeParam> row(this->kValues);
      for (const Range keys : this->split(pieces)) row.attend(this->x_, this->v_, keys);
      this->expect_whole(row.out(), row.lse(), whole, pieces);
    }
  }
}

TYPED_TEST(OnlineSoftmax, LogitsInEitherOrderAndOfAnySize) {
  for (const TypeParam scale : {TypeParam{0}, TypeParam{1}, TypeParam{100}}) {
    for (const bool ascending : {true, false}) {
      auto& x = this->x_;
      std::sort(x.begin(), x.end());
      if (!ascending) std::reverse(x.begin(), x.end());
      auto scaled = x;
      for (auto& value : scaled) value *= scale;
      const Whole whole = softmax(scaled, this->v_, {0, this->kKeys});
      Row<TypeParam> row(this->kValues);
      for (Index j = 0; j < this->kKeys; ++j) row.attend(scaled, this->v_, {j, j + 1});
      const double bound = this->tolerance(this->kKeys) * (1 + static_cast<double>(scale));
      for (Index c = 0; c < this->kValues; ++c)
        EXPECT_NEAR(row.out()(0, 0, c), whole.out[static_cast<std::size_t>(c)],
                    bound * max_abs(this->v_.view()));
      EXPECT_NEAR(row.lse(), whole.lse, bound * (1 + std::abs(whole.lse)));
    }
  }
}

TYPED_TEST(OnlineSoftmax, ARowWithoutKeysIsZero) {
  using Real = TypeParam;
  const Real infinity = std::numeric_limits<Real>::infinity();
  Row<Real> row(this->kValues);
  const auto expect_empty = [&] {
    EXPECT_EQ(max_abs_difference(row.out().view(), Tensor<Real>(1, 1, this->kValues).view()), 0);
    EXPECT_EQ(row.lse(), -infinity);
  };
  expect_empty();
  const std::vector<Real> masked(static_cast<std::size_t>(this->kKeys), -infinity);
  row.attend(masked, this->v_, {0, this->kKeys});
  expect_empty();
  row.totals().add_sink(0, -infinity);
  expect_empty();
  // What comes later counts as if nothing had been before.
  row.attend(this->x_, this->v_, {0, this->kKeys});
  row.attend(masked, this->v_, {0, this->kKeys});
  this->expect_whole(row.out(), row.lse(), softmax(this->x_, this->v_, {0, this->kKeys}), 3);
}

TYPED_TEST(OnlineSoftmax, WeighLeavesWeightsInPlaceOfScores) {
  using Real = TypeParam;
  constexpr Index kCols = 2 * kLanes<Real>;
  std::vector<Real> scores(static_cast<std::size_t>(kCols), -std::numeric_limits<Real>::infinity());
  scores[0] = 3;
  scores[static_cast<std::size_t>(kCols) - 1] = 1;
  Row<Real> row(this->kValues);
  row.state().weigh(1, scores.data(), kCols, kCols);
  EXPECT_EQ(scores[0], 1) << "the maximum is an integer as it is";
  EXPECT_EQ(scores[static_cast<std::size_t>(kCols) - 1], Real{0.25});
  EXPECT_EQ(std::accumulate(scores.begin(), scores.end(), Real{0}), Real{1.25}) << "-infinity weighs 0";
  EXPECT_EQ(row.state().maximum[0], 3);
  EXPECT_EQ(row.state().sum(0), Real{1.25});
}

TYPED_TEST(OnlineSoftmax, AbsorbsAStateOfOtherKeys) {
  using Real = TypeParam;
  for (const Index split : {Index{0}, Index{17}, this->kKeys}) {
    // Either part may have the larger maximum.
    for (const bool first : {true, false}) {
      Row<Real> row(this->kValues), other(this->kValues);
      (first ? row : other).attend(this->x_, this->v_, {0, split});
      (first ? other : row).attend(this->x_, this->v_, {split, this->kKeys});
      row.totals().absorb(0, other.totals(), 0);
      this->expect_whole(row.out(), row.lse(), softmax(this->x_, this->v_, {0, this->kKeys}), 2);
    }
  }
}

TYPED_TEST(OnlineSoftmax, WeighsByAPolynomialAndLeavesMaskedScoresOut) {
  using Real = TypeParam;
  const std::vector<double> coefficients = {2, 1, 3};  // 2 + x + 3 x^2
  for (const Index vectors : {1, 2, 5}) {
    const Index cols = vectors * kLanes<Real>;
    std::vector<Real> scores(static_cast<std::size_t>(cols));
    Real sum = 0;
    for (Index j = 0; j < cols; ++j)
      scores[static_cast<std::size_t>(j)] =
          j % 3 == 1 ? -std::numeric_limits<Real>::infinity() : static_cast<Real>(j % 5 - 2);
    const std::vector<Real> given = scores;
    Row<Real> row(this->kValues);
    row.state().weigh_polynomial(coefficients, 1, scores.data(), cols, cols);
    for (Index j = 0; j < cols; ++j) {
      const Real x = given[static_cast<std::size_t>(j)], expected = j % 3 == 1 ? 0 : 2 + x + 3 * x * x;
      EXPECT_EQ(scores[static_cast<std::size_t>(j)], expected) << j;
      sum += expected;
    }
    EXPECT_EQ(row.state().sum(0), sum);
    EXPECT_EQ(row.state().maximum[0], 0);
  }
}

TYPED_TEST(OnlineSoftmax, RaisingTheMaximumRoundsNothing) {
  using Real = TypeParam;
  constexpr Index kCols = 2 * kLanes<Real>;
  std::vector<Real> scores = this->inputs_.template gaussian<Real>(1, 1, kCols).values;
  Row<Real> row(this->kValues);
  row.state().weigh(1, scores.data(), kCols, kCols);
  const Real maximum = row.state().maximum[0], sum = row.state().sum(0);
  EXPECT_EQ(maximum, std::ceil(maximum));
  std::fill_n(row.state().row(0), row.state().width, Real{3});

  row.state().raise(0, maximum - 1);
  row.state().raise(0, maximum);
  row.state().raise(0, std::numeric_limits<Real>::quiet_NaN());
  EXPECT_EQ(row.state().maximum[0], maximum);
  EXPECT_EQ(row.state().sum(0), sum);

  row.state().raise(0, maximum + Real{4.5});
  EXPECT_EQ(row.state().maximum[0], maximum + 5);
  EXPECT_EQ(row.state().sum(0), sum / 32);
  for (Index c = 0; c < row.state().width; ++c) EXPECT_EQ(row.state().row(0)[c], Real{3} / 32);

  // Folded, whichever of the stretch and what was before has the larger maximum.
  row.fold();
  EXPECT_EQ(row.totals().sum[0], static_cast<double>(sum / 32));
  row.state().clear(1);
  row.state().raise(0, maximum);
  row.state().parts[0] = sum;
  row.fold();
  EXPECT_EQ(row.totals().maximum[0], maximum + 5);
  EXPECT_EQ(row.totals().sum[0], static_cast<double>(sum / 16));
  row.state().clear(1);
  row.state().raise(0, maximum + 6);
  row.fold();
  EXPECT_EQ(row.totals().maximum[0], maximum + 6);
  EXPECT_EQ(row.totals().sum[0], static_cast<double>(sum / 32));
}

TYPED_TEST(OnlineSoftmax, FarSumsComeWithTheirErrorInAnyUnit) {
  using Real = TypeParam;
  Row<Real> row(this->kValues);
  const std::vector<Real> values(static_cast<std::size_t>(row.totals().width), Real{2});
  row.totals().add_far(0, 2.5, Real{3}, 0.25, values.data());
  row.totals().add_far(0, -1.25, Real{1}, 0.5, values.data());
  const double small = std::exp2(-3.75), sum = 3 + small;
  EXPECT_EQ(row.totals().maximum[0], 3);
  EXPECT_NEAR(row.totals().sum[0], sum * std::exp2(-0.5), 1e-15);
  EXPECT_NEAR(row.totals().error[0] / row.totals().sum[0], (0.25 + 0.5 * small) / sum, 1e-15);
  EXPECT_NEAR(row.totals().row(0)[0] / row.totals().sum[0], 2 * (1 + small) / sum, 1e-15);
  const double share = row.totals().error[0] / row.totals().sum[0];
  EXPECT_TRUE(row.totals().within(0, share * 1.0001));
  EXPECT_FALSE(row.totals().within(0, share * 0.9999));
  row.totals().sum[0] = std::numeric_limits<double>::quiet_NaN();
  EXPECT_FALSE(row.totals().within(0, 1));
}

TYPED_TEST(OnlineSoftmax, SumsDoNotLoseDigitsWithTheNumberOfKeys) {
  // A million equal weights, a stretch at a time: one chain of floats would be off by 1 %.
  using Real = TypeParam;
  Row<Real> row(this->kValues);
  std::vector<Real> scores(static_cast<std::size_t>(fastrope::kStretch));
  for (int stretch = 0; stretch < 1024; ++stretch) {
    std::fill(scores.begin(), scores.end(), Real(-0.3));
    row.state().weigh(1, scores.data(), fastrope::kStretch, fastrope::kStretch);
    row.fold();
  }
  const double weight = std::exp2(static_cast<double>(Real(-0.3)));
  EXPECT_NEAR(row.totals().sum[0] * std::exp2(row.totals().maximum[0]) / (weight * 1048576), 1,
              (static_cast<double>(fastrope::kStretch / kLanes<Real>) + 16) * this->kEpsilon);
}

TYPED_TEST(OnlineSoftmax, ASinkIsAKeyWithoutAValue) {
  using Real = TypeParam;
  for (const Real sink : {Real{-30}, Real{0.5}, Real{25}}) {
    auto x = this->x_;
    x.push_back(sink);
    Tensor<Real> v(1, this->kKeys + 1, this->kValues);
    std::copy(this->v_.values.begin(), this->v_.values.end(), v.values.begin());
    Row<Real> row(this->kValues);
    row.attend(this->x_, this->v_, {0, this->kKeys});
    row.totals().add_sink(0, static_cast<double>(sink) * fastrope::kLog2E);
    this->expect_whole(row.out(), row.lse(), softmax(x, v, {0, this->kKeys + 1}), 2);
  }
  Row<Real> alone(this->kValues);
  alone.totals().add_sink(0, 2);
  EXPECT_EQ(max_abs(alone.out().view()), 0);
  EXPECT_NEAR(alone.lse(), 2 * std::log(2.0), 2 * this->kEpsilon);
}

TYPED_TEST(OnlineSoftmax, NaNAndInfiniteLogitsGiveIeeeResults) {
  using Real = TypeParam;
  for (const Real bad : {std::numeric_limits<Real>::quiet_NaN(), std::numeric_limits<Real>::infinity()}) {
    auto x = this->x_;
    x[60] = bad;
    Row<Real> row(this->kValues);
    for (const Range keys : {Range{0, 50}, Range{50, 90}, Range{90, this->kKeys}})
      row.attend(x, this->v_, keys);
    EXPECT_TRUE(std::isnan(row.lse())) << bad;
    for (const Real out : row.out().values) EXPECT_TRUE(std::isnan(out)) << bad;
  }
}

TYPED_TEST(OnlineSoftmax, WritesTheStorageType) {
  using Real = TypeParam;
  Row<Real> row(this->kValues);
  row.attend(this->x_, this->v_, {0, this->kKeys});
  const Tensor<Real> out = row.out();
  Tensor<fastrope::bfloat16> narrow(1, 1, this->kValues);
  row.totals().template write<Real>(0, narrow.view(), 0, 0);
  for (Index c = 0; c < this->kValues; ++c)
    EXPECT_EQ(static_cast<float>(narrow(0, 0, c)),
              static_cast<float>(static_cast<fastrope::bfloat16>(out(0, 0, c))));
}

/// A partial result of several heads and rows over one range of keys, as attend_partial gives it.
template <class Real>
struct Part {
  Tensor<Real> out;  // [heads, n_q, d_v]
  Tensor<Real> lse;  // [1, heads, n_q]
};

template <class Real>
class Merge : public OnlineSoftmax<Real> {
 protected:
  static constexpr Index kHeads = 2;
  static constexpr Index kQueries = 3;

  Merge() {
    for (Index r = 0; r < kHeads * kQueries; ++r)
      logits_.push_back(this->inputs_.template gaussian<Real>(1, 1, this->kKeys, 4).values);
  }

  Part<Real> part(Range keys) {
    Part<Real> p{Tensor<Real>(kHeads, kQueries, this->kValues), Tensor<Real>(1, kHeads, kQueries)};
    for (Index h = 0; h < kHeads; ++h) {
      for (Index i = 0; i < kQueries; ++i) {
        Row<Real> row(this->kValues);
        row.attend(logits(h, i), this->v_, keys);
        const Tensor<Real> out = row.out();
        std::copy(out.values.begin(), out.values.end(), p.out.view().head(h).row(i));
        p.lse(0, h, i) = static_cast<Real>(row.lse());
      }
    }
    return p;
  }

  const std::vector<Real>& logits(Index h, Index i) const {
    return logits_[static_cast<std::size_t>(h * kQueries + i)];
  }

  static void merge_into(Part<Real>& a, const Part<Real>& b) {
    merge<Real>(a.out.view(), a.lse.view().head(0), b.out.view(), b.lse.view().head(0));
  }

  void expect_whole_parts(const Part<Real>& p, Index pieces) {
    for (Index h = 0; h < kHeads; ++h) {
      for (Index i = 0; i < kQueries; ++i) {
        Tensor<Real> out(1, 1, this->kValues);
        std::copy_n(p.out.view().head(h).row(i), this->kValues, out.values.begin());
        this->expect_whole(out, p.lse(0, h, i), softmax(logits(h, i), this->v_, {0, this->kKeys}), pieces);
      }
    }
  }

  std::vector<std::vector<Real>> logits_;
};
TYPED_TEST_SUITE(Merge, Reals);

TYPED_TEST(Merge, AnySplitEqualsTheWhole) {
  for (const Index pieces : {1, 2, 3, 8, 30}) {
    for (int round = 0; round < 10; ++round) {
      std::vector<Part<TypeParam>> parts;
      for (const Range keys : this->split(pieces)) parts.push_back(this->part(keys));
      std::shuffle(parts.begin(), parts.end(), this->inputs_.random());
      // Any tree of merges: two random parts become one until one is left.
      while (parts.size() > 1) {
        const auto at =
            static_cast<std::size_t>(this->inputs_.integer(0, static_cast<std::int64_t>(parts.size()) - 2));
        this->merge_into(parts[at], parts.back());
        parts.pop_back();
      }
      this->expect_whole_parts(parts[0], 4 * pieces);
    }
  }
}

TYPED_TEST(Merge, AnEmptyPartChangesNothing) {
  using Real = TypeParam;
  const Part<Real> whole = this->part({0, this->kKeys});
  Part<Real> empty = this->part({5, 5});
  for (Real lse : empty.lse.values) EXPECT_EQ(lse, -std::numeric_limits<Real>::infinity());

  Part<Real> left = whole;
  this->merge_into(left, empty);
  EXPECT_EQ(left.out.values, whole.out.values);
  EXPECT_EQ(left.lse.values, whole.lse.values);

  // Nor does it matter what its rows hold.
  std::fill(empty.out.values.begin(), empty.out.values.end(), std::numeric_limits<Real>::quiet_NaN());
  left = whole;
  this->merge_into(left, empty);
  EXPECT_EQ(left.out.values, whole.out.values);
  Part<Real> right = empty;
  this->merge_into(right, whole);
  EXPECT_EQ(right.out.values, whole.out.values);
  EXPECT_EQ(right.lse.values, whole.lse.values);

  Part<Real> none = this->part({0, 0});
  this->merge_into(none, this->part({7, 7}));
  EXPECT_EQ(max_abs(none.out.view()), 0);
  for (Real lse : none.lse.values) EXPECT_EQ(lse, -std::numeric_limits<Real>::infinity());
}

TYPED_TEST(Merge, IsSymmetricAndSafeFromOverflow) {
  using Real = TypeParam;
  const auto one = [](Real out, Real lse) {
    Part<Real> p{Tensor<Real>(1, 1, 1), Tensor<Real>(1, 1, 1)};
    p.out(0, 0, 0) = out;
    p.lse(0, 0, 0) = lse;
    return p;
  };
  for (const Real lse : {Real{-20000}, Real{0}, Real{20000}}) {
    for (const Real gap : {Real{0}, Real{3}, Real{5000}}) {
      Part<Real> ab = one(2, lse), ba = one(-6, lse - gap);
      this->merge_into(ab, one(-6, lse - gap));
      this->merge_into(ba, one(2, lse));
      EXPECT_EQ(ab.out(0, 0, 0), ba.out(0, 0, 0));
      EXPECT_EQ(ab.lse(0, 0, 0), ba.lse(0, 0, 0));
      const double weight = 1 / (1 + std::exp(-static_cast<double>(gap)));
      EXPECT_NEAR(ab.out(0, 0, 0), 2 * weight - 6 * (1 - weight), 16 * this->kEpsilon * 6);
      EXPECT_NEAR(ab.lse(0, 0, 0), static_cast<double>(lse) - std::log(weight),
                  4 * this->kEpsilon * (1 + std::abs(static_cast<double>(lse))));
    }
  }
}

TYPED_TEST(Merge, WorksOnStridedViews) {
  Part<TypeParam> strided = this->part({0, 40});
  strided.out = fastrope_test::token_major(strided.out);
  Part<TypeParam> other = this->part({40, this->kKeys});
  other.out = fastrope_test::token_major(other.out);
  this->merge_into(strided, other);
  this->expect_whole_parts(strided, 2);
}

TYPED_TEST(Merge, ShapesMustAgree) {
  using Real = TypeParam;
  Tensor<Real> out(2, 3, 4), lse(1, 2, 3);
  const auto error_of = [&](const Tensor<Real>& other_out, const Tensor<Real>& other_lse) -> std::string {
    try {
      merge<Real>(out.view(), lse.view().head(0), other_out.view(), other_lse.view().head(0));
      return "";
    } catch (const Error& error) {
      return error.what();
    }
  };
  EXPECT_EQ(error_of(out, lse), "");
  for (const auto& wrong : {Tensor<Real>(1, 3, 4), Tensor<Real>(2, 5, 4), Tensor<Real>(2, 3, 9)}) {
    const std::string text = error_of(wrong, lse);
    for (const Index size : {wrong.heads, wrong.rows, wrong.cols})
      EXPECT_NE(text.find(std::to_string(size)), std::string::npos) << text;
  }
  for (const auto& wrong : {Tensor<Real>(1, 3, 3), Tensor<Real>(1, 2, 7)})
    EXPECT_NE(error_of(out, wrong).find("lse"), std::string::npos);
}

}  // namespace
