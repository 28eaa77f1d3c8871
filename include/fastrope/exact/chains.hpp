// Chains: how many roundings the sums of the exact path take, tiles and decoding alike (the worse of both).
#pragma once

#include <algorithm>
#include <bit>
#include <type_traits>

#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/exact/attention.hpp"
#include "fastrope/exact/decode.hpp"
#include "fastrope/problem/problem.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// No term of a sum is rounded more often than this on its way to the result.
struct ExactChains {
  Index products;  ///< of d products, a logit
  Index values;    ///< of weights times values, over a stretch of keys, with its fold into double
  Index ones;      ///< of weights, the same
};

/// With operands of T: float, double, or bfloat16 where hardware multiplies that.
template <class T>
ExactChains exact_chains(const Problem& problem) {
  using Real = ArithmeticOf<T>;
  constexpr bool kPairs = std::is_same_v<T, bfloat16>;
  constexpr Index kLanes = simd::kLanes<Real>, kKeys = QueryBlock<T>::kKeys;
  constexpr auto lanes = static_cast<Index>(std::bit_width(static_cast<unsigned>(kLanes)));
  const Index d = problem.shapes.d, support = problem.weights ? std::ssize(problem.weights->support()) : 0;
  const Index chains = std::min(d, kChain) + ceil_div(d, kChain) - 1;
  // Which are of whole blocks.
  const Index integers =
      simd::kIntegerProducts && std::is_same_v<Real, float> && d % IntegerQuery::kColumns == 0
          ? detail::integer_chain(d)
          : 0;
  return {
      .products = kPairs ? 2 * words_of<T>(d)
                         : std::max({chains, ceil_div(d, kLanes) + lanes, integers, support + 2}),
      // Both begin with additions to 0, which are exact: room for weights that are multiplied by a block's
      // scale.
      .values = (kPairs ? kStretch : kChain + kStretch / kChain) + 2,
      .ones = std::max(kKeys / kLanes + kStretch / kKeys, kDecodeBlock / kLanes + kStretch / kDecodeBlock) +
              lanes + 1};
}

}  // namespace fastrope::inline FASTROPE_TARGET
