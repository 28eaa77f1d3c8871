#include "fastrope/plan/low_rank.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <iostream>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "fastrope/plan/factorisations.hpp"
#include "support/inputs.hpp"
#include "support/projected.hpp"
#include "support/row_matrix.hpp"

namespace fastrope_test {
namespace {

using namespace fastrope;

template <class Real>
struct Case {
  std::vector<RowMatrix<Real>> queries;
  RowMatrix<Real> keys;
  std::vector<FarPairs> far;
  LowRankRequest request{
      .tolerance = 1e-2, .factorisations = factorisations(), .arithmetic = kArithmeticOf<Real>};

  std::optional<ProjectionChoice> choose() { return Sides(*this).choose(request, reason); }
  std::optional<LowRankFit> fit(LowRankSteps steps = {}) {
    request.steps = steps;
    const Sides sides(*this);
    auto choice = sides.choose(request, reason);
    if (!choice) return std::nullopt;
    RowBounds of_keys(choice->of_keys());
    const auto of_queries = measure_rows(sides.rows(), request.scale, *choice, of_keys);
    return fit_low_rank(*choice, {of_queries, &of_keys}, far, request, reason);
  }
  std::string reason = {};

  /// The rows as they are asked about.
  class Sides {
   public:
    explicit Sides(const Case& c) : keys_(side_of(c.keys)), far_(c.far) {
      for (const RowMatrix<Real>& q : c.queries) add(side_of(q));
    }
    Sides(std::vector<RowSource<Real>> queries, RowSource<Real> keys, const std::vector<FarPairs>& far)
        : keys_(side_of(std::move(keys))), far_(far) {
      for (RowSource<Real>& source : queries) add(side_of(std::move(source)));
    }

    LowRankRows rows() const { return {queries_, keys_.get(), far_}; }
    std::optional<ProjectionChoice> choose(const LowRankRequest& request, std::string& reason) const {
      return choose_projection(rows(), request, reason);
    }

   private:
    void add(std::unique_ptr<Side> side) {
      queries_.push_back(side.get());
      owned_.push_back(std::move(side));
    }

    std::vector<std::unique_ptr<Side>> owned_ = {};
    std::vector<const Side*> queries_ = {};
    std::unique_ptr<Side> keys_;
    const std::vector<FarPairs>& far_;
  };
};

std::vector<FarPairs> full(Index n_q, Index n_k) { return {{{0, n_q}, n_k}}; }

std::vector<FarPairs> causal(Index n, Index chunk) {
  std::vector<FarPairs> far;
  for (Index i = 0; i < n; i += chunk) far.push_back({{i, std::min(n, i + chunk)}, i});
  return far;
}

/// One query and one key, in double.
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
  Entry operator()(const RowMatrix<Real>& queries, Index i, const RowMatrix<Real>& keys, Index j) const {
    const Projection& p = fit_.projection;
    const std::vector<double> q = point_of(queries, i), k = point_of(keys, j),
                              from_mu = shifted(keys, j, p.key_shift),
                              x = projected(p.query_axes, shifted(queries, i, p.query_shift, scale_)),
                              y = projected(p.key_axes, from_mu);
    std::vector<double> features{1};
    double sum = fit_.polynomial.coefficients()[0];
    for (std::size_t t = 1; t < set_.terms().size(); ++t) {
      const Monomial& term = set_.terms()[t];
      const auto variable = static_cast<std::size_t>(term.variable);
      features.push_back(features[static_cast<std::size_t>(term.parent)] * x[variable] * y[variable]);
      sum += fit_.polynomial.coefficients()[static_cast<std::size_t>(term.degree)] * term.multinomial *
             features.back();
    }
    const double weight = scale_ * dot(p.query_shift, from_mu);
    return {sum * std::exp(weight + scale_ * dot(q, p.key_shift)), std::exp(scale_ * dot(q, k)), weight};
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
    const RowMatrix<Real>& q = c.queries[static_cast<std::size_t>(inputs.random()() % c.queries.size())];
    const Index i = inputs.integer(pairs.rows.begin, pairs.rows.end - 1);
    Index j = inputs.integer(0, pairs.far - 1);
    if (!keys.empty() && sample % 2 == 0) {
      const Index given = keys[static_cast<std::size_t>(inputs.random()() % keys.size())];
      if (given < pairs.far) j = given;
    }
    const Entry entry = apply(q, i, c.keys, j);
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
      RowMatrix<Real> x = gaussian_rows<Real>(inputs, n, d);
      x.decay(decay);
      x = times(x, gaussian_rows<Real>(inputs, d, d, 1 / std::sqrt(static_cast<double>(d))));
      x.move(gaussian_rows<Real>(inputs, 1, d, offset));
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
  const RowMatrix<double> mix = gaussian_rows<double>(inputs, 16, 16);
  const Matrix vectors = factorisations().symmetric_eigen(second_moments(points_of(mix))).vectors;
  RowMatrix<Real> turn(16, 16);  // orthogonal
  for (Index i = 0; i < 16; ++i)
    for (Index l = 0; l < 16; ++l) turn(i, l) = static_cast<Real>(vectors(i, l));
  const auto decaying = [&] {
    RowMatrix<Real> x = sphere_rows<Real>(inputs, 500, 16, 4);
    x.decay(0.4);
    return times(x, turn);
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
  RowMatrix<Real> q = gaussian_rows<Real>(inputs, 400, 6, 0.3), k = gaussian_rows<Real>(inputs, 400, 6, 0.3);
  for (Index l = 0; l < 6; ++l) {
    q.scale_column(l, std::pow(4.0, l % 3 - 1));
    k.scale_column(l, std::pow(4.0, 1 - l % 3) * (l < 2 ? 1 : 0.1));
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
  c.queries = {gaussian_rows<Real>(inputs, 300, 4, 0.2)};
  c.keys = gaussian_rows<Real>(inputs, 300, 4, 0.2);
  c.queries[0].move(2);
  c.keys.move(-1.5);
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
  c.queries = {sphere_rows<Real>(inputs, 200, 4, 1)};
  c.keys = gaussian_rows<Real>(inputs, 1000, 4, 0.1);
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
  c.queries = {sphere_rows<Real>(inputs, 512, 4, 1)};
  c.keys = sphere_rows<Real>(inputs, 512, 4, 1);
  c.queries[0].scale_row(3, 50);
  c.keys.scale_row(510, 50);
  c.far = causal(512, 64);
  const LowRankSteps no_shift{.shift = false};
  const auto fit = c.fit(no_shift);
  ASSERT_TRUE(fit) << c.reason;
  EXPECT_NEAR(fit->radius, 1, 1e-2);
  EXPECT_NEAR(fit->plain_radius, 2500, 1);
  EXPECT_FALSE(c.fit({.shift = false, .near_field = false}));
  // In the middle it does.
  c.keys.scale_row(100, 4);
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
    for (RowMatrix<Real>* x : {&c.queries.emplace_back(), &c.keys}) {
      *x = gaussian_rows<Real>(inputs, n, d, 0.3);
      x->decay(decay);
      x->move(gaussian_rows<Real>(inputs, 1, d, 0.7));
    }
    for (const Index i : missed) {
      c.keys.set_row(i, gaussian_rows<Real>(inputs, 1, d, 1.5));
      c.queries[0].set_row(i + 700, gaussian_rows<Real>(inputs, 1, d, 1.5));
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
  c.queries = {sphere_rows<Real>(inputs, n, 4, 1)};
  c.keys = gaussian_rows<Real>(inputs, n, 4, 0.03);
  c.keys.move_column(0, 1);
  c.far = full(n, n);
  const auto shifted = c.fit();
  ASSERT_TRUE(shifted) << c.reason;
  EXPECT_NE(shifted->key_shift, Centre::none);
  EXPECT_LT(shifted->radius, 0.3);
  c.keys.scale_row(1500, -1);
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
  c.queries = {gaussian_rows<Real>(inputs, 2000, 1, 1e-3)};
  c.queries[0].move(-length);
  c.keys = gaussian_rows<Real>(inputs, 2000, 1, 5e-3);
  c.keys.move(1);
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
    const RowMatrix<Real> mix = gaussian_rows<Real>(inputs, d, d);
    const auto rows = [&] {
      RowMatrix<Real> x = gaussian_rows<Real>(inputs, 600, d, 0.3);
      x.decay(0.6);
      return times(x, mix);
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
        const std::vector<double> q = shifted(c.queries[0], i, p.query_shift),
                                  k = shifted(c.keys, j, p.key_shift);
        const double approximate = dot(projected(p.query_axes, q), projected(p.key_axes, k)),
                     exact = dot(q, k);
        worst = std::max(worst, std::abs(approximate - exact));
      }
    EXPECT_LE(worst, fit->certificate.axes_error);
    missed = std::max(missed, worst);
  }
  EXPECT_GT(missed, 0) << "no axes, no test";
}

TYPED_TEST(LowRankTest, ProjectionsAreNumbersOfTheRowsArithmetic) {
  // Rows are moved by them as they are.
  using Real = TypeParam;
  Inputs inputs(24);
  int shifts = 0, axes = 0;
  for (int turn = 0; turn < 10; ++turn) {
    Case<Real> c;
    for (RowMatrix<Real>* x : {&c.queries.emplace_back(), &c.keys}) {
      *x = gaussian_rows<Real>(inputs, 500, 6, 0.5);
      x->decay(0.4);
      *x = times(*x, gaussian_rows<Real>(inputs, 6, 6, 0.5));
      x->move(gaussian_rows<Real>(inputs, 1, 6, 0.5));
    }
    c.far = full(500, 500);
    const auto fit = c.fit();
    if (!fit) continue;
    const Projection& p = fit->projection;
    for (const auto* numbers : {&p.key_shift, &p.query_shift, &p.key_axes, &p.query_axes})
      for (const double x : *numbers) EXPECT_EQ(x, static_cast<double>(static_cast<Real>(x)));
    shifts += fit->key_shift != Centre::none && fit->query_shift != Centre::none;
    axes += fit->rank < fit->simplex_rank;
  }
  EXPECT_GT(shifts, 3);
  EXPECT_GT(axes, 3);
}

TYPED_TEST(LowRankTest, AShiftThatFailsTakesNeitherTheOtherNorTheAxesWithIt) {
  // Along one of 16 axes both sides are long and off the origin by 1, along all others short; a row that no
  // sample meets lies half as far again on the other side.
  using Real = TypeParam;
  Inputs inputs(18);
  Case<Real> c;
  const auto rows = [&] {
    RowMatrix<Real> x = gaussian_rows<Real>(inputs, 4000, 16, 1e-3);
    const RowMatrix<Real> along = gaussian_rows<Real>(inputs, 4000, 1, 0.1);
    for (Index i = 0; i < 4000; ++i) x(i, 3) = 1 + along(i, 0);
    return x;
  };
  c.queries = {rows()};
  c.keys = rows();
  c.far = full(4000, 4000);
  const auto both = c.fit();
  ASSERT_TRUE(both) << c.reason;
  EXPECT_NE(both->key_shift, Centre::none);
  EXPECT_NE(both->query_shift, Centre::none);
  c.keys.scale_row(2001, -1.5);
  const auto one = c.fit();
  ASSERT_TRUE(one) << c.reason;
  EXPECT_EQ(one->key_shift, Centre::none);
  EXPECT_NE(one->query_shift, Centre::none);
  EXPECT_LT(one->radius, 0.8);
  EXPECT_LT(one->rank, 20);
  EXPECT_LE(observed_error(c, *one, inputs, {2001}), one->certificate.relative_error + 1e-11);
  c.queries[0].scale_row(2001, -1.5);
  const auto none = c.fit();
  ASSERT_TRUE(none) << c.reason;
  EXPECT_EQ(none->query_shift, Centre::none);
  EXPECT_LT(none->rank, none->simplex_rank / 20);
}

TYPED_TEST(LowRankTest, NothingFarNeedsNoRank) {
  using Real = TypeParam;
  Inputs inputs(7);
  Case<Real> c;
  c.queries = {gaussian_rows<Real>(inputs, 64, 4, 100)};
  c.keys = gaussian_rows<Real>(inputs, 64, 4, 100);
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
  c.queries = {sphere_rows<Real>(inputs, 100, 128, 1)};
  c.keys = sphere_rows<Real>(inputs, 100, 128, 1);
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
RowSource<Real> counted(const RowMatrix<Real>& x, Index& reads) {
  RowSource<Real> source = source_of(x);
  source.read = [&reads, read = source.read](Range rows, bool turned, Real* to) {
    reads += rows.size();
    read(rows, turned, to);
  };
  return source;
}

/// The rank that a refusal names; 0 if none.
double refused_rank(const std::string& reason) {
  const std::string before = "a rank of ";
  const auto at = reason.find(before);
  return at == std::string::npos ? 0 : std::stod(reason.substr(at + before.size()));
}

TYPED_TEST(LowRankTest, WhatDoesNotPayIsRefusedByAFewRowsWithTheFigures) {
  using Real = TypeParam;
  Inputs inputs(14);
  for (const bool decays : {false, true}) {
    Case<Real> c;
    c.queries.resize(2);
    for (RowMatrix<Real>* x : {&c.queries[0], &c.queries[1], &c.keys}) {
      *x = sphere_rows<Real>(inputs, 5000, 16, decays ? 2 : 1);
      if (decays) x->decay(0.8);
    }
    c.keys.scale_row(65, 3);  // in a sample of 312 rows, not in one of 128
    c.far = full(5000, 5000);
    Index query_reads = 0, key_reads = 0;
    const typename Case<Real>::Sides sides(
        {counted(c.queries[0], query_reads), counted(c.queries[1], query_reads)}, counted(c.keys, key_reads),
        c.far);
    c.request.most_rank = 0;
    EXPECT_FALSE(sides.choose(c.request, c.reason));
    EXPECT_LE(query_reads, 128);
    EXPECT_LE(key_reads, 128);
    const double first = refused_rank(c.reason);
    EXPECT_GT(first, 1) << c.reason;
    EXPECT_NE(c.reason.find("too much work"), std::string::npos) << c.reason;
    // A little less than the first few rows ask for is refused by them too.
    c.request.most_rank = 0.999 * first;
    EXPECT_FALSE(sides.choose(c.request, c.reason));
    EXPECT_LE(query_reads, 2 * 128);
    EXPECT_LE(key_reads, 2 * 128);
    EXPECT_EQ(refused_rank(c.reason), first) << c.reason;
    // More rows are sampled where the first leave hope.
    c.request.most_rank = 1.001 * first;
    EXPECT_FALSE(sides.choose(c.request, c.reason));
    EXPECT_GT(key_reads, 3 * 128);
    EXPECT_LE(query_reads, 3 * 128 + 512);
    EXPECT_LE(key_reads, 3 * 128 + 512);
    EXPECT_GT(refused_rank(c.reason), 1.001 * first) << c.reason;
    EXPECT_NE(c.reason.find("too much work"), std::string::npos) << c.reason;
  }
}

TYPED_TEST(LowRankTest, UnboundedRowsAreRefusedWhereNoRankPays) {
  using Real = TypeParam;
  constexpr double kAnyRank = std::numeric_limits<double>::max();
  Inputs inputs(15);
  for (const double sigma : {10.0, 100.0, 1e6}) {
    Case<Real> c;
    c.queries = {gaussian_rows<Real>(inputs, 1000, 8, sigma)};
    c.keys = gaussian_rows<Real>(inputs, 1000, 8, sigma);
    c.far = full(1000, 1000);
    c.request.most_rank = kAnyRank;
    EXPECT_FALSE(c.choose());
    EXPECT_NE(c.reason.find("entries"), std::string::npos) << c.reason;
  }
  // Rounding would do, but there is no polynomial.
  Case<double> c;
  c.queries = {sphere_rows<double>(inputs, 1000, 1, 1)};
  c.keys = sphere_rows<double>(inputs, 1000, 1, 15);
  c.far = full(1000, 1000);
  c.request.tolerance = 1e-5;
  c.request.most_rank = kAnyRank;
  EXPECT_FALSE(c.choose());
  EXPECT_NE(c.reason.find("too large for any polynomial"), std::string::npos) << c.reason;
}

TYPED_TEST(LowRankTest, WhatWouldPayIsNotRefused) {
  // The rank that a sample promises is hardly above that of the fit, and that of the first few rows never is.
  using Real = TypeParam;
  constexpr Index n = 900;
  Inputs inputs(16);
  const auto draw = [&](int kind, Index d) {
    const double size = 1 / std::sqrt(static_cast<double>(d));
    RowMatrix<Real> x = gaussian_rows<Real>(inputs, n, d, kind == 3 ? 0.05 * size : size);
    if (kind == 1) x = sphere_rows<Real>(inputs, n, d, 1);
    if (kind == 2) x.move(gaussian_rows<Real>(inputs, 1, d, 3 * size));
    if (kind == 3)  // few points
      for (Index i = 0; i < n; ++i) x(i, i % 3 * (d - 1) / 2) += 1;
    if (kind == 4 || kind == 5) {
      for (Index l = 0; l < d; ++l)
        x.scale_column(l, std::pow(kind == 4 ? 0.5 : 0.8, static_cast<double>(l)) / size);
      x = times(x, gaussian_rows<Real>(inputs, d, d, size));
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
        const auto fit = c.fit();
        if (!fit) continue;
        ++fits;
        const auto text = testing::Message() << "kinds " << of_queries << " and " << of_keys << ", d " << d;
        c.request.most_rank = 4 * fit->rank;
        const auto again = c.fit();
        ASSERT_TRUE(again) << text << ": " << c.reason;
        EXPECT_EQ(again->rank, fit->rank) << text;
        Index query_reads = 0, key_reads = 0;
        const typename Case<Real>::Sides sides({counted(c.queries[0], query_reads)},
                                               counted(c.keys, key_reads), c.far);
        c.request.most_rank = 1.01 * fit->rank;
        if (!sides.choose(c.request, c.reason)) {
          EXPECT_GT(key_reads, 128) << text << ": refused by the first few rows, " << c.reason;
        }
      }
  EXPECT_GT(fits, 40);
  std::cout << fits << " fits\n";
}

TYPED_TEST(LowRankTest, DecayingSpectraInManyDimensionsAreNotRefused) {
  using Real = TypeParam;
  Inputs inputs(17);
  Case<Real> c;
  for (RowMatrix<Real>* x : {&c.queries.emplace_back(), &c.keys}) {
    *x = gaussian_rows<Real>(inputs, 4000, 64);
    x->decay(0.5);
    *x = times(*x, gaussian_rows<Real>(inputs, 64, 64, 0.125));
  }
  c.request.scale = 0.1;
  for (const auto& far : {full(4000, 4000), causal(4000, 192)}) {
    c.far = far;
    c.request.most_rank = 999;
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
  c.queries = {RowMatrix<Real>(10, 2, std::numeric_limits<Real>::max() / 4)};
  c.keys = c.queries[0];
  c.far = full(10, 10);
  EXPECT_FALSE(c.fit());
  EXPECT_FALSE(c.reason.empty());
}

}  // namespace
}  // namespace fastrope_test
