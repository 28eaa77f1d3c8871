// Rows of attention with gates and normalisers held against the oracle, as closely as their weights cancel.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include "support/attention_case.hpp"

namespace fastrope_test {

/// sum_p |c_p| (1 + |x|)^p: bounds the terms of P(x), and what an error e < 1 of x does to it by this times
/// e.
inline KernelFunction term_sizes(const fastrope::Kernel& kernel) {
  std::vector<double> c;
  for (const double coefficient : kernel.coefficients()) c.push_back(std::abs(coefficient));
  return [terms = polynomial_kernel(std::move(c))](double x) { return terms(1 + std::abs(x)); };
}

/// [heads, n_q]: what a row's result may be off by, for weights that are off by 1 of the size of their terms
/// and values of size 1: the sum of these sizes over |N|. Of softmax 1.
template <class T>
Tensor<double> gated_condition(const AttentionCase& c, const AttentionInputs<T>& in) {
  const fastrope::Shapes& s = c.shapes;
  Tensor<double> ones(s.kv_heads, s.n_k, 1), condition(1, s.heads, s.n_q);
  std::fill(ones.values.begin(), ones.values.end(), 1.0);
  if (c.base.kernel.is_softmax()) {
    std::fill(condition.values.begin(), condition.values.end(), 1.0);
    return condition;
  }
  // Where all values are 1, what no normaliser divides is a sum, and what one does is its share of N.
  AttentionCase whole = c;
  whole.base.normaliser = fastrope::Normaliser::none();
  const auto sums = [&](KernelFunction kernel) {
    return reference_attention(in.q.view(), in.k.view(), ones.view(), whole.options(), c.bias, kernel).out;
  };
  const Tensor<double> sizes = sums(term_sizes(c.base.kernel)), plain = sums({});
  for (Index h = 0; h < s.heads; ++h)
    for (Index i = 0; i < s.n_q; ++i) {
      const fastrope::Normaliser& normaliser = c.base.normaliser;
      const double sum = plain(h, i, 0);
      const double n = normaliser.kind() == fastrope::Normaliser::Kind::row_sum ? sum + normaliser.constant()
                       : normaliser.kind() == fastrope::Normaliser::Kind::at_least
                           ? std::max(std::abs(sum), normaliser.constant())
                           : 1;
      condition(0, h, i) = sizes(h, i, 0) == 0 ? 0 : sizes(h, i, 0) / std::abs(n);
    }
  return condition;
}

/// Every row of in.out, |v| < 1, is the oracle's, but for `roundings` epsilons of the size of its terms.
template <class T>
void expect_gated_rows(const AttentionCase& c, const AttentionInputs<T>& in, double roundings = 40) {
  using Real = fastrope::ArithmeticOf<T>;
  constexpr bool kNarrow = std::is_same_v<T, fastrope::bfloat16>;
  // Products of bfloat16 pairs round softmax's logits.
  const double unit = kNarrow && c.base.kernel.is_softmax() ? 0x1p-9 : std::numeric_limits<Real>::epsilon();
  const Tensor<double> expected = in.reference(c).out, condition = gated_condition(c, in);
  for (Index h = 0; h < c.shapes.heads; ++h)
    for (Index i = 0; i < c.shapes.n_q; ++i)
      for (Index col = 0; col < c.shapes.d_v; ++col) {
        const double out = expected(h, i, col), size = std::abs(out);
        ASSERT_LE(distance(static_cast<double>(in.out(h, i, col)), out),
                  roundings * unit * condition(0, h, i) * (1 + size) + (kNarrow ? 0x1p-8 * size : 0))
            << c << ", degree " << c.base.kernel.degree() << ", head " << h << ", row " << i;
      }
}

}  // namespace fastrope_test
