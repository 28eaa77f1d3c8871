// Recurrences with random options: kernels and bounded softmax, gates, input gates, normalisers, ALiBi and
// rope, fed by prompts and steps in any split. Every row is as near to the oracle as its bound says, and with
// a radius and without gates as error_bound() said beforehand.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <iostream>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "fastrope/attend/bounded_recurrence.hpp"
#include "support/attention_case.hpp"
#include "support/kernel_oracle.hpp"

namespace fastrope_test {
namespace {

using namespace fastrope;

struct RecurrentProblem {
  AttentionCase call = {};
  double radius = 0;  ///< of softmax; 0: a polynomial kernel
};

RecurrentProblem recurrent_problem(Inputs& random) {
  const auto chance = [&](double probability) { return random.uniform(0, 1) < probability; };
  RecurrentProblem p;
  AttentionCase& c = p.call;
  const Index kv_heads = random.integer(1, 2), heads = kv_heads * random.integer(1, 3);
  const Index n = chance(0.3) ? random.integer(250, 700) : random.integer(1, 120);
  c.shapes = {heads, kv_heads, n, n, random.integer(1, 5), random.integer(1, 20)};
  c.base.mask = Mask::causal();
  if (chance(0.4)) {
    p.radius = random.uniform(0.2, 2);
    c.base.tolerance = std::pow(10.0, random.uniform(-2.5, -0.5));
    c.text += ", radius " + std::to_string(p.radius);
  } else {
    const Index kind = random.integer(0, 4);
    c.base.kernel = kind == 0   ? Kernel::power(2)
                    : kind == 1 ? Kernel::taylor(2)
                    : kind == 2 ? Kernel::power(4)
                    : kind == 3 ? Kernel::power(1, KernelSign::any)
                                : Kernel::polynomial({1, 0, 0.5, 0, 0.1});
    const double constant = std::pow(10.0, random.uniform(-12, 1));
    if (chance(0.5))
      c.base.normaliser = chance(0.4)   ? Normaliser::row_sum(constant)
                          : chance(0.5) ? Normaliser::at_least(constant)
                                        : Normaliser::none();
    c.text += ", degree " + std::to_string(c.base.kernel.degree());
  }
  if (c.shapes.d >= 2 && chance(0.3)) c.base.rope = Rope{.base = 100, .rotary_dim = 2};
  if (chance(0.5)) {
    const Index rows = chance(0.5) ? heads : kv_heads;
    set_gates(c, random, rows, random.uniform(0.5, 12), chance(0.3) ? random.integer(2, 200) : 0);
    if (chance(0.4)) set_input_gates(c, random, rows, random.uniform(0, 15));
  } else if (chance(0.2)) {
    set_alibi(c, random);
  }
  return p;
}

/// The rows of gates of tokens [begin, end).
MatrixView<const float> gates_of(const std::vector<float>& x, Index n, Index begin, Index end) {
  if (x.empty()) return {};
  return {x.data() + begin, std::ssize(x) / n, end - begin, n};
}

/// Feeds a problem in random parts; row_bounds: [heads, n].
template <class Real>
std::vector<double> feed(RecurrentAttention<Real>& recurrence, const AttentionCase& c,
                         AttentionInputs<Real>& in, Inputs& random) {
  const Index n = c.shapes.n_k;
  std::vector<double> bounds(static_cast<std::size_t>(c.shapes.heads * n));
  for (Index begin = 0; begin < n;) {
    const bool step = random.integer(0, 1) == 1;
    const Index end = std::min(n, begin + (step ? 1 : random.integer(1, 400)));
    for (Index times = step ? random.integer(1, 300) : 1; times > 0 && begin < n; --times) {
      const Index until = step ? begin + 1 : end;
      const Range part{begin, until};
      const auto q = rows(std::as_const(in.q).view(), part), k = rows(std::as_const(in.k).view(), part),
                 v = rows(std::as_const(in.v).view(), part);
      const auto log = gates_of(c.log_gates, n, begin, until),
                 input = gates_of(c.log_input_gates, n, begin, until);
      if (step) {
        std::vector<float> of_log, of_input;
        for (Index r = 0; r < log.rows; ++r) of_log.push_back(log(r, 0));
        for (Index r = 0; r < input.rows; ++r) of_input.push_back(input(r, 0));
        EXPECT_EQ(recurrence.step(q, k, v, rows(in.out.view(), part), of_log, of_input), RunStatus::ok);
      } else {
        recurrence.prefill(q, k, v, rows(in.out.view(), part), log, input);
      }
      for (Index h = 0; h < c.shapes.heads; ++h)
        for (Index i = begin; i < until; ++i)
          bounds[static_cast<std::size_t>(h * n + i)] = recurrence.row_bounds()(h, i - begin);
      begin = until;
    }
  }
  return bounds;
}

template <class Real>
void check(std::uint64_t seed, BoundedRows& all) {
  Inputs random(seed);
  RecurrentProblem p = recurrent_problem(random);
  AttentionCase& c = p.call;
  const Shapes& s = c.shapes;
  AttentionInputs<Real> in(s, random);
  Options options = c.base;
  if (std::ssize(c.log_gates) > s.kv_heads * s.n_k) options.log_gates = {nullptr, s.heads, 0};
  if (p.radius > 0) {
    const double norm = std::sqrt(p.radius * std::sqrt(static_cast<double>(s.d))) * (1 - 1e-6);
    in.q = random.sphere<Real>(s.heads, s.n_q, s.d, norm);
    in.k = random.sphere<Real>(s.kv_heads, s.n_k, s.d, norm);
  }
  std::optional<RecurrentAttention<Real>> recurrence;
  try {
    if (p.radius > 0)
      recurrence.emplace(s.heads, s.kv_heads, s.d, s.d_v, options, p.radius);
    else
      recurrence.emplace(s.heads, s.kv_heads, s.d, s.d_v, options);
  } catch (const Error&) {  // a tolerance that cannot be promised
    ASSERT_GT(p.radius, 0) << c;
    return;
  }
  const std::vector<double> bounds = feed(*recurrence, c, in, random);
  const Tensor<double> expected = in.reference(c).out;
  const bool plain = p.radius > 0 && c.log_gates.empty() && c.base.bias.empty();
  for (Index h = 0; h < s.heads; ++h)
    for (Index i = 0; i < s.n_q; ++i) {
      const double bound = bounds[static_cast<std::size_t>(h * s.n_q + i)];
      all.add(h, i, in.out.view().head(h).row(i), expected.view().head(h).row(i), s.d_v,
              largest_of(in.v.view().head(h / (s.heads / s.kv_heads))), bound);
      // Gates round a little more than what was promised without.
      const double most = p.radius == 0 ? std::numeric_limits<double>::infinity()
                          : plain       ? recurrence->error_bound()
                                        : 1.01 * c.base.tolerance;
      ASSERT_LE(bound, most) << c << ", seed " << seed;
    }
  ASSERT_EQ(all.violated, 0) << c << ", seed " << seed << ": " << all.worst;
}

TEST(RecurrencePromise, IsKeptForRandomOptions) {
  BoundedRows all;
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    check<float>(seed, all);
    if (HasFatalFailure()) return;
  }
  std::cout << all.bounds.size() << " rows, observed / promised up to " << all.closest << "\n";
  EXPECT_GT(all.share_within(1e-2), 0.7) << "bounds say something";
}

}  // namespace
}  // namespace fastrope_test
