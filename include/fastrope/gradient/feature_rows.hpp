// Feature rows: the monomials of a block of rows, with the rows as vector lanes, and the way back from the
// gradients of monomials to those of rows.
//
//     f(x) = sum_alpha c_alpha x^alpha (S(alpha) . g),   df/dx_l = sum_alpha c_alpha alpha_l x^(alpha - e_l)
//     S(alpha) . g
// A monomial is its parent's times one variable, so what reaches it goes on to both: two multiply-adds a
// monomial, from the last, whose children are done, to the first. All of them are kept: 16 bytes a monomial
// and row. All is double: a state of many rows is summed without the library's folds (polynomial/state.hpp),
// and what that rounds is far below any tolerance.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "fastrope/core/index.hpp"
#include "fastrope/core/simd.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/workspace.hpp"
#include "fastrope/exact/tile_kernel.hpp"
#include "fastrope/polynomial/features.hpp"
#include "fastrope/polynomial/monomials.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// Sums over rows of their monomials times channels of theirs: [rank, stride], with room for whole tiles.
struct MonomialSums {
  Index channels;
  Index stride;
  Index size;
  double* data;

  MonomialSums(Index rank, Index of_channels, Workspace& workspace)
      : channels(of_channels),
        stride(round_up(of_channels, simd::kLanes<double>)),
        size(round_up(rank, kRowMultiple) * stride + kRowMultiple),
        data(workspace.take<double>(size).data()) {}

  void clear() const { std::fill_n(data, size, 0.0); }
};

/// to [kWidth] += a [kWidth] b [kWidth].
template <Index kWidth>
HWY_INLINE void add_products(const double* a, const double* b, double* to) {
  using namespace simd;
#pragma GCC unroll 8
  for (Index i = 0; i < kWidth; i += kLanes<double>)
    store<double>(fma(load(a + i), load(b + i), load(to + i)), to + i);
}
/// to [kWidth] += a [kWidth] b.
template <Index kWidth>
HWY_INLINE void add_scaled(const double* a, double b, double* to) {
  using namespace simd;
#pragma GCC unroll 8
  for (Index i = 0; i < kWidth; i += kLanes<double>)
    store<double>(fma(load(a + i), set(b), load(to + i)), to + i);
}

/// One worker's block of kWidth rows x, given as columns [variables, kWidth].
class FeatureRows {
 public:
  static constexpr Index kWidth = kTileCols<double>;

  FeatureRows(const MonomialSet& set, Workspace& workspace)
      : set_(&set),
        rank_(set.rank()),
        features_(workspace.take<double>(round_up(rank_, kRowMultiple) * kWidth).data()),
        products_(workspace.take<double>(round_up(rank_, kRowMultiple) * kWidth).data()) {}

  void make(const double* x) const {
    std::fill_n(features_, kWidth, 1.0);
    for (Index t = 1; t < rank_; ++t)
      detail::multiply_rows<kWidth>(features_ + term(t).parent * kWidth, x + term(t).variable * kWidth,
                                    features_ + t * kWidth);
    std::fill(features_ + rank_ * kWidth, features_ + round_up(rank_, kRowMultiple) * kWidth, 0.0);
  }

  /// Adds the rows that features were made of, with channels [kWidth, stride].
  void add_to(const MonomialSums& sums, const double* channels) const {
    multiply<true, double>(rank_, sums.stride, kWidth, BroadcastOperand<double>{features_, kWidth, 1},
                           channels, sums.stride, sums.data, sums.stride);
  }

  /// to [channels, kWidth] = sum_alpha factors[alpha] x^alpha sums(alpha). Requires room for whole tiles.
  void apply(const std::vector<double>& factors, const MonomialSums& sums, double* to) const {
    using namespace simd;
    for (Index t = 0; t < rank_; ++t)
      for (Index i = 0; i < kWidth; i += kLanes<double>)
        store<double>(mul(load(features_ + t * kWidth + i), set(factors[static_cast<std::size_t>(t)])),
                      products_ + t * kWidth + i);
    multiply<false, double>(sums.channels, kWidth, rank_, BroadcastOperand<double>{sums.data, 1, sums.stride},
                            products_, kWidth, to, kWidth);
  }

  /// d_x [variables, kWidth] = the gradient of sum_alpha factors[alpha] x^alpha (sums(alpha) . g), g
  /// [channels, kWidth], by the x that features were made of.
  void pull_back(const std::vector<double>& factors, const MonomialSums& sums, const double* g,
                 const double* x, double* d_x) const {
    using namespace simd;
    multiply<false, double>(rank_, kWidth, sums.channels, BroadcastOperand<double>{sums.data, sums.stride, 1},
                            g, kWidth, products_, kWidth);
    for (Index t = 0; t < rank_; ++t)
      for (Index i = 0; i < kWidth; i += kLanes<double>) {
        double* product = products_ + t * kWidth + i;
        store<double>(mul(load(product), set(factors[static_cast<std::size_t>(t)])), product);
      }
    std::fill_n(d_x, set_->variables() * kWidth, 0.0);
    for (Index t = rank_ - 1; t > 0; --t) {
      const Index parent = term(t).parent, variable = term(t).variable;
      const double* product = products_ + t * kWidth;
      add_products<kWidth>(product, features_ + parent * kWidth, d_x + variable * kWidth);
      add_products<kWidth>(product, x + variable * kWidth, products_ + parent * kWidth);
    }
  }

 private:
  const Monomial& term(Index t) const { return set_->terms()[static_cast<std::size_t>(t)]; }

  const MonomialSet* set_;
  Index rank_;
  double* features_;  // [rank, kWidth], with room for whole tiles, here and below
  double* products_;  // [rank, kWidth]
};

}  // namespace fastrope::inline FASTROPE_TARGET
