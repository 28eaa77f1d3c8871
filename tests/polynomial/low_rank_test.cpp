#include "fastrope/polynomial/low_rank.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <iostream>
#include <vector>

#include "support/inputs.hpp"

namespace fastrope_test {
namespace {

using namespace fastrope;

template <class Real>
struct Case {
  std::vector<Rows<Real>> queries;
  Rows<Real> keys;
  std::vector<FarPairs> far;
  LowRankRequest request{.tolerance = 1e-2};

  std::optional<LowRankFit> fit(LowRankSteps steps = {}) {
    request.steps = steps;
    return fit_low_rank<Real>(queries, keys, far, request, reason);
  }
  std::string reason = {};
};

template <class Real>
Rows<Real> gaussian(Inputs& inputs, Index n, Index d, double sigma = 1) {
  return Rows<Real>::NullaryExpr(n, d, [&] { return static_cast<Real>(sigma * inputs.normal()); });
}

/// Rows of length `norm`.
template <class Real>
Rows<Real> sphere(Inputs& inputs, Index n, Index d, double norm) {
  Rows<Real> x = gaussian<Real>(inputs, n, d);
  for (Index i = 0; i < n; ++i) x.row(i) *= static_cast<Real>(norm) / x.row(i).norm();
  return x;
}

std::vector<FarPairs> full(Index n_q, Index n_k) { return {{{0, n_q}, n_k}}; }

std::vector<FarPairs> causal(Index n, Index chunk) {
  std::vector<FarPairs> far;
  for (Index i = 0; i < n; i += chunk) far.push_back({{i, std::min(n, i + chunk)}, i});
  return far;
}

/// One query and one key [d], as double.
struct Entry {
  double kept;        ///< P_A(x.y) e^(s nu.(k - mu)) e^(s q.mu)
  double exact;       ///< e^(s q.k)
  double key_weight;  ///< s nu.(k - mu)
};

/// What the fit makes of a pair, in exact steps of double.
class Applied {
 public:
  Applied(const LowRankFit& fit, double scale) : fit_(fit), scale_(scale), set_(fit.limits) {}

  template <class Real>
  Entry operator()(const Point<Real>& query, const Point<Real>& key) const {
    const Projection& p = fit_.projection;
    const auto d = static_cast<Index>(p.key_shift.size());
    const Eigen::Map<const Point<double>> mu(p.key_shift.data(), d), nu(p.query_shift.data(), d);
    using RowByRow = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
    const Eigen::Map<const RowByRow> b(p.query_axes.data(), p.variables(), d),
        c(p.key_axes.data(), p.variables(), d);
    const Point<double> q = query.template cast<double>(), k = key.template cast<double>();
    const Point<double> x = scale_ * (q - nu) * b.transpose(), y = (k - mu) * c.transpose();
    std::vector<double> features{1};
    double sum = fit_.polynomial.coefficients()[0];
    for (std::size_t t = 1; t < set_.terms().size(); ++t) {
      const Monomial& term = set_.terms()[t];
      features.push_back(features[static_cast<std::size_t>(term.parent)] * x(term.variable) *
                         y(term.variable));
      sum += fit_.polynomial.coefficients()[static_cast<std::size_t>(term.degree)] * term.multinomial *
             features.back();
    }
    const double weight = scale_ * nu.dot(k - mu);
    return {sum * std::exp(weight + scale_ * q.dot(mu)), std::exp(scale_ * q.dot(k)), weight};
  }

 private:
  const LowRankFit& fit_;
  double scale_;
  MonomialSet set_;
};

/// The largest relative error of an entry over (a sample of) the pairs that are approximated.
template <class Real>
double observed_error(const Case<Real>& c, const LowRankFit& fit, Inputs& inputs) {
  const Applied apply(fit, c.request.scale);
  double largest = 0;
  for (int sample = 0; sample < 400; ++sample) {
    const FarPairs& pairs = c.far[static_cast<std::size_t>(inputs.random()() % c.far.size())];
    if (pairs.far == 0 || pairs.rows.empty()) continue;
    const Rows<Real>& q = c.queries[static_cast<std::size_t>(inputs.random()() % c.queries.size())];
    const Point<Real> query = q.row(inputs.integer(pairs.rows.begin, pairs.rows.end - 1));
    const Point<Real> key = c.keys.row(inputs.integer(0, pairs.far - 1));
    const Entry entry = apply(query, key);
    largest = std::max(largest, std::abs(entry.kept / entry.exact - 1));
    EXPECT_LE(entry.key_weight, fit.projection.weight_max * (1 + 1e-6) + 1e-12);
  }
  return largest;
}

template <class Real>
class LowRankTest : public ::testing::Test {};
using Reals = ::testing::Types<float, double>;
TYPED_TEST_SUITE(LowRankTest, Reals);

TYPED_TEST(LowRankTest, EntriesAreWithinTheCertificate) {
  using Real = TypeParam;
  Inputs inputs(1);
  int fits = 0, smaller = 0;
  double slack = 0;
  for (int trial = 0; trial < 200; ++trial) {
    const Index d = inputs.integer(1, 6), n = inputs.integer(1, 300), heads = inputs.integer(1, 3);
    Case<Real> c;
    c.request.scale = std::exp2(inputs.uniform(-4, 0)) * (trial % 5 == 0 ? -1 : 1);
    c.request.tolerance = std::pow(10.0, inputs.uniform(-3, -1));
    c.request.value_spread = inputs.uniform(0.1, 1);
    c.request.may_weigh_keys = trial % 3 != 0;
    c.far = trial % 2 == 0 ? full(n, n) : causal(n, 32);
    const double decay = inputs.uniform(0.3, 1);
    const auto rows = [&](double offset) {
      Rows<Real> x = gaussian<Real>(inputs, n, d);
      for (Index l = 0; l < d; ++l) x.col(l) *= static_cast<Real>(std::pow(decay, l));
      const Rows<Real> turn = gaussian<Real>(inputs, d, d, 1 / std::sqrt(static_cast<double>(d)));
      x = (x * turn).eval();
      x.rowwise() += gaussian<Real>(inputs, 1, d, offset).row(0);
      return x;
    };
    c.keys = rows(inputs.uniform(0, 2));
    for (Index h = 0; h < heads; ++h) c.queries.push_back(rows(inputs.uniform(0, 2)));
    const auto fit = c.fit();
    if (!fit) {
      EXPECT_FALSE(c.reason.empty());
      continue;
    }
    ++fits;
    EXPECT_TRUE(c.reason.empty());
    EXPECT_LE(fit->certificate.error_bound + fit->rounding, c.request.tolerance);
    EXPECT_LE(fit->rank, fit->simplex_rank);
    EXPECT_EQ(fit->rank, rank_of(fit->limits));
    EXPECT_EQ(static_cast<Index>(fit->limits.size()), fit->projection.variables());
    for (int limit : fit->limits) EXPECT_GT(limit, 0);
    if (fit->rank < fit->simplex_rank) ++smaller;
    const double observed = observed_error(c, *fit, inputs);
    // Observed in double, of axes rounded to Real.
    ASSERT_LE(observed, fit->certificate.relative_error + 1e-11) << "trial " << trial;
    slack += std::log(fit->certificate.relative_error / std::max(observed, 1e-12));
  }
  EXPECT_GT(fits, 100);
  EXPECT_GT(smaller, fits / 4);
  std::cout << fits << " fits, " << smaller
            << " of them below the simplex; certified / observed (of 400 pairs), "
            << "geometric mean: " << std::exp(slack / fits) << '\n';
}

TYPED_TEST(LowRankTest, DecayingSpectraHaveSmallRanks) {
  using Real = TypeParam;
  Inputs inputs(2);
  Case<Real> c;
  const Rows<Real> turn = Eigen::HouseholderQR<Eigen::MatrixXd>(gaussian<double>(inputs, 16, 16))
                              .householderQ()
                              .
                              operator*(Eigen::MatrixXd::Identity(16, 16))
                              .template cast<Real>();
  const auto decaying = [&] {
    Rows<Real> x = sphere<Real>(inputs, 500, 16, 1);
    for (Index l = 0; l < 16; ++l) x.col(l) *= static_cast<Real>(4 * std::pow(0.4, l));
    return Rows<Real>(x * turn);
  };
  c.queries = {decaying()};
  c.keys = decaying();
  c.far = full(500, 500);
  c.request.scale = 0.25;
  const auto with = c.fit(), without = c.fit({.axes = false});
  ASSERT_TRUE(with) << c.reason;
  EXPECT_LT(with->rank, with->simplex_rank / 100);
  EXPECT_LT(with->projection.variables(), 12);
  if (without) {
    EXPECT_EQ(without->rank, without->simplex_rank);
  }
}

TYPED_TEST(LowRankTest, BalancedAxesServeSidesOfDifferentSpectra) {
  using Real = TypeParam;
  Inputs inputs(3);
  Case<Real> c;
  Rows<Real> q = gaussian<Real>(inputs, 400, 6, 0.3), k = gaussian<Real>(inputs, 400, 6, 0.3);
  for (Index l = 0; l < 6; ++l) {
    q.col(l) *= static_cast<Real>(std::pow(4.0, l % 3 - 1));
    k.col(l) *= static_cast<Real>(std::pow(4.0, 1 - l % 3) * (l < 2 ? 1 : 0.1));
  }
  c.queries = {q};
  c.keys = k;
  c.far = full(400, 400);
  const auto fit = c.fit();
  ASSERT_TRUE(fit) << c.reason;
  EXPECT_LT(fit->radius, 0.5 * fit->plain_radius);
}

TYPED_TEST(LowRankTest, OffsetsAreShiftedAway) {
  using Real = TypeParam;
  Inputs inputs(4);
  Case<Real> c;
  c.queries = {gaussian<Real>(inputs, 300, 4, 0.2)};
  c.keys = gaussian<Real>(inputs, 300, 4, 0.2);
  c.queries[0].array() += Real{2};
  c.keys.array() -= Real{1.5};
  c.far = full(300, 300);
  const auto fit = c.fit();
  ASSERT_TRUE(fit) << c.reason;
  EXPECT_GT(fit->plain_radius, 10);
  EXPECT_LT(fit->radius, 1.5);
  EXPECT_NE(fit->key_shift, Centre::none);
  EXPECT_NE(fit->query_shift, Centre::none);
  EXPECT_GT(fit->projection.weight_max, 0);
  c.request.may_weigh_keys = false;
  const auto keys_only = c.fit();
  if (keys_only) {
    EXPECT_EQ(keys_only->query_shift, Centre::none);
    EXPECT_EQ(keys_only->projection.weight_max, 0);
    EXPECT_GT(keys_only->radius, fit->radius);
  }
  EXPECT_FALSE(c.fit({.shift = false}));
  EXPECT_NE(c.reason.find("rounding"), std::string::npos) << c.reason;
}

TYPED_TEST(LowRankTest, ABallBeatsTheMeanOfASkewedCloud) {
  using Real = TypeParam;
  Inputs inputs(5);
  Case<Real> c;
  c.queries = {sphere<Real>(inputs, 200, 4, 1)};
  c.keys = gaussian<Real>(inputs, 1000, 4, 0.1);
  for (Index j = 0; j < 1000; j += 50) c.keys(j, 2) += Real{4};
  c.far = full(200, 1000);
  const auto fit = c.fit();
  ASSERT_TRUE(fit) << c.reason;
  EXPECT_EQ(fit->key_shift, Centre::ball);
  EXPECT_LT(fit->radius, 2.5);  // about the mean: 3.9
}

// An outlier among the last keys or the first queries meets no row that is approximated.
TYPED_TEST(LowRankTest, NearFieldLeavesOutliersOut) {
  using Real = TypeParam;
  Inputs inputs(6);
  Case<Real> c;
  c.queries = {sphere<Real>(inputs, 512, 4, 1)};
  c.keys = sphere<Real>(inputs, 512, 4, 1);
  c.queries[0].row(3) *= Real{50};
  c.keys.row(510) *= Real{50};
  c.far = causal(512, 64);
  const LowRankSteps no_shift{.shift = false};
  const auto fit = c.fit(no_shift);
  ASSERT_TRUE(fit) << c.reason;
  EXPECT_NEAR(fit->radius, 1, 1e-2);
  EXPECT_NEAR(fit->plain_radius, 2500, 1);
  EXPECT_FALSE(c.fit({.shift = false, .near_field = false}));
  // In the middle it does.
  c.keys.row(100) *= Real{4};
  EXPECT_NEAR(c.fit(no_shift)->radius, 4, 1e-2);
}

TYPED_TEST(LowRankTest, NothingFarNeedsNoRank) {
  using Real = TypeParam;
  Inputs inputs(7);
  Case<Real> c;
  c.queries = {gaussian<Real>(inputs, 64, 4, 100)};
  c.keys = gaussian<Real>(inputs, 64, 4, 100);
  c.far = causal(64, 64);
  c.request.tolerance = 0.5;  // rounding is that of the logits, up to 10^5
  const auto fit = c.fit();
  ASSERT_TRUE(fit) << c.reason;
  EXPECT_EQ(fit->radius, 0);
  EXPECT_EQ(fit->rank, 1);
  EXPECT_EQ(fit->projection.variables(), 0);
}

TYPED_TEST(LowRankTest, RefusesLargeRanksWithTheFigures) {
  using Real = TypeParam;
  Inputs inputs(8);
  Case<Real> c;
  c.queries = {sphere<Real>(inputs, 100, 128, 1)};
  c.keys = sphere<Real>(inputs, 100, 128, 1);
  c.far = full(100, 100);
  c.request.scale = 2;
  c.request.d_v = 63;
  EXPECT_FALSE(c.fit({.shift = false, .axes = false}));
  const double rank = rank_of(simplex_limits(128, 5));
  for (const std::string& figure :
       {std::string("degree 5"), std::string("128 variables"), detail::message(rank),
        detail::message(rank * 64 * sizeof(Real), " bytes")})
    EXPECT_NE(c.reason.find(figure), std::string::npos) << c.reason << ": " << figure;
}

// Overflowing norms must not be taken for small ones.
TYPED_TEST(LowRankTest, RefusesWhatOverflows) {
  using Real = TypeParam;
  Case<Real> c;
  c.queries = {Rows<Real>::Constant(10, 2, std::numeric_limits<Real>::max() / 4)};
  c.keys = c.queries[0];
  c.far = full(10, 10);
  EXPECT_FALSE(c.fit());
  EXPECT_FALSE(c.reason.empty());
}

}  // namespace
}  // namespace fastrope_test
