// Every function of the vector vocabulary against the same operation on each lane.
#include "fastrope/core/simd.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <iostream>
#include <limits>
#include <numeric>
#include <type_traits>
#include <vector>

#include "support/inputs.hpp"

namespace {

using fastrope::Index;
namespace simd = fastrope::simd;

TEST(Simd, NamesItsTarget) {
  std::cout << "Highway target " << simd::target_name() << ": " << simd::kLanes<float> << " floats, "
            << simd::kRegisters << " registers\n";
  EXPECT_STRNE(simd::target_name(), "");
  EXPECT_GE(simd::kLanes<double>, 1);
  EXPECT_TRUE(simd::kLanes<float> == 2 * simd::kLanes<double> || simd::kLanes<float> == 1);
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
  EXPECT_EQ(simd::kLanes<float>, 16);
#elif defined(__AVX2__) && defined(__FMA__)
  EXPECT_EQ(simd::kLanes<float>, 8) << "the flags allow AVX2";
#endif
}

template <class Real>
class SimdLanes : public testing::Test {
 protected:
  static constexpr Index kLanes = simd::kLanes<Real>;
  static constexpr Real kEpsilon = std::numeric_limits<Real>::epsilon();
  static constexpr Real kInfinity = std::numeric_limits<Real>::infinity();
  static constexpr Real kNaN = std::numeric_limits<Real>::quiet_NaN();

  /// Random values with zeros, infinities and NaN in changing lanes.
  std::vector<Real> special_values(int round) {
    const Real specials[] = {0, -Real{0}, 1, kInfinity, -kInfinity, kNaN};
    std::vector<Real> x = values();
    for (Index i = 0; i < kLanes; ++i)
      if (inputs_.integer(0, 2) == 0) x[static_cast<std::size_t>(i)] = specials[(round + i) % 6];
    return x;
  }
  std::vector<Real> values() { return inputs_.gaussian<Real>(1, 1, kLanes).values; }

  /// Runs a vector operation and hands each lane's result to `check(result, lane)`.
  template <class Check>
  static void for_lanes(simd::Vec<Real> x, Check&& check) {
    std::vector<Real> lanes(static_cast<std::size_t>(kLanes));
    simd::store<Real>(x, lanes.data());
    for (std::size_t i = 0; i < lanes.size(); ++i) check(lanes[i], i);
  }

  static void expect_same(Real x, Real expected) {
    if (std::isnan(expected))
      EXPECT_TRUE(std::isnan(x)) << x;
    else
      EXPECT_EQ(x, expected);
  }

  fastrope_test::Inputs inputs_{1};
};

using Reals = testing::Types<float, double>;
TYPED_TEST_SUITE(SimdLanes, Reals);

TYPED_TEST(SimdLanes, LoadAndStoreAtAnyAlignment) {
  using Real = TypeParam;
  const std::vector<Real> from = this->inputs_.template gaussian<Real>(1, 1, 3 * this->kLanes).values;
  for (Index shift = 0; shift < this->kLanes; ++shift) {
    std::vector<Real> to(from.size(), Real{7});
    simd::store<Real>(simd::load(from.data() + shift), to.data() + shift);
    for (Index i = 0; i < static_cast<Index>(to.size()); ++i) {
      const auto at = static_cast<std::size_t>(i);
      EXPECT_EQ(to[at], i >= shift && i < shift + this->kLanes ? from[at] : Real{7});
    }
  }
}

TYPED_TEST(SimdLanes, ZeroAndSetFillEveryLane) {
  using Real = TypeParam;
  this->for_lanes(simd::zero<Real>(), [](Real x, std::size_t) { EXPECT_EQ(x, 0); });
  this->for_lanes(simd::set(Real{-2.5}), [](Real x, std::size_t) { EXPECT_EQ(x, Real{-2.5}); });
}

TYPED_TEST(SimdLanes, Arithmetic) {
  using Real = TypeParam;
  for (int round = 0; round < 200; ++round) {
    const auto a = this->special_values(round), b = this->special_values(round + 1), c = this->values();
    const auto x = simd::load(a.data()), y = simd::load(b.data()), z = simd::load(c.data());
    this->for_lanes(simd::add(x, y), [&](Real r, std::size_t i) { this->expect_same(r, a[i] + b[i]); });
    this->for_lanes(simd::sub(x, y), [&](Real r, std::size_t i) { this->expect_same(r, a[i] - b[i]); });
    this->for_lanes(simd::mul(x, y), [&](Real r, std::size_t i) { this->expect_same(r, a[i] * b[i]); });
    this->for_lanes(simd::fma(x, y, z), [&](Real r, std::size_t i) {
      const Real fused = std::fma(a[i], b[i], c[i]);
      if (std::isfinite(fused))  // targets without a fused instruction round the product first
        EXPECT_NEAR(r, fused, this->kEpsilon * (std::abs(a[i] * b[i]) + std::abs(fused)));
      else
        this->expect_same(r, fused);
    });
  }
}

TYPED_TEST(SimdLanes, MaxTakesOneOfThemWhereEitherIsNaN) {
  using Real = TypeParam;
  for (int round = 0; round < 200; ++round) {
    const auto a = this->special_values(round), b = this->special_values(round + 3);
    this->for_lanes(simd::max(simd::load(a.data()), simd::load(b.data())), [&](Real r, std::size_t i) {
      if (std::isnan(a[i]) || std::isnan(b[i]))
        EXPECT_TRUE(std::isnan(r) || r == a[i] || r == b[i]) << r;
      else
        EXPECT_EQ(r, std::max(a[i], b[i]));
    });
  }
}

TYPED_TEST(SimdLanes, ReductionsSeeEveryLane) {
  using Real = TypeParam;
  for (std::size_t lane = 0; lane < static_cast<std::size_t>(this->kLanes); ++lane) {
    std::vector<Real> x(static_cast<std::size_t>(this->kLanes), Real{-3});
    x[lane] = 5;
    EXPECT_EQ(simd::reduce_max<Real>(simd::load(x.data())), 5);
    EXPECT_EQ(simd::reduce_add<Real>(simd::load(x.data())), static_cast<Real>(5 - 3 * (this->kLanes - 1)));
  }
  for (int round = 0; round < 100; ++round) {
    const auto x = this->values();
    Real sum = 0, size = 0;
    for (Real value : x) {
      sum += value;
      size += std::abs(value);
    }
    EXPECT_NEAR(simd::reduce_add<Real>(simd::load(x.data())), sum, 2 * this->kEpsilon * size);
  }
}

TYPED_TEST(SimdLanes, Comparisons) {
  using Real = TypeParam;
  for (int round = 0; round < 200; ++round) {
    auto a = this->special_values(round);
    const auto b = this->special_values(round + 3), yes = this->values(), no = this->values();
    a[static_cast<std::size_t>(round) % a.size()] = b[static_cast<std::size_t>(round) % a.size()];
    const auto x = simd::load(a.data()), y = simd::load(b.data());
    bool greater = false;
    for (std::size_t i = 0; i < a.size(); ++i) greater = greater || a[i] > b[i];
    EXPECT_EQ(simd::any_greater<Real>(x, y), greater);
    this->for_lanes(simd::if_equal(x, y, simd::load(yes.data()), simd::load(no.data())),
                    [&](Real r, std::size_t i) { EXPECT_EQ(r, a[i] == b[i] ? yes[i] : no[i]); });
  }
  // One lane alone decides.
  for (Index lane = 0; lane < this->kLanes; ++lane) {
    std::vector<Real> a(static_cast<std::size_t>(this->kLanes), -this->kInfinity);
    EXPECT_FALSE(simd::any_greater<Real>(simd::load(a.data()), simd::set(-this->kInfinity)));
    a[static_cast<std::size_t>(lane)] = 1;
    EXPECT_TRUE(simd::any_greater<Real>(simd::load(a.data()), simd::set(Real{0})));
  }
}

TYPED_TEST(SimdLanes, TransposeStrip) {
  using Real = TypeParam;
  constexpr Index kRows = simd::kBlockRows<Real>;
  for (Index cols = 0; cols <= 3 * this->kLanes; ++cols) {
    const Index from_stride = cols + 3, to_stride = kRows + 5, to_rows = cols + 1;
    const auto from = this->inputs_.template gaussian<Real>(1, kRows, from_stride).values;
    std::vector<Real> to(static_cast<std::size_t>(to_rows * to_stride), Real{7});
    simd::transpose_strip(from.data(), from_stride, cols, to.data(), to_stride);
    for (Index l = 0; l < to_rows; ++l)
      for (Index r = 0; r < to_stride; ++r)
        ASSERT_EQ(to[static_cast<std::size_t>(l * to_stride + r)],
                  l < cols && r < kRows ? from[static_cast<std::size_t>(r * from_stride + l)] : Real{7})
            << cols << " columns: " << l << ", " << r;
  }
}

TYPED_TEST(SimdLanes, FractionIsTheDistanceFromTheFloor) {
  using Real = TypeParam;
  for (int round = 0; round < 200; ++round) {
    const auto x = this->values();
    this->for_lanes(simd::fraction<Real>(simd::load(x.data())), [&](Real r, std::size_t i) {
      EXPECT_NEAR(r, x[i] - std::floor(x[i]), this->kEpsilon) << x[i];
    });
  }
}

TYPED_TEST(SimdLanes, ScaleByFloor) {
  using Real = TypeParam;
  const Real lowest = -60, infinity = std::numeric_limits<Real>::infinity();
  for (int round = 0; round < 200; ++round) {
    const auto p = this->values();
    auto x = this->values();
    for (Real& e : x) e = std::min<Real>(40 * e, 100);  // 2^x is finite
    x[0] = -infinity;
    this->for_lanes(simd::scale_by_floor<Real>(simd::load(p.data()), simd::load(x.data()), simd::set(lowest)),
                    [&](Real r, std::size_t i) {
                      const Real expected =
                          x[i] < lowest ? Real{0} : std::ldexp(p[i], static_cast<int>(std::floor(x[i])));
                      EXPECT_EQ(r, expected) << p[i] << ' ' << x[i];
                    });
  }
}

TYPED_TEST(SimdLanes, PairsAreEvenAndOddElements) {
  using Real = TypeParam;
  std::vector<Real> x(2 * static_cast<std::size_t>(simd::kLanes<Real>)), y(x.size());
  std::iota(x.begin(), x.end(), Real{1});
  simd::Vec<Real> a, b;
  simd::load_pairs(x.data(), a, b);
  this->for_lanes(a, [&](Real r, std::size_t i) { EXPECT_EQ(r, x[2 * i]); });
  this->for_lanes(b, [&](Real r, std::size_t i) { EXPECT_EQ(r, x[2 * i + 1]); });
  simd::store_pairs(a, b, y.data());
  EXPECT_EQ(x, y);
}

TYPED_TEST(SimdLanes, RepeatFillsTheVectorWithAGroup) {
  using Real = TypeParam;
  alignas(16) Real x[16 / sizeof(Real) + 1];
  for (Real& value : x) value = static_cast<Real>(this->inputs_.normal());
  const auto check = [&]<int kGroup>(std::integral_constant<int, kGroup>, const Real* from) {
    if constexpr (kGroup <= simd::kLanes<Real>)
      this->for_lanes(simd::repeat<kGroup>(from), [&](Real r, std::size_t i) {
        EXPECT_EQ(r, from[i % kGroup]) << "groups of " << kGroup;
      });
  };
  check(std::integral_constant<int, 1>{}, x);
  check(std::integral_constant<int, 1>{}, x + 1);
  check(std::integral_constant<int, 2>{}, x);
  if constexpr (sizeof(Real) == 4) {
    check(std::integral_constant<int, 2>{}, x + 2);
    check(std::integral_constant<int, 4>{}, x);
  }
}

TYPED_TEST(SimdLanes, AddGroups) {
  using Real = TypeParam;
  const auto check = [&]<int kGroup>(std::integral_constant<int, kGroup>) {
    if constexpr (kGroup <= simd::kLanes<Real>)
      for (int round = 0; round < 20; ++round) {
        const auto x = this->values();
        this->for_lanes(simd::add_groups<kGroup, Real>(simd::load(x.data())), [&](Real r, std::size_t i) {
          if (i >= x.size() / kGroup) return;
          double sum = 0, size = 0;
          for (std::size_t e = i * kGroup; e < (i + 1) * kGroup; ++e) {
            sum += static_cast<double>(x[e]);
            size += std::abs(static_cast<double>(x[e]));
          }
          EXPECT_NEAR(static_cast<double>(r), sum, kGroup * this->kEpsilon * size) << "groups of " << kGroup;
        });
      }
  };
  check(std::integral_constant<int, 1>{});
  check(std::integral_constant<int, 2>{});
  check(std::integral_constant<int, 4>{});
}

TYPED_TEST(SimdLanes, ReduceAdd4) {
  using Real = TypeParam;
  std::vector<Real> rows[4];
  for (auto& row : rows) row = this->values();
  Real sums[4];
  simd::reduce_add4<Real>(simd::load(rows[0].data()), simd::load(rows[1].data()), simd::load(rows[2].data()),
                          simd::load(rows[3].data()), sums);
  for (std::size_t r = 0; r < 4; ++r) {
    double sum = 0, size = 0;
    for (Real e : rows[r]) {
      sum += static_cast<double>(e);
      size += std::abs(static_cast<double>(e));
    }
    EXPECT_NEAR(static_cast<double>(sums[r]), sum, 8 * this->kEpsilon * size);
  }
}

TYPED_TEST(SimdLanes, LoadsConvertEveryStorageType) {
  using Real = TypeParam;
  const auto check = [&]<class T>(T) {
    std::vector<T> x(static_cast<std::size_t>(simd::kLanes<Real>) + 3);
    for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<T>(0.25f * static_cast<float>(i) - 1.5f);
    this->for_lanes(simd::load_as<Real>(x.data()),
                    [&](Real r, std::size_t i) { EXPECT_EQ(r, static_cast<Real>(x[i])); });
    for (fastrope::Index count = 0; count < simd::kLanes<Real>; ++count)
      this->for_lanes(simd::load_first_as<Real>(x.data(), count), [&](Real r, std::size_t i) {
        EXPECT_EQ(r, static_cast<fastrope::Index>(i) < count ? static_cast<Real>(x[i]) : Real{0});
      });
    std::vector<Real> y(x.size());
    simd::convert(x.data(), static_cast<fastrope::Index>(x.size()), y.data());
    for (std::size_t i = 0; i < x.size(); ++i) EXPECT_EQ(y[i], static_cast<Real>(x[i]));
  };
  check(float{});
  check(double{});
  check(fastrope::bfloat16{});
  check(fastrope::float16{});
}

TYPED_TEST(SimdLanes, Tanh) {
  using Real = TypeParam;
  for (int step = -2500; step <= 2500; ++step) {
    const Real x = static_cast<Real>(step) / 100;
    const Real expected = std::tanh(x);
    this->for_lanes(simd::tanh<Real>(simd::set(x)), [&](Real r, std::size_t) {
      EXPECT_NEAR(r, expected, 4 * this->kEpsilon * std::abs(expected)) << x;
    });
  }
}

#if FASTROPE_BFLOAT16_PRODUCTS
TEST(Bfloat16, IsRoundedAsPairsAreStored) {
  fastrope_test::Inputs inputs(17);
  constexpr fastrope::Index kStep = fastrope::simd::kLanes<float>;
  for (int turn = 0; turn < 1000; ++turn) {
    float x[2 * kStep], rounded[2 * kStep], words[kStep];
    for (float& value : x) value = static_cast<float>(inputs.uniform(0, 1));
    x[0] = 1.0f + 0x1p-8f;      // a tie
    x[1] = 1.0f + 3 * 0x1p-8f;  // another
    x[2] = std::numeric_limits<float>::quiet_NaN();
    for (const fastrope::Index half : {fastrope::Index{0}, kStep})
      fastrope::simd::store<float>(fastrope::simd::round_to_bfloat16(fastrope::simd::load(x + half)),
                                   rounded + half);
    fastrope::simd::store_nearest_pairs(x, words);
    for (fastrope::Index i = 3; i < 2 * kStep; ++i) {
      const auto bits = std::bit_cast<std::uint32_t>(words[i / 2]);
      EXPECT_EQ(rounded[i], std::bit_cast<float>(i % 2 == 0 ? bits << 16 : bits & 0xffff0000u)) << x[i];
    }
    EXPECT_EQ(rounded[0], 1.0f);
    EXPECT_EQ(rounded[1], 1.0f + 0x1p-6f);
    EXPECT_TRUE(std::isnan(rounded[2]));
  }
}
#endif

}  // namespace
