// The oracle of gradients against central differences of the oracle of attention.
#include "support/reference_gradient.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "support/gradient_case.hpp"

namespace fastrope_test {
namespace {

/// Central differences of <d_out, out> in every element of x, which `value` reads, beside `gradient`.
template <class Value>
void expect_differences(std::vector<double>& x, const std::vector<double>& gradient, Value&& value,
                        const std::string& what) {
  constexpr double kStep = 1e-5;
  double size = 1;
  for (double g : gradient) size = std::max(size, std::abs(g));
  ASSERT_EQ(x.size(), gradient.size());
  for (std::size_t m = 0; m < x.size(); ++m) {
    const double at = x[m];
    x[m] = at + kStep;
    const double above = value();
    x[m] = at - kStep;
    const double difference = (above - value()) / (2 * kStep);
    x[m] = at;
    EXPECT_NEAR(gradient[m], difference, 1e-8 * size) << what << " " << m;
  }
}

TEST(ReferenceGradientTest, IsTheLimitOfDifferences) {
  for (const auto& [name, set] : gradient_options()) {
    for (const Shapes shapes : {Shapes{4, 2, 5, 7, 6, 3}, Shapes{2, 1, 6, 4, 4, 2}}) {
      AttentionCase c{.shapes = shapes, .text = ", " + name};
      if (name.find("positions") != std::string::npos && shapes.n_q > shapes.n_k) continue;
      Inputs random(11);
      set(c, random);
      AttentionInputs<double> in(shapes, random);
      const Tensor<double> d_out = random.gaussian<double>(shapes.heads, shapes.n_q, shapes.d_v);
      const ReferenceGradient gradient = reference_backward(
          in.q.view(), in.k.view(), in.v.view(), in.reference(c), d_out.view(), c.options(), c.bias);
      const auto value = [&] { return inner_product(d_out.view(), in.reference(c).out.view()); };
      const std::string where = name + (shapes.n_q > shapes.n_k ? ", more queries" : "");
      expect_differences(in.q.values, gradient.q.values, value, where + " q");
      expect_differences(in.k.values, gradient.k.values, value, where + " k");
      expect_differences(in.v.values, gradient.v.values, value, where + " v");
    }
  }
}

TEST(ReferenceGradientTest, OfSinksAndBiasesIsTheLimitOfDifferences) {
  const Shapes shapes{2, 1, 5, 7, 6, 3};
  AttentionCase c{.shapes = shapes};
  Inputs random(12);
  c.base.softcap = 1.5;
  set_sinks(c, random);
  const std::vector<double> first = random_numbers(random, 2 * 25, -1, 1);  // lags -12..12 of both heads
  std::vector<double> table = first;
  c.base.bias = fastrope::LagBias::table(first, 2, -12);
  c.bias = [&table](Index h, Position lag) { return table[static_cast<std::size_t>(h * 25 + lag + 12)]; };
  AttentionInputs<double> in(shapes, random);
  const Tensor<double> d_out = random.gaussian<double>(shapes.heads, shapes.n_q, shapes.d_v);
  std::vector<double> of_table(table.size());
  const ReferenceGradient gradient =
      reference_backward(in.q.view(), in.k.view(), in.v.view(), in.reference(c), d_out.view(), c.options(),
                         c.bias, [&](Index h, Position lag, double d_logit) {
                           of_table[static_cast<std::size_t>(h * 25 + lag + 12)] += d_logit;
                         });
  const auto value = [&] { return inner_product(d_out.view(), in.reference(c).out.view()); };
  expect_differences(table, of_table, value, "table");
  for (std::size_t h = 0; h < 2; ++h) {  // floats: the step that they make is the one that counts
    const float at = c.sinks[h], above = at + 1e-3f, below = at - 1e-3f;
    c.sinks[h] = above;
    const double more = value();
    c.sinks[h] = below;
    const double difference = (more - value()) / (static_cast<double>(above) - static_cast<double>(below));
    c.sinks[h] = at;
    EXPECT_NEAR(gradient.sinks[h], difference, 1e-6) << "sink " << h;
  }
}

TEST(ReferenceGradientTest, OfGatesIsTheLimitOfDifferences) {
  for (const auto& [name, set] : gradient_options()) {
    AttentionCase c{.shapes = {4, 2, 5, 7, 6, 3}, .text = ", " + name};
    Inputs random(13);
    set(c, random);
    AttentionInputs<double> in(c.shapes, random);
    const Tensor<double> d_out = random.gaussian<double>(4, 5, 3);
    const ReferenceGradient gradient = reference_backward(in.q.view(), in.k.view(), in.v.view(),
                                                          in.reference(c), d_out.view(), c.options(), c.bias);
    const auto value = [&] { return inner_product(d_out.view(), in.reference(c).out.view()); };
    const auto expect = [&](std::vector<float>& gates, const std::vector<double>& expected) {
      ASSERT_EQ(gates.size(), expected.size());
      for (std::size_t m = 0; m < gates.size(); ++m) {
        const float at = gates[m], above = at + 1e-3f, below = at - 1e-3f;
        if (std::isinf(at)) continue;
        gates[m] = above;
        const double more = value();
        gates[m] = below;
        const double difference =
            (more - value()) / (static_cast<double>(above) - static_cast<double>(below));
        gates[m] = at;
        EXPECT_NEAR(expected[m], difference, 2e-6 * (1 + std::abs(difference))) << c << ", " << m;
      }
    };
    expect(c.log_gates, gradient.log_gates);
    expect(c.log_input_gates, gradient.log_input_gates);
  }
}

}  // namespace
}  // namespace fastrope_test
