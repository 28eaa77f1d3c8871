// What a step of recurrent attention reads: sums of the queries of a group over the state and the recent
// tokens.
//
// Queries that share a state are done a few at a time, values along the lanes, so that what is loaded is
// loaded once for all of them. Steps are bound by the bytes of the state, which is fetched ahead.
#pragma once

#include <algorithm>
#include <type_traits>

#include "fastrope/core/index.hpp"
#include "fastrope/core/simd.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/exact/row_kernels.hpp"
#include "fastrope/exact/rows_ahead.hpp"
#include "fastrope/polynomial/monomials.hpp"
#include "fastrope/polynomial/recurrent.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// s.features [count, columns] = those of the terms from `first` on, after those of the terms before.
template <class Real>
void RecurrentAttention<Real>::make_features(const MonomialSet& set, Index first, Index count,
                                             const StepScratch& s) const {
  const Index width = columns();
  const auto evaluate = [&](const Monomial& monomial, Real* feature) {
    Real* kept = s.ancestors + monomial.degree * width;
    for (Index i = 0; i < width; i += simd::kLanes<Real>) {
      const auto value =
          simd::mul(simd::load(kept - width + i), simd::load(s.queries + monomial.variable * width + i));
      simd::store<Real>(value, kept + i);
      simd::store<Real>(value, feature + i);
    }
  };
  for (Index t = 0; t < count; ++t) {
    Real* feature = s.features + t * width;
    const Range inner = set.inner_before(first + t);
    for (Index a = inner.begin; a < inner.end; ++a)
      evaluate(set.inner()[static_cast<std::size_t>(a)], feature);
    evaluate(set.terms()[static_cast<std::size_t>(first + t)], feature);
  }
}

/// s.sums = the queries' sums over the state: chains of kChain terms in Real, added in double. Queries that
/// share the state share what is loaded of it: values are along the lanes for a few queries at a time, and
/// the queries along the lanes for the ones. The next chain is fetched meanwhile.
template <class Real>
void RecurrentAttention<Real>::add_state(Index u, const StepScratch& s) const {
  using namespace simd;
  constexpr Index kLine = kCacheLine / sizeof(Real);
  const Index together = group(), width = columns(), padded = padded_channels();
  const MonomialSet& monomials = *units_[static_cast<std::size_t>(u)].monomials;
  const double* constant = state_.data() + u * rank() * channels();
  for (Index h = 0; h < together * monomials.constants(); ++h)
    std::copy_n(constant, channels(), s.sums + h * padded);
  std::fill_n(s.totals, width, monomials.constants() > 0 ? constant[d_v_] : 0.0);
  std::fill_n(s.ancestors, width, Real{1});
  // Lines of the next chain that are fetched for a term of this one, by each of so many tiles.
  const Index tiles =
      ceil_div(together, kMostQueries) * std::max<Index>(1, d_v_ / (kTogether * kLanes<Real>));
  const Index lines = ceil_div(ceil_div(channels(), kLine), tiles);
  for (Index first = monomials.constants(); first < rank(); first += kChain) {
    const Index count = std::min(kChain, rank() - first);
    make_features(monomials, first, count, s);
    const Real* rows = rounded_.data() + u * rounded_stride() + first * channels();
    Index ahead = count * channels();
    const Index end = 2 * ahead;
    // Some queries' sums of some vectors of values, from c on.
    const auto add_tile = [&](auto queries, auto vectors, Index h, Index c) {
      constexpr int kQueries = queries, kVecs = vectors;
      Vec<Real> sum[kQueries][kVecs];
#pragma GCC unroll 4
      for (int r = 0; r < kQueries; ++r)
#pragma GCC unroll 4
        for (int m = 0; m < kVecs; ++m) sum[r][m] = zero<Real>();
      for (Index t = 0; t < count; ++t) {
        for (Index l = 0; l < lines && ahead < end; ++l, ahead += kLine) prefetch(rows, ahead);
        Vec<Real> row[kVecs];
#pragma GCC unroll 4
        for (int m = 0; m < kVecs; ++m) row[m] = simd::load(rows + t * channels() + c + m * kLanes<Real>);
#pragma GCC unroll 4
        for (int r = 0; r < kQueries; ++r) {
          const Vec<Real> feature = set(s.features[t * width + h + r]);
#pragma GCC unroll 4
          for (int m = 0; m < kVecs; ++m) sum[r][m] = fma(feature, row[m], sum[r][m]);
        }
      }
#pragma GCC unroll 4
      for (int r = 0; r < kQueries; ++r) {
        Real part[kVecs * kLanes<Real>];
#pragma GCC unroll 4
        for (int m = 0; m < kVecs; ++m) store<Real>(sum[r][m], part + m * kLanes<Real>);
        double* to = s.sums + (h + r) * padded + c;
        for (Index m = 0; m < kVecs * kLanes<Real>; m += kLanes<double>)
          store<double>(add(simd::load(to + m), load_as<double>(part + m)), to + m);
      }
    };
    detail::for_query_tiles(together, [&](auto queries, Index h) {
      Index c = 0;
      for (; c + kTogether * kLanes<Real> <= d_v_; c += kTogether * kLanes<Real>)
        add_tile(queries, std::integral_constant<int, kTogether>{}, h, c);
      for (; c < d_v_; c += kLanes<Real>) add_tile(queries, std::integral_constant<int, 1>{}, h, c);
    });
    for (Index h = 0; h < width; h += kLanes<Real>) {
      Vec<Real> sum = zero<Real>();
      for (Index t = 0; t < count; ++t)
        sum = fma(simd::load(s.features + t * width + h), set(rows[t * channels() + d_v_]), sum);
      Real part[kLanes<Real>];
      store<Real>(sum, part);
      for (Index r = 0; r < kLanes<Real>; ++r) s.totals[h + r] += static_cast<double>(part[r]);
    }
  }
  for (Index h = 0; h < together; ++h) s.sums[h * padded + d_v_] = s.totals[h];
}

/// s.sums of the queries += those over the recent tokens `seen`, in double and in units of e^level.
template <class Real>
void RecurrentAttention<Real>::add_recent(Index u, Range seen, double level, const StepScratch& s) const {
  using namespace simd;
  constexpr Index kWide = kTogether * kLanes<double>;
  static_assert(kBlock % kWide == 0);
  const Real* keys = recent_columns_.data() + u * kBlock * d_;
  const Real* values = recent_values_.data() + u * kBlock * value_stride();
  const RecentGates& gates = recent_gates_[static_cast<std::size_t>(u)];
  for (Index j = seen.begin; j < seen.end; ++j) s.decays[j] = gated_ ? decay(gates.level(j), level) : 1;
  detail::for_query_tiles(group(), [&](auto queries, Index h) {
    constexpr int kQueries = queries;
    for (Index j = round_down(seen.begin, kWide); j < seen.end; j += kWide) {
      Vec<double> x[kQueries][kTogether];
#pragma GCC unroll 4
      for (int r = 0; r < kQueries; ++r)
#pragma GCC unroll 4
        for (int m = 0; m < kTogether; ++m) x[r][m] = zero<double>();
      for (Index c = 0; c < d_; ++c) {
        Vec<double> key[kTogether];
#pragma GCC unroll 4
        for (int m = 0; m < kTogether; ++m)
          key[m] = load_as<double>(keys + c * kBlock + j + m * kLanes<double>);
#pragma GCC unroll 4
        for (int r = 0; r < kQueries; ++r) {
          const Vec<double> query = set(static_cast<double>(s.queries[c * columns() + h + r]));
#pragma GCC unroll 4
          for (int m = 0; m < kTogether; ++m) x[r][m] = fma(query, key[m], x[r][m]);
        }
      }
#pragma GCC unroll 4
      for (int r = 0; r < kQueries; ++r)
#pragma GCC unroll 4
        for (int m = 0; m < kTogether; ++m)
          store<double>(x[r][m], s.weights + r * kBlock + j + m * kLanes<double>);
    }
    for (int r = 0; r < kQueries; ++r) {
      double total = 0;
      for (Index j = seen.begin; j < seen.end; ++j) {
        double& weight = s.weights[r * kBlock + j];
        weight = problem_.kernel(weight) * s.decays[j];
        total += weight;
      }
      s.sums[(h + r) * padded_channels() + d_v_] += total;
    }
    // Of some vectors of channels, from c on.
    const auto add_values = [&](auto vectors, Index c) {
      constexpr int kVecs = vectors;
      Vec<double> sum[kQueries][kVecs];
      double* to = s.sums + h * padded_channels() + c;
#pragma GCC unroll 4
      for (int r = 0; r < kQueries; ++r)
#pragma GCC unroll 4
        for (int m = 0; m < kVecs; ++m)
          sum[r][m] = simd::load(to + r * padded_channels() + m * kLanes<double>);
      for (Index j = seen.begin; j < seen.end; ++j) {
        Vec<double> value[kVecs];
#pragma GCC unroll 4
        for (int m = 0; m < kVecs; ++m)
          value[m] = load_as<double>(values + j * value_stride() + c + m * kLanes<double>);
#pragma GCC unroll 4
        for (int r = 0; r < kQueries; ++r) {
          const Vec<double> weight = set(s.weights[r * kBlock + j]);
#pragma GCC unroll 4
          for (int m = 0; m < kVecs; ++m) sum[r][m] = fma(weight, value[m], sum[r][m]);
        }
      }
#pragma GCC unroll 4
      for (int r = 0; r < kQueries; ++r)
#pragma GCC unroll 4
        for (int m = 0; m < kVecs; ++m)
          store<double>(sum[r][m], to + r * padded_channels() + m * kLanes<double>);
    };
    Index c = 0;
    for (; c + kWide <= value_stride(); c += kWide) add_values(std::integral_constant<int, kTogether>{}, c);
    for (; c < value_stride(); c += kLanes<double>) add_values(std::integral_constant<int, 1>{}, c);
  });
}

}  // namespace fastrope::inline FASTROPE_TARGET
