// Feature state: what the keys leave behind, from which any row's sums over them follow.
//
//     state [rank, d_v + 1] = c_alpha sum_j w_j y_j^alpha [v_j, 1],   c_alpha = c_|alpha| |alpha|! / alpha!
//     sum_j w_j P(x_i.y_j) [v_j, 1] = sum_alpha x_i^alpha state(alpha)
// Sums over a block of keys are of the arithmetic of the call, those over blocks of double, so that rounding
// does not grow with the number of keys, and a block that leaves is taken out as it came in; rows read a
// rounded copy. rounding.hpp has what all that may be off by. Features of a few terms at a time are made in
// the first-level cache and consumed by the tile kernels. Keys are laid out along the depth of the first
// product, query rows along the columns of the second, so that the ones are a row like any other there; here
// they are a sum of features, and values that would leave lanes empty share vectors among neighbouring keys.
// Cost 2 rank (d_v + 2) flops for each key and for each query row.
#pragma once

#include <algorithm>
#include <array>
#include <span>

#include "fastrope/core/index.hpp"
#include "fastrope/core/simd.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/workspace.hpp"
#include "fastrope/exact/packing.hpp"
#include "fastrope/exact/tile_kernel.hpp"
#include "fastrope/polynomial/features.hpp"
#include "fastrope/polynomial/monomials.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// Features that are made at a time.
inline constexpr Index kFeatureBlock = 2 * kRowMultiple;
/// Keys of a block: whole panels.
template <class Real>
inline constexpr Index kKeyBlock = std::max<Index>(PackedKeys<Real>::kWidth, 1024 / sizeof(Real));
/// Rows of a block of queries: with the vectors of kMostChannels channels, as many as the registers hold.
template <class Real>
inline constexpr Index kQueryBlock = (simd::kRegisters >= 32 ? 3 : 2) * simd::kLanes<Real>;
inline constexpr Index kMostChannels = simd::kRegisters >= 32 ? 9 : 6;
/// Blocks of queries that read a state together, which may be larger than any cache.
inline constexpr Index kQueryBlocks = 4;

/// Neighbouring keys whose values share vectors where d_v alone would leave lanes empty: what is repeated
/// over a vector at once, 16 bytes.
template <class Real>
inline constexpr Index kKeyGroup = std::min<Index>(16 / sizeof(Real), simd::kLanes<Real>);

/// How values of d_v columns are laid out for the state: in groups of kKeyGroup keys, or key by key.
template <class Real>
struct ValueLayout {
  Index group;   ///< kKeyGroup or 1
  Index stride;  ///< elements between groups, whole vectors

  explicit constexpr ValueLayout(Index d_v) {
    const Index grouped = round_up(d_v * kKeyGroup<Real>, simd::kLanes<Real>);
    const Index plain = round_up(d_v, simd::kLanes<Real>);
    group = grouped < kKeyGroup<Real> * plain ? kKeyGroup<Real> : 1;
    stride = group > 1 ? grouped : plain;
  }
};

/// Keys projected for one unit's features, block after block, with what their values look like to the state.
template <class Real>
struct KeyBlocks {
  Index count = 0;  ///< whole panels
  Index variables = 0;
  Index d_v = 0;
  ValueLayout<Real> layout = ValueLayout<Real>(0);
  Real* y = nullptr;             ///< [blocks, variables, kKeyBlock]
  Real* weight = nullptr;        ///< [blocks, kKeyBlock]
  const Real* values = nullptr;  ///< [keys / group, stride], a group's keys side by side for each column

  const Real* y_of(Index block) const { return y + block * variables * kKeyBlock<Real>; }
  const Real* weight_of(Index block) const { return weight + block * kKeyBlock<Real>; }
  const Real* values_of(Index block) const {
    return values + block * kKeyBlock<Real> / layout.group * layout.stride;
  }
};

/// A block of query rows and what it reads off a state.
template <class Real>
struct StateQueries {
  Real* x;          // [variables, kQueryBlock]
  Real* ancestors;  // [degree + 1, kQueryBlock], scratch
  Real* exponents;  // [kQueryBlock], of the sums
  Real* sums;       // [d_v + 1 and padding, kQueryBlock]
};

/// One worker's scratch for both products.
template <class Real>
struct FeatureScratch {
  Real* features;   // [kFeatureBlock, the wider block], or of queries [kChain, kQueryBlock]
  Real* ancestors;  // [degree + 1, kKeyBlock]
  Real* products;   // [kFeatureBlock, ValueLayout::stride], a block's sums with values
  Real* ones;       // [kFeatureBlock, lanes], the same with ones
  Real* shifted;    // [d, the wider block]
  Real* norms;      // [kQueryBlock], of x
  double* errors;   // [kQueryBlock], of the rows' sums
  std::array<StateQueries<Real>, kQueryBlocks> queries;

  FeatureScratch(Index d, Index variables, Index degree, Index d_v, Workspace& workspace)
      : features(workspace.take<Real>(kFeatureBlock * kWider).data()),
        ancestors(workspace.take<Real>((degree + 1) * kKeyBlock<Real>).data()),
        products(workspace.take<Real>(kFeatureBlock * ValueLayout<Real>(d_v).stride).data()),
        ones(workspace.take<Real>(kFeatureBlock * simd::kLanes<Real>).data()),
        shifted(workspace.take<Real>(d * kWider).data()),
        norms(workspace.take<Real>(kQueryBlock<Real>).data()),
        errors(workspace.take<double>(kQueryBlock<Real>).data()) {
    const auto take = [&](Index rows) { return workspace.take<Real>(rows * kQueryBlock<Real>).data(); };
    for (StateQueries<Real>& block : queries)
      block = {take(variables), take(degree + 1), take(1), take(round_up(d_v + 1, simd::kLanes<Real>))};
  }

 private:
  static constexpr Index kWider = std::max(kKeyBlock<Real>, kQueryBlock<Real>);
  static_assert(kChain * kQueryBlock<Real> <= kFeatureBlock * kWider);
};

namespace detail {

/// products = features [rows, kKeyBlock] values of a block of keys.
template <class Real>
void multiply_values(Index rows, const KeyBlocks<Real>& keys, Index block, const Real* features,
                     Real* products) {
  constexpr Index kWidth = kKeyBlock<Real>, kGroup = kKeyGroup<Real>;
  const Index depth = std::min(kWidth, keys.count - block * kWidth) / keys.layout.group;
  const Index stride = keys.layout.stride;
  const BroadcastOperand<Real> a{features, kWidth, keys.layout.group};
  if (keys.layout.group == 1)
    multiply<false, Real>(rows, stride, depth, a, keys.values_of(block), stride, products, stride);
  else
    multiply<false, Real, kGroup>(rows, stride, depth, a, keys.values_of(block), stride, products, stride);
}

/// state [d_v + 1] += factor [products, ones] of one term; products: [stride], overwritten.
template <class Real>
void fold_term(double factor, Index d_v, const ValueLayout<Real>& layout, Real* products, const Real* ones,
               double* state) {
  using namespace simd;
  constexpr Index kGroup = kKeyGroup<Real>;
  state[d_v] += factor * static_cast<double>(reduce_add<Real>(load(ones)));
  Index c = 0;
  if (layout.group == 1) {
    for (; c + kLanes<double> <= d_v; c += kLanes<double>)
      store<double>(fma(load_as<double>(products + c), set(factor), load(state + c)), state + c);
    for (; c < d_v; ++c) state[c] += factor * static_cast<double>(products[c]);
    return;
  }
  constexpr Index kColumns = kLanes<Real> / kGroup;  // of a vector
  for (; c < d_v; c += kColumns, products += kLanes<Real>) {
    store<Real>(add_groups<kGroup, Real>(load(products)), products);
    if (c + kColumns <= d_v)
      add_scaled<kColumns>(factor, products, state + c);
    else
      for (Index i = 0; i < d_v - c; ++i) state[c + i] += factor * static_cast<double>(products[i]);
  }
}

}  // namespace detail

/// Adds the keys of some blocks, those of block b times factor_of(b), to the terms [terms.begin, terms.end)
/// of a state [rank, d_v + 1]. Requires terms.begin a multiple of kFeatureBlock. What is added for a block
/// does not depend on other blocks, but for its factor.
template <class Real, class FactorOf>
void add_keys(const MonomialSet& set, std::span<const double> coefficients, const KeyBlocks<Real>& keys,
              Range blocks, Range terms, const FeatureScratch<Real>& scratch, FactorOf&& factor_of,
              double* state) {
  constexpr Index kWidth = kKeyBlock<Real>;
  const Index channels = keys.d_v + 1;
  for (Index f = terms.begin; f < terms.end; f += kFeatureBlock) {
    const Range block{f, std::min(f + kFeatureBlock, terms.end)};
    const Index rows = round_up(block.size(), kRowMultiple);
    std::fill(scratch.features + block.size() * kWidth, scratch.features + rows * kWidth, Real{0});
    for (Index b = blocks.begin; b < blocks.end; ++b) {
      std::fill_n(scratch.ones, rows * simd::kLanes<Real>, Real{0});
      find_ancestors<kWidth>(set, f, keys.y_of(b), keys.weight_of(b), scratch.ancestors);
      evaluate_features<kWidth>(set, block, keys.y_of(b), scratch.ancestors, scratch.features, scratch.ones);
      detail::multiply_values(rows, keys, b, scratch.features, scratch.products);
      const double factor = factor_of(b);
      for (Index t = block.begin; t < block.end; ++t) {
        const Monomial& term = set.terms()[static_cast<std::size_t>(t)];
        detail::fold_term(factor * coefficients[static_cast<std::size_t>(term.degree)] * term.multinomial,
                          keys.d_v, keys.layout, scratch.products + (t - block.begin) * keys.layout.stride,
                          scratch.ones + (t - block.begin) * simd::kLanes<Real>, state + t * channels);
      }
    }
  }
}

/// The terms of a state whose sums of squares are kept together.
inline constexpr Index kTermBlock = 4 * kFeatureBlock;

/// The rounded copy of the terms [terms.begin, terms.end) of a state [rank, d_v + 1], and squares [degree +
/// 1, d_v + 1] = sum over those of degree p of state(alpha)^2 alpha! / p!.
template <class Real>
void round_state(const MonomialSet& set, Index channels, Range terms, const double* state, Real* rounded,
                 double* squares) {
  using namespace simd;
  std::fill_n(squares, (set.degree() + 1) * channels, 0.0);
  for (Index t = terms.begin; t < terms.end; ++t) {
    const Monomial& term = set.terms()[static_cast<std::size_t>(t)];
    const double share = 1 / term.multinomial;
    const double* row = state + t * channels;
    double* sum = squares + term.degree * channels;
    Real* to = rounded + t * channels;
    Index c = 0;
    for (; c + kLanes<double> <= channels; c += kLanes<double>) {
      const Vec<double> x = load(row + c);
      store_as<Real, double>(x, to + c);
      store<double>(fma(mul(x, simd::set(share)), x, load(sum + c)), sum + c);
    }
    for (; c < channels; ++c) {
      to[c] = static_cast<Real>(row[c]);
      sum[c] += share * row[c] * row[c];
    }
  }
}

namespace detail {

/// The features of some neighbouring terms for a block of query rows, made one after the other.
template <class Real>
struct QueryFeatures {
  static constexpr Index kWidth = kQueryBlock<Real>;

  const MonomialSet& set;
  Range terms;      // no constant
  const Real* x;    // [variables, kWidth]
  Real* ancestors;  // [degree + 1, kWidth], of terms.begin
  Real* features;   // [terms.size(), kWidth]

  /// That of term f, those from terms.begin on being there.
  HWY_INLINE void make(Index f) const {
    if (f > terms.begin) pass_inner<kWidth>(set, set.inner_before(f), x, ancestors);
    const Monomial& term = set.terms()[static_cast<std::size_t>(f)];
    const Real* parent = set.inner().empty() && term.parent >= terms.begin
                             ? features + (term.parent - terms.begin) * kWidth
                             : ancestors + (term.degree - 1) * kWidth;
    multiply_rows<kWidth>(parent, x + term.variable * kWidth, features + (f - terms.begin) * kWidth);
  }
  /// The ancestors become those of terms.end.
  void go_on() const {
    if (terms.end == set.rank()) return;
    if (!set.inner().empty()) return pass_inner<kWidth>(set, set.inner_before(terms.end), x, ancestors);
    const auto all = set.terms();
    for (Index a = all[static_cast<std::size_t>(terms.end)].parent; a >= terms.begin;
         a = all[static_cast<std::size_t>(a)].parent)
      std::copy_n(features + (a - terms.begin) * kWidth, kWidth,
                  ancestors + all[static_cast<std::size_t>(a)].degree * kWidth);
  }
};

/// sums [kChannels, kQueryBlock] += the channels' part of the features and their rows of the state. Whoever
/// comes first makes them.
template <int kChannels, class Real>
void apply_channels(const QueryFeatures<Real>& of, bool makes, Index channels, const Real* state,
                    Real* sums) {
  using namespace simd;
  constexpr Index kStep = kLanes<Real>, kWidth = kQueryBlock<Real>;
  constexpr int kVecs = kWidth / kStep;
  Vec<Real> sum[kChannels][kVecs];
#pragma GCC unroll 16
  for (int c = 0; c < kChannels; ++c)
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) sum[c][v] = zero<Real>();
  for (Index f = of.terms.begin; f < of.terms.end; ++f) {
    if (makes) of.make(f);
    const Real* feature = of.features + (f - of.terms.begin) * kWidth;
    const Real* row = state + f * channels;
    Vec<Real> value[kVecs];
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) value[v] = load(feature + v * kStep);
#pragma GCC unroll 16
    for (int c = 0; c < kChannels; ++c) {
      const Vec<Real> s = set(row[c]);
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) sum[c][v] = fma(s, value[v], sum[c][v]);
    }
  }
#pragma GCC unroll 16
  for (int c = 0; c < kChannels; ++c)
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) {
      Real* to = sums + c * kWidth + v * kStep;
      store<Real>(add(load(to), sum[c][v]), to);
    }
}

/// The same for a number of channels that is not known before.
template <int kMost, class Real>
void apply_some_channels(Index some, const QueryFeatures<Real>& of, bool makes, Index channels,
                         const Real* state, Real* sums) {
  if (some == kMost)
    apply_channels<kMost>(of, makes, channels, state, sums);
  else if constexpr (kMost > 1)
    apply_some_channels<kMost - 1>(some, of, makes, channels, state, sums);
}

}  // namespace detail

/// sums [d_v + 1, kQueryBlock] = sum_alpha x^alpha state(alpha) for each block of query rows. Chains of
/// kChain terms are taken one after the other, so that their rows of the state are read once for all blocks;
/// of each, channels a few at a time, in numbers as equal as can be, whose sums stay in registers. features:
/// [kChain, kQueryBlock], scratch.
template <class Real>
void apply_state(const MonomialSet& set, Index d_v, const Real* state,
                 std::span<const StateQueries<Real>> blocks, Real* features) {
  using namespace simd;
  constexpr Index kWidth = kQueryBlock<Real>;
  const Index channels = d_v + 1, turns = ceil_div(channels, kMostChannels);
  for (const StateQueries<Real>& block : blocks) {
    std::fill_n(block.ancestors, kWidth, Real{1});
    pass_inner<kWidth>(set, set.inner_before(0), block.x, block.ancestors);
    std::fill_n(block.sums, channels * kWidth, Real{0});
  }
  for (Index first = set.constants(); first < set.rank(); first += kChain)
    for (const StateQueries<Real>& block : blocks) {
      const detail::QueryFeatures<Real> chain{
          set, {first, std::min(first + kChain, set.rank())}, block.x, block.ancestors, features};
      for (Index t = 0, c = 0; t < turns; ++t) {
        const Index some = (channels - c) / (turns - t);
        detail::apply_some_channels<kMostChannels>(some, chain, /*makes=*/t == 0, channels, state + c,
                                                   block.sums + c * kWidth);
        c += some;
      }
      chain.go_on();
    }
  // The constant term, the largest, is added once.
  for (const StateQueries<Real>& block : blocks)
    for (Index c = 0; c < channels * set.constants(); ++c)
      for (Index i = 0; i < kWidth; i += kLanes<Real>) {
        Real* to = block.sums + c * kWidth + i;
        store<Real>(add(load(to), simd::set(state[c])), to);
      }
}

}  // namespace fastrope::inline FASTROPE_TARGET
