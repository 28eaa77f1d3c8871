#include "fastrope/plan/low_rank.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <iostream>
#include <limits>
#include <optional>
#include <string>
#include <type_traits>
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

  std::vector<RowSource<Real>> query_sources() const {
    std::vector<RowSource<Real>> sources;
    for (const Rows<Real>& q : queries) sources.push_back(source_of(q));
    return sources;
  }
  std::optional<ProjectionChoice<Real>> choose() {
    const auto sources = query_sources();
    const RowSource<Real> key_source = source_of(keys);
    return choose_projection<Real>({sources, &key_source, far}, request, reason);
  }
  std::optional<LowRankFit> fit(LowRankSteps steps = {}) {
    request.steps = steps;
    auto choice = choose();
    if (!choice) return std::nullopt;
    const auto sources = query_sources();
    const RowSource<Real> key_source = source_of(keys);
    RowBounds<Real> of_keys(choice->of_keys());
    const auto of_queries = measure_rows<Real>({sources, &key_source, far}, request.scale, *choice, of_keys);
    return fit_low_rank<Real>(*choice, {of_queries, &of_keys}, far, request, reason);
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

/// The largest relative error of an entry over (a sample of) the pairs that are approximated, some of them of
/// given keys.
template <class Real>
double observed_error(const Case<Real>& c, const LowRankFit& fit, Inputs& inputs,
                      const std::vector<Index>& keys = {}) {
  const Applied apply(fit, c.request.scale);
  double largest = 0;
  for (int sample = 0; sample < 400; ++sample) {
    const FarPairs& pairs = c.far[static_cast<std::size_t>(inputs.random()() % c.far.size())];
    if (pairs.far == 0 || pairs.rows.empty()) continue;
    const Rows<Real>& q = c.queries[static_cast<std::size_t>(inputs.random()() % c.queries.size())];
    const Point<Real> query = q.row(inputs.integer(pairs.rows.begin, pairs.rows.end - 1));
    Index j = inputs.integer(0, pairs.far - 1);
    if (!keys.empty() && sample % 2 == 0) {
      const Index given = keys[static_cast<std::size_t>(inputs.random()() % keys.size())];
      if (given < pairs.far) j = given;
    }
    const Point<Real> key = c.keys.row(j);
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
    c.far = trial % 2 == 0 ? full(n, n) : causal(n, trial % 4 == 1 ? 32 : 64);  // half a block of bounds, one
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
    EXPECT_LE(fit->error_bound, c.request.tolerance);
    EXPECT_LE(fit->certificate.error_bound, fit->error_bound);
    EXPECT_LE(fit->allowed, fit->rounding);
    EXPECT_LE(fit->rounding, fit->error_bound);
    EXPECT_LE(fit->rank, fit->simplex_rank);
    EXPECT_EQ(fit->rank, rank_of(fit->limits));
    EXPECT_EQ(static_cast<Index>(fit->limits.size()), fit->projection.variables());
    for (int limit : fit->limits) EXPECT_GT(limit, 0);
    if (fit->rank < fit->simplex_rank) ++smaller;
    const double observed = observed_error(c, *fit, inputs);
    // Observed in double, of axes rounded to Real.
    ASSERT_LE(observed, fit->certificate.relative_error + 1e-11) << "trial " << trial;
    slack += std::log(std::max(fit->certificate.relative_error, 1e-12) / std::max(observed, 1e-12));
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

// Shifts and axes are chosen by samples; what they are worth is measured on all rows.
TYPED_TEST(LowRankTest, EntriesOfRowsThatNoSampleHasAreWithinTheCertificate) {
  using Real = TypeParam;
  constexpr Index n = 3000;
  const std::vector<Index> missed = {11, 1500, 2200};  // between the runs of samples of 128 and 512 rows
  Inputs inputs(11);
  int fits = 0;
  for (int trial = 0; trial < 60; ++trial) {
    const Index d = inputs.integer(1, 6);
    Case<Real> c;
    c.request.scale = std::exp2(inputs.uniform(-2, 0));
    c.request.may_weigh_keys = trial % 3 != 0;
    c.far = trial % 2 == 0 ? full(n, n) : causal(n, 192);
    const double decay = inputs.uniform(0.2, 1);
    for (Rows<Real>* x : {&c.queries.emplace_back(), &c.keys}) {
      *x = gaussian<Real>(inputs, n, d, 0.3);
      for (Index l = 0; l < d; ++l) x->col(l) *= static_cast<Real>(std::pow(decay, l));
      x->rowwise() += gaussian<Real>(inputs, 1, d, 0.7).row(0);
    }
    for (const Index i : missed) {
      c.keys.row(i) = gaussian<Real>(inputs, 1, d, 1.5).row(0);
      c.queries[0].row(i + 700) = gaussian<Real>(inputs, 1, d, 1.5).row(0);
    }
    const auto fit = c.fit();
    if (!fit) continue;
    ++fits;
    ASSERT_LE(observed_error(c, *fit, inputs, missed), fit->certificate.relative_error + 1e-11)
        << "trial " << trial;
  }
  EXPECT_GT(fits, 20);
}

TYPED_TEST(LowRankTest, AShiftThatMissedRowsMakeWorseIsNotTaken) {
  using Real = TypeParam;
  constexpr Index n = 3000;
  Inputs inputs(12);
  Case<Real> c;
  c.queries = {sphere<Real>(inputs, n, 4, 1)};
  c.keys = gaussian<Real>(inputs, n, 4, 0.03);
  c.keys.col(0).array() += 1;
  c.far = full(n, n);
  const auto shifted = c.fit();
  ASSERT_TRUE(shifted) << c.reason;
  EXPECT_NE(shifted->key_shift, Centre::none);
  EXPECT_LT(shifted->radius, 0.3);
  c.keys.row(1500) = -c.keys.row(1500);
  const auto fit = c.fit();
  ASSERT_TRUE(fit) << c.reason;
  EXPECT_EQ(fit->key_shift, Centre::none);
  EXPECT_NEAR(fit->radius, fit->plain_radius, 1e-2);
}

TYPED_TEST(LowRankTest, RoundingIsThatOfTheShiftsThatAreTaken) {
  // Shifts would make the entries tiny, but with them a key that no row approximates is farther out and would
  // weigh e^50: without them all entries are about -R, and a row's denominator is lost in terms that are e^2R
  // times as large.
  using Real = TypeParam;
  const double length = std::is_same_v<Real, float> ? 10 : 16;
  Inputs inputs(13);
  Case<Real> c;
  c.request.tolerance = 0.1;
  c.queries = {gaussian<Real>(inputs, 2000, 1, 1e-3)};
  c.queries[0].array() -= static_cast<Real>(length);
  c.keys = gaussian<Real>(inputs, 2000, 1, 5e-3);
  c.keys.array() += 1;
  c.far = causal(2000, 192);
  const auto shifted = c.fit();
  ASSERT_TRUE(shifted) << c.reason;
  EXPECT_LT(shifted->radius, 0.1);
  c.keys(1997, 0) -= 6;
  EXPECT_FALSE(c.fit());
  EXPECT_NE(c.reason.find("rounding"), std::string::npos) << c.reason;
}

TYPED_TEST(LowRankTest, TheCertificateCountsWhatRoundedAxesMiss) {
  // Steep spectra in axes of their own, which are rounded: x.y is not s (q - nu).(k - mu).
  using Real = TypeParam;
  Inputs inputs(23);
  double missed = 0;
  for (int turn = 0; turn < 8; ++turn) {
    Case<Real> c;
    const Index d = 6;
    const Rows<Real> mix = gaussian<Real>(inputs, d, d);
    const auto rows = [&] {
      Rows<Real> x = gaussian<Real>(inputs, 600, d, 0.3);
      for (Index l = 0; l < d; ++l) x.col(l) *= static_cast<Real>(std::pow(0.6, static_cast<double>(l)));
      return Rows<Real>(x * mix);
    };
    c.queries = {rows()};
    c.keys = rows();
    c.far = full(600, 600);
    c.request.tolerance = 1e-3;
    const auto fit = c.fit();
    if (!fit || fit->projection.variables() < d) continue;  // what is left out is the tail's
    const Projection& p = fit->projection;
    double worst = 0;
    for (Index i = 0; i < 600; i += 7)
      for (Index j = 0; j < 600; j += 5) {
        double exact = 0, approximate = 0;
        for (Index l = 0; l < d; ++l) {
          double x = 0, y = 0;
          for (Index m = 0; m < d; ++m) {
            const auto at = static_cast<std::size_t>(m);
            x += p.query_axes[static_cast<std::size_t>(l * d + m)] *
                 (static_cast<double>(c.queries[0](i, m)) - p.query_shift[at]);
            y += p.key_axes[static_cast<std::size_t>(l * d + m)] *
                 (static_cast<double>(c.keys(j, m)) - p.key_shift[at]);
          }
          approximate += x * y;
          const auto at = static_cast<std::size_t>(l);
          exact += (static_cast<double>(c.queries[0](i, l)) - p.query_shift[at]) *
                   (static_cast<double>(c.keys(j, l)) - p.key_shift[at]);
        }
        worst = std::max(worst, std::abs(approximate - exact));
      }
    EXPECT_LE(worst, fit->certificate.axes_error);
    missed = std::max(missed, worst);
  }
  EXPECT_GT(missed, 0) << "no axes, no test";
}

TYPED_TEST(LowRankTest, AShiftThatFailsTakesNeitherTheOtherNorTheAxesWithIt) {
  // Along one of 16 axes both sides are long and off the origin by 1, along all others short; a row that no
  // sample meets lies half as far again on the other side.
  using Real = TypeParam;
  Inputs inputs(18);
  Case<Real> c;
  const auto rows = [&] {
    Rows<Real> x = gaussian<Real>(inputs, 4000, 16, 1e-3);
    x.col(3) = gaussian<Real>(inputs, 4000, 1, 0.1);
    x.col(3).array() += 1;
    return x;
  };
  c.queries = {rows()};
  c.keys = rows();
  c.far = full(4000, 4000);
  const auto both = c.fit();
  ASSERT_TRUE(both) << c.reason;
  EXPECT_NE(both->key_shift, Centre::none);
  EXPECT_NE(both->query_shift, Centre::none);
  c.keys.row(2001) = -1.5 * c.keys.row(2001);
  const auto one = c.fit();
  ASSERT_TRUE(one) << c.reason;
  EXPECT_EQ(one->key_shift, Centre::none);
  EXPECT_NE(one->query_shift, Centre::none);
  EXPECT_LT(one->radius, 0.8);
  EXPECT_LT(one->rank, 20);
  EXPECT_LE(observed_error(c, *one, inputs, {2001}), one->certificate.relative_error + 1e-11);
  c.queries[0].row(2001) = -1.5 * c.queries[0].row(2001);
  const auto none = c.fit();
  ASSERT_TRUE(none) << c.reason;
  EXPECT_EQ(none->query_shift, Centre::none);
  EXPECT_LT(none->rank, none->simplex_rank / 20);
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

/// A source of x that counts the rows that are read.
template <class Real>
RowSource<Real> counted(const Rows<Real>& x, Index& reads) {
  RowSource<Real> source = source_of(x);
  source.read = [&reads, read = source.read](Range rows, bool turned, Real* to) {
    reads += rows.size();
    read(rows, turned, to);
  };
  return source;
}

TYPED_TEST(LowRankTest, WhatDoesNotPayIsRefusedByAFewRowsWithTheFigures) {
  using Real = TypeParam;
  Inputs inputs(14);
  for (const bool decays : {false, true}) {
    Case<Real> c;
    c.queries.resize(2);
    for (Rows<Real>* x : {&c.queries[0], &c.queries[1], &c.keys}) {
      *x = sphere<Real>(inputs, 5000, 16, 1);
      if (decays)
        for (Index l = 0; l < 16; ++l) x->col(l) *= static_cast<Real>(2 * std::pow(0.8, l));
    }
    c.far = full(5000, 5000);
    std::vector<double> asked;
    c.request.pays = [&](double rank) {
      asked.push_back(rank);
      return false;
    };
    Index query_reads = 0, key_reads = 0;
    const std::vector<RowSource<Real>> queries = {counted(c.queries[0], query_reads),
                                                  counted(c.queries[1], query_reads)};
    const RowSource<Real> keys = counted(c.keys, key_reads);
    EXPECT_FALSE(choose_projection<Real>({queries, &keys, c.far}, c.request, c.reason));
    EXPECT_LE(query_reads, 128);
    EXPECT_LE(key_reads, 128);
    ASSERT_EQ(asked.size(), 1u);
    EXPECT_GT(asked[0], 1);
    EXPECT_NE(c.reason.find(detail::message("a rank of ", asked[0])), std::string::npos) << c.reason;
    EXPECT_NE(c.reason.find("too much work"), std::string::npos) << c.reason;
    // More rows are sampled where the first leave hope.
    c.request.pays = [&](double rank) {
      asked.push_back(rank);
      return asked.size() < 3;
    };
    EXPECT_FALSE(choose_projection<Real>({queries, &keys, c.far}, c.request, c.reason));
    EXPECT_EQ(asked.size(), 3u);
    EXPECT_GT(key_reads, 256);
    EXPECT_LE(query_reads, 2 * 128 + 512);
    EXPECT_LE(key_reads, 2 * 128 + 512);
    EXPECT_NE(c.reason.find("too much work"), std::string::npos) << c.reason;
  }
}

TYPED_TEST(LowRankTest, UnboundedRowsAreRefusedWhereNoRankPays) {
  using Real = TypeParam;
  Inputs inputs(15);
  for (const double sigma : {10.0, 100.0, 1e6}) {
    Case<Real> c;
    c.queries = {gaussian<Real>(inputs, 1000, 8, sigma)};
    c.keys = gaussian<Real>(inputs, 1000, 8, sigma);
    c.far = full(1000, 1000);
    c.request.pays = [](double rank) { return rank < std::numeric_limits<double>::infinity(); };
    EXPECT_FALSE(c.choose());
    EXPECT_NE(c.reason.find("entries"), std::string::npos) << c.reason;
  }
  // Rounding would do, but there is no polynomial.
  Case<double> c;
  c.queries = {sphere<double>(inputs, 1000, 1, 1)};
  c.keys = sphere<double>(inputs, 1000, 1, 15);
  c.far = full(1000, 1000);
  c.request.tolerance = 1e-5;
  c.request.pays = [](double rank) { return rank < std::numeric_limits<double>::infinity(); };
  EXPECT_FALSE(c.choose());
  EXPECT_NE(c.reason.find("too large for any polynomial"), std::string::npos) << c.reason;
}

TYPED_TEST(LowRankTest, WhatWouldPayIsNotRefused) {
  // A rank that is asked for is hardly above that of the fit, and what the first few rows ask for never.
  using Real = TypeParam;
  constexpr Index n = 900;
  Inputs inputs(16);
  const auto draw = [&](int kind, Index d) {
    const double size = 1 / std::sqrt(static_cast<double>(d));
    Rows<Real> x = gaussian<Real>(inputs, n, d, kind == 3 ? 0.05 * size : size);
    if (kind == 1) x = sphere<Real>(inputs, n, d, 1);
    if (kind == 2) x.rowwise() += gaussian<Real>(inputs, 1, d, 3 * size).row(0);
    if (kind == 3)  // few points
      for (Index i = 0; i < n; ++i) x.row(i)(i % 3 * (d - 1) / 2) += 1;
    if (kind == 4 || kind == 5) {
      for (Index l = 0; l < d; ++l) x.col(l) *= static_cast<Real>(std::pow(kind == 4 ? 0.5 : 0.8, l) / size);
      x = (x * gaussian<Real>(inputs, d, d, size)).eval();
    }
    if (kind == 6)
      for (Index i = 0; i < n; i += 37) x(i, d / 2) += 3;
    return x;
  };
  int fits = 0;
  for (const Index d : {1, 6, 32})
    for (int of_queries = 0; of_queries < 7; ++of_queries)
      for (int of_keys = of_queries % 2; of_keys < 7; of_keys += 2) {
        Case<Real> c;
        c.queries = {draw(of_queries, d)};
        c.keys = draw(of_keys, d);
        c.far = fits % 2 == 0 ? full(n, n) : causal(n, 192);
        c.request.scale = std::exp(inputs.uniform(-2, 1));
        c.request.tolerance = fits % 3 == 0 ? 1e-1 : 1e-2;
        std::vector<double> asked;
        c.request.pays = [&](double rank) {
          asked.push_back(rank);
          return true;
        };
        const auto fit = c.fit();
        if (!fit) continue;
        ++fits;
        const auto text = testing::Message() << "kinds " << of_queries << " and " << of_keys << ", d " << d;
        ASSERT_FALSE(asked.empty()) << text;
        EXPECT_LE(asked.front(), 1.01 * fit->rank) << text;
        for (const double rank : asked) EXPECT_LE(rank, 4 * fit->rank) << text;
      }
  EXPECT_GT(fits, 40);
  std::cout << fits << " fits\n";
}

TYPED_TEST(LowRankTest, DecayingSpectraInManyDimensionsAreNotRefused) {
  using Real = TypeParam;
  Inputs inputs(17);
  Case<Real> c;
  for (Rows<Real>* x : {&c.queries.emplace_back(), &c.keys}) {
    *x = gaussian<Real>(inputs, 4000, 64);
    for (Index l = 0; l < 64; ++l) x->col(l) *= static_cast<Real>(std::pow(0.5, l));
    *x = (*x * gaussian<Real>(inputs, 64, 64, 0.125)).eval();
  }
  c.request.scale = 0.1;
  for (const auto& far : {full(4000, 4000), causal(4000, 192)}) {
    c.far = far;
    c.request.pays = [](double rank) { return rank < 1000; };
    const auto fit = c.fit();
    ASSERT_TRUE(fit) << c.reason;
    EXPECT_LT(fit->rank, 1000);
    EXPECT_GT(fit->simplex_rank, 40000);
  }
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
