// Row bounds of polynomial kernels against the oracle: by exact tiles, by decoding and by features, whose
// rows are judged by them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <iostream>
#include <limits>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#include "fastrope/attend/attend.hpp"
#include "support/kernel_oracle.hpp"

namespace fastrope_test {
namespace {

using namespace fastrope;

template <class T>
BoundedRows rows_of(const AttentionCase& c, const AttentionInputs<T>& in, const std::vector<double>& bounds) {
  const Tensor<double> expected = kernel_oracle(c, in.q.view(), in.k.view(), in.v.view());
  const Shapes& s = c.shapes;
  BoundedRows rows;
  for (Index h = 0; h < s.heads; ++h)
    for (Index i = 0; i < s.n_q; ++i)
      rows.add(h, i, in.out.view().head(h).row(i), expected.view().head(h).row(i), s.d_v,
               largest_of(in.v.view().head(h / (s.heads / s.kv_heads))),
               bounds[static_cast<std::size_t>(h * s.n_q + i)]);
  return rows;
}

template <class T>
BoundedRows attend_rows(const AttentionCase& c, AttentionInputs<T>& in, Report* report = nullptr) {
  const Report r = attend(in.q.view(), in.k.view(), in.v.view(), in.out.view(), c.options());
  EXPECT_EQ(std::ssize(r.row_bounds), c.shapes.heads * c.shapes.n_q);
  const BoundedRows rows = rows_of(c, in, r.row_bounds);
  EXPECT_EQ(rows.violated, 0) << c << ", degree " << c.base.kernel.degree() << ", path " << r.heads[0].path
                              << ": " << rows.worst;
  if (report != nullptr) *report = r;
  return rows;
}

const std::vector<Kernel>& kernels() {
  static const std::vector<Kernel> kernels = {
      Kernel::power(2),
      Kernel::power(4),
      Kernel::taylor(2),
      Kernel::taylor(4),
      Kernel::power(3, KernelSign::any),
      Kernel::polynomial({1, 2, 1}),
      Kernel::polynomial({1, 0, 0.5, 0, 0.125}),
      Kernel::polynomial({3}),
      Kernel::polynomial({2, -1, 0, 0.125}, KernelSign::any),
  };
  return kernels;
}

template <class T>
class KernelRowBounds : public testing::Test {};
using Elements = testing::Types<float, double, bfloat16>;
TYPED_TEST_SUITE(KernelRowBounds, Elements);

TYPED_TEST(KernelRowBounds, HoldOnEveryPath) {
  std::uint64_t seed = 1;
  double closest = 0;
  for (const Kernel& kernel : kernels())
    for (const Path path : {Path::exact, Path::polynomial})
      for (const Mask mask : {Mask::full(), Mask::causal()})
        for (const auto& [n_q, n_k] : {std::pair{5, 5}, {1, 700}, {300, 300}, {40, 600}, {9, 0}, {20, 7}})
          for (const auto& [heads, kv_heads, d, d_v] :
               {std::tuple{1, 1, 16, 5}, {4, 2, 4, 16}, {3, 1, 1, 1}}) {
            AttentionCase c{.shapes = {heads, kv_heads, n_q, n_k, d, d_v}};
            c.base.kernel = kernel;
            c.base.path = path;
            c.base.mask = mask;
            AttentionInputs<TypeParam> in(c.shapes, seed++);
            closest = std::max(closest, attend_rows(c, in).closest);
            if (this->HasFailure()) return;
          }
  std::cout << "closest observed / promised: " << closest << '\n';
  EXPECT_GT(closest, (std::is_same_v<TypeParam, bfloat16> ? 0.5 : 1e-2));
}

TYPED_TEST(KernelRowBounds, HoldWhateverTheSizes) {
  // Scales at which weights underflow, keys of very different lengths, values tiny or of one sign.
  std::uint64_t seed = 1000;
  for (const Kernel& kernel : kernels())
    for (const Path path : {Path::exact, Path::polynomial})
      for (const double scale : {1e-22, 1e-12, 1e-9, 1e-4, 30.0, -0.3, 0.0})
        for (const double value : {1e-30, 1.0, 1e20}) {
          AttentionCase c{.shapes = {2, 1, 300, 300, 5, 3}};
          c.base.kernel = kernel;
          c.base.path = path;
          c.base.scale = scale;
          c.base.mask = Mask::causal();
          AttentionInputs<TypeParam> in(c.shapes, seed++);
          for (Index j = 0; j < 300; ++j)
            for (Index m = 0; m < 5; ++m)
              in.k(0, j, m) =
                  static_cast<TypeParam>(static_cast<double>(in.k(0, j, m)) * std::exp2(j % 7 - 3));
          for (TypeParam& x : in.v.values)
            x = static_cast<TypeParam>(std::abs(static_cast<double>(x)) * value);
          attend_rows(c, in);
          if (this->HasFailure()) return;
        }
}

TYPED_TEST(KernelRowBounds, RowsWithoutKeysHaveBoundZero) {
  for (const Index n_q : {3, 60}) {
    AttentionCase c{.shapes = {2, 1, n_q, 40, 4, 3}};
    c.base.kernel = Kernel::taylor(2);
    c.base.mask = Mask::lags(1, 1000);
    for (Index i = 0; i < n_q; ++i) c.query_positions.push_back(i - 1);
    AttentionInputs<TypeParam> in(c.shapes, 3);
    const Report report = attend(in.q.view(), in.k.view(), in.v.view(), in.out.view(), c.options());
    for (Index h = 0; h < 2; ++h)
      for (Index i = 0; i < n_q; ++i)
        EXPECT_EQ(report.row_bounds[static_cast<std::size_t>(h * n_q + i)] == 0, i < 2) << i;
    // A dense mask may leave nothing as well; keys that it hides need not be finite.
    const auto allowed = std::make_unique<bool[]>(static_cast<std::size_t>(2 * n_q * 40));
    for (Index e = 0; e < 2 * n_q * 40; ++e)
      allowed[static_cast<std::size_t>(e)] = e / 40 % n_q != 2 && e % 40 != 0;
    c.base.dense_mask = {allowed.get(), 2, n_q, 40, n_q * 40, 40};
    in.k(0, 0, 1) = std::numeric_limits<TypeParam>::quiet_NaN();
    c.base.mask = Mask::full();
    const Report masked = attend(in.q.view(), in.k.view(), in.v.view(), in.out.view(), c.options());
    for (Index i = 0; i < n_q; ++i) {
      EXPECT_EQ(masked.row_bounds[static_cast<std::size_t>(i)] == 0, i == 2) << i;
      EXPECT_LT(masked.row_bounds[static_cast<std::size_t>(i)], 1e-2) << i;
    }
  }
}

TYPED_TEST(KernelRowBounds, RowsThatMeetWhatIsNotFiniteHaveNone) {
  for (const Path path : {Path::exact, Path::polynomial})
    for (const char which : {'k', 'v'}) {
      AttentionCase c{.shapes = {1, 1, 600, 600, 4, 3}};
      c.base.kernel = Kernel::power(2);
      c.base.mask = Mask::causal();
      c.base.path = path;
      AttentionInputs<TypeParam> in(c.shapes, 4);
      (which == 'k' ? in.k : in.v)(0, 400, 1) = std::numeric_limits<TypeParam>::quiet_NaN();
      const Report report = attend(in.q.view(), in.k.view(), in.v.view(), in.out.view(), c.options());
      for (std::size_t i = 0; i < 600; ++i) {
        if (i < 400)
          EXPECT_LT(report.row_bounds[i], 1e-2) << which << i;
        else
          EXPECT_EQ(report.row_bounds[i], INFINITY) << which << i;
      }
    }
}

TEST(KernelRows, HoldForStorageOfSixteenBitsAndDouble) {
  AttentionCase c{.shapes = {2, 1, 300, 300, 8, 5}};
  c.base.mask = Mask::causal();
  for (const Path path : {Path::exact, Path::polynomial})
    for (const Kernel& kernel : {Kernel::taylor(2), Kernel::power(4), Kernel::power(3, KernelSign::any)}) {
      c.base.kernel = kernel;
      c.base.path = path;
      const auto check = [&](auto out_of) {
        using Out = decltype(out_of);
        AttentionInputs<float, double> in(c.shapes, 5);
        Tensor<Out> out(2, 300, 5);
        const Report report = attend(in.q.view(), in.k.view(), in.v.view(), out.view(), c.options());
        const Tensor<double> expected = kernel_oracle(c, in.q.view(), in.k.view(), in.v.view());
        BoundedRows rows;
        for (Index h = 0; h < 2; ++h)
          for (Index i = 0; i < 300; ++i)
            rows.add(h, i, out.view().head(h).row(i), expected.view().head(h).row(i), 5,
                     largest_of(in.v.view().head(0)),
                     report.row_bounds[static_cast<std::size_t>(h * 300 + i)]);
        EXPECT_EQ(rows.violated, 0) << path << ", degree " << kernel.degree() << ": " << rows.worst;
        if (sizeof(Out) == 2) {
          EXPECT_GT(rows.closest, 0.3) << "its rounding is counted once";
        }
      };
      check(float16{});
      check(bfloat16{});
      check(float{});
    }
}

TEST(KernelRows, AreSmallOnRandomData) {
  // d 16 .. 64, n up to 4096: at least 99 % of the rows within 1e-2.
  struct Size {
    Kernel kernel;
    Index d, n;
    Path path;
  };
  for (const Size& size : {Size{Kernel::power(2), 16, 4096, Path::polynomial},
                           {Kernel::power(2), 64, 1024, Path::polynomial},
                           {Kernel::power(2), 64, 4096, Path::exact},
                           {Kernel::power(4), 16, 4096, Path::polynomial},
                           {Kernel::power(4), 32, 1024, Path::exact},
                           {Kernel::power(4), 64, 4096, Path::exact},
                           {Kernel::taylor(2), 16, 4096, Path::polynomial},
                           {Kernel::taylor(2), 32, 2048, Path::polynomial},
                           {Kernel::taylor(2), 64, 1024, Path::polynomial},
                           {Kernel::taylor(2), 64, 4096, Path::exact}}) {
    AttentionCase c{.shapes = {1, 1, size.n, size.n, size.d, 4}};
    c.base.kernel = size.kernel;
    c.base.path = size.path;
    c.base.mask = Mask::causal();
    AttentionInputs<float> in(c.shapes, 6);
    Report report;
    BoundedRows rows = attend_rows(c, in, &report);
    std::sort(rows.bounds.begin(), rows.bounds.end());
    std::cout << "degree " << size.kernel.degree() << ", d " << size.d << ", n " << size.n << ", "
              << size.path << ": bounds " << rows.bounds[rows.bounds.size() / 2] << " (median) to "
              << rows.bounds.back() << ", observed / promised " << rows.closest << ", "
              << report.heads[0].repaired_rows << " again\n";
    EXPECT_GE(rows.share_within(1e-2), 0.99) << c << ", degree " << size.kernel.degree();
  }
}

TEST(KernelRows, FeaturesThatCancelGiveWayToTiles) {
  // All keys lie along one axis, later queries nearly at right angles to it: x is a tenth of |q| |k|, and
  // features of x^4 are 10^4 times as large as their sums. Tiles lose no more than ten roundings of a logit.
  const Index cancelling = 2 * QueryBlock<float>::kTileRows, n_q = cancelling + 104;
  AttentionCase c{.shapes = {2, 1, n_q, 512, 8, 3}};
  c.base.kernel = Kernel::power(4);
  c.base.scale = 1.0;
  c.base.path = Path::polynomial;
  AttentionInputs<float> in(c.shapes, 7);
  Inputs random(8);
  for (Index j = 0; j < 512; ++j)
    for (Index m = 0; m < 8; ++m)
      in.k(0, j, m) = static_cast<float>((m == 0 ? 8 : 0.01) * random.uniform(0.5, 1));
  for (Index h = 0; h < 2; ++h)
    for (Index i = 0; i < n_q; ++i)
      for (Index m = 0; m < 8; ++m)
        in.q(h, i, m) = static_cast<float>(m > 0            ? random.uniform(-0.5, 0.5)
                                           : i < cancelling ? random.uniform(0.5, 1)
                                                            : random.uniform(0.09, 0.12));
  Report report;
  const BoundedRows judged = attend_rows(c, in, &report);
  EXPECT_EQ(judged.share_within(1e-2), 1);
  for (const HeadReport& head : report.heads) {
    EXPECT_EQ(head.path, Path::polynomial);
    EXPECT_EQ(head.repaired_rows, n_q - cancelling) << "and none of which features serve";
  }
  // By features alone, as they are where nearly any bound will do.
  c.base.tolerance = 1e30;
  const BoundedRows features = attend_rows(c, in, &report);
  EXPECT_EQ(report.heads[0].repaired_rows, 0);
  EXPECT_LT(features.share_within(1e-2), 0.6);
  EXPECT_GT(features.closest, 1e-3);
  // A tolerance moves the line.
  c.base.tolerance = 1e-7;
  attend_rows(c, in, &report);
  EXPECT_GT(report.heads[0].repaired_rows, n_q - cancelling);
}

TEST(KernelRows, AreWrittenWhereTheCallerSays) {
  for (const Path path : {Path::exact, Path::polynomial})
    for (const Index n : {1, 300}) {
      AttentionCase c{.shapes = {4, 2, n, 300, 6, 5}};
      c.base.kernel = Kernel::taylor(2);
      c.base.path = path;
      AttentionInputs<float> in(c.shapes, 9);
      const auto plan = make_plan(c.shapes, c.options());
      std::vector<std::byte> workspace(plan.workspace_bytes());
      std::vector<double> bounds(static_cast<std::size_t>(4 * n), -1.0), short_of_one(bounds.size() - 1);
      std::vector<Index> repaired(4, -1), few(3);
      const auto run = [&](const RunDetails& details) {
        return plan.run(in.q.view(), in.k.view(), in.v.view(), in.out.view(), workspace, details);
      };
      EXPECT_EQ(run({few, bounds}), RunStatus::shape_mismatch);
      EXPECT_EQ(run({repaired, short_of_one}), RunStatus::shape_mismatch);
      EXPECT_EQ(bounds[0], -1);
      EXPECT_EQ(repaired[0], -1);
      ASSERT_EQ(run({repaired, bounds}), RunStatus::ok);
      EXPECT_EQ(repaired, std::vector<Index>(4));
      EXPECT_EQ(rows_of(c, in, bounds).violated, 0);
      EXPECT_LT(*std::max_element(bounds.begin(), bounds.end()), 1e-2);
      EXPECT_GT(*std::min_element(bounds.begin(), bounds.end()), 0);
      const Tensor<float> out = in.out;
      ASSERT_EQ(run({}), RunStatus::ok);
      EXPECT_EQ(in.out.values, out.values) << "with and without";
    }
}

TEST(KernelRows, SoftmaxHasItsHeadsBounds) {
  AttentionCase c{.shapes = {2, 1, 30, 40, 6, 5}};
  c.base.tolerance = 1e-2;
  AttentionInputs<float> in(c.shapes, 10);
  const auto plan = make_plan(in.q.view(), in.k.view(), in.v.view(), c.options());
  std::vector<std::byte> workspace(plan.workspace_bytes());
  std::vector<double> bounds(60);
  ASSERT_EQ(plan.run(in.q.view(), in.k.view(), in.v.view(), in.out.view(), workspace, {{}, bounds}),
            RunStatus::ok);
  for (std::size_t i = 0; i < 60; ++i) EXPECT_EQ(bounds[i], plan.report().heads[i / 30].error_bound);
  EXPECT_TRUE(attend(in.q.view(), in.k.view(), in.v.view(), in.out.view(), c.options()).row_bounds.empty());
}

TEST(KernelRows, HoldWithRopeAndGeneralWeights) {
  Inputs random(11);
  for (const Kernel& kernel : kernels())
    for (const Path path : {Path::exact, Path::polynomial})
      for (const Index n_q : {2, 300})
        for (const bool weights : {false, true}) {
          if (weights && path == Path::polynomial) continue;
          AttentionCase c{.shapes = {2, 1, n_q, 300, 8, 3}};
          c.base.kernel = kernel;
          c.base.path = path;
          c.base.mask = Mask::causal();
          if (weights)
            c.base.weights = random_weights(random, 8, 9, 400);
          else
            c.base.rope =
                Rope{.scaling = YarnScaling{.factor = 4, .original_context = 64, .attention_factor = 1.2}};
          AttentionInputs<float> in(c.shapes, 12);
          const Report report = attend(in.q.view(), in.k.view(), in.v.view(), in.out.view(), c.options());
          const Tensor<double> expected = in.reference(c).out;
          BoundedRows rows;
          for (Index h = 0; h < 2; ++h)
            for (Index i = 0; i < n_q; ++i)
              rows.add(h, i, in.out.view().head(h).row(i), expected.view().head(h).row(i), 3,
                       largest_of(in.v.view().head(0)),
                       report.row_bounds[static_cast<std::size_t>(h * n_q + i)]);
          EXPECT_EQ(rows.violated, 0) << c << ", degree " << kernel.degree() << ", " << path << rows.worst;
        }
}

}  // namespace
}  // namespace fastrope_test
