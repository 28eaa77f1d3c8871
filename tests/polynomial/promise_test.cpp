// The promise, swept: on thousands of random problems of many kinds the observed error is within the
// certified one and rounding's estimate, for the worst values that there could be.
//
// V = I gives the weights w' that were really used. Over all values in [-1, 1] the error of a row is at most,
// and for some of them exactly, sum_j |w'_j - w_j|; the plan's bound is proportional to the values' spread,
// 1/2 for I, so theirs is twice that.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <iostream>
#include <limits>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "fastrope/fastrope.hpp"
#include "support/attention_case.hpp"
#include "support/bounded_heads.hpp"
#include "support/plain_llama.hpp"

namespace fastrope_test {
namespace {

using namespace fastrope;

const std::string kModelsDir = FASTROPE_MODELS_DIR;
const std::string kHeadsDir = FASTROPE_HEADS_DIR;

/// How well promises were kept.
struct Tally {
  int kept = 0;
  int refused = 0;
  std::vector<double> slacks = {};  ///< promised / observed

  void print(const std::string& what) {
    std::cout << what << ": " << kept << " promises kept, " << refused << " problems refused";
    if (!slacks.empty()) {
      std::sort(slacks.begin(), slacks.end());
      std::cout << "; promised / observed: least " << slacks.front() << ", median "
                << slacks[slacks.size() / 2];
    }
    std::cout << '\n';
  }
};

/// sum_j |w'_j - w_j| for row i of a head.
template <class Real>
double weight_error(const TensorView<const Real>& out, const Tensor<double>& exact, Index h, Index i) {
  double sum = 0;
  for (Index j = 0; j < out.cols; ++j)
    sum += distance(static_cast<double>(out.head(h)(i, j)), exact(h, i, j));
  return sum;
}

/// Plans and runs q and k of a case with a forced polynomial path, and holds the outcome against the plan.
template <class Real>
void check(AttentionCase c, const Tensor<double>& q, const Tensor<double>& k, Tally& tally) {
  c.base.path = Path::polynomial;
  c.shapes = {q.heads, k.heads, q.rows, k.rows, q.cols, k.rows};
  Tensor<Real> rows = converted<Real>(q.view()), keys = converted<Real>(k.view());
  Tensor<Real> values(k.heads, k.rows, k.rows), out(q.heads, q.rows, k.rows);
  for (Index h = 0; h < k.heads; ++h)
    for (Index j = 0; j < k.rows; ++j) values(h, j, j) = Real{1};
  Report report;
  try {
    report = attend(rows.view(), keys.view(), values.view(), out.view(), c.options());
  } catch (const Error&) {
    ++tally.refused;
    return;
  }
  const Reference exact = reference_attention(rows.view(), keys.view(), values.view(), c.options());
  for (Index h = 0; h < q.heads; ++h) {
    const HeadReport& head = report.heads[static_cast<std::size_t>(h)];
    const double promised = 2 * (head.error_bound);
    ASSERT_EQ(head.path, Path::polynomial);
    ASSERT_LE(promised, 2 * c.base.tolerance) << c;
    double observed = 0;
    for (Index i = 0; i < q.rows; ++i)
      if (!std::isinf(exact.lse(0, h, i)))
        observed = std::max(observed, weight_error(TensorView<const Real>(out.view()), exact.out, h, i));
    ASSERT_LE(observed, promised) << c << ", head " << h << ", tolerance " << c.base.tolerance << ", entries "
                                  << head.entry_bound << ", degree " << head.degree << ", rank " << head.rank;
    if (observed > 0) tally.slacks.push_back(promised / observed);
  }
  ++tally.kept;
}

using Draw = std::function<Tensor<double>(Inputs&, Index heads, Index n, Index d)>;

/// A point of few, each row one of them with a little noise.
Tensor<double> clusters(Inputs& random, Index heads, Index n, Index d) {
  const Tensor<double> centres = random.gaussian<double>(heads, 4, d);
  Tensor<double> x = random.gaussian<double>(heads, n, d, 0.02);
  for (Index h = 0; h < heads; ++h)
    for (Index i = 0; i < n; ++i) {
      const Index centre = random.integer(0, 3);
      for (Index c = 0; c < d; ++c) x(h, i, c) += centres(h, centre, c);
    }
  return x;
}

/// Mixtures of a few directions, of decaying weight.
Tensor<double> decaying(Inputs& random, Index heads, Index n, Index d) {
  const Tensor<double> directions =
      random.gaussian<double>(heads, d, d, 1 / std::sqrt(static_cast<double>(d)));
  const double decay = random.uniform(0.01, 0.9);
  Tensor<double> x(heads, n, d);
  for (Index h = 0; h < heads; ++h)
    for (Index i = 0; i < n; ++i) {
      double size = 1;
      for (Index l = 0; l < d; ++l, size *= decay) {
        const double weight = size * random.normal();
        for (Index c = 0; c < d; ++c) x(h, i, c) += weight * directions(h, l, c);
      }
    }
  return x;
}

/// Rows of one axis each, at both ends: entries at the bound, of either sign, and 0.
Tensor<double> corners(Inputs& random, Index heads, Index n, Index d) {
  Tensor<double> x(heads, n, d);
  for (Index h = 0; h < heads; ++h)
    for (Index i = 0; i < n; ++i)
      x(h, i, random.integer(0, std::min<Index>(d - 1, 1))) = random.integer(0, 1) == 0 ? -1 : 1;
  return x;
}

/// Points of a segment through the origin: every entry size from 0 to the bound.
Tensor<double> segment(Inputs& random, Index heads, Index n, Index d) {
  Tensor<double> x(heads, n, d);
  for (Index h = 0; h < heads; ++h)
    for (Index i = 0; i < n; ++i) {
      const double at = 2 * static_cast<double>(i) / static_cast<double>(n) - 1;
      for (Index c = 0; c < d; ++c) x(h, i, c) = at / std::sqrt(static_cast<double>(d));
    }
  (void)random;
  return x;
}

const std::vector<std::pair<std::string, Draw>>& draws() {
  static const std::vector<std::pair<std::string, Draw>> all = {
      {"gaussian", [](Inputs& r, Index h, Index n, Index d) { return r.gaussian<double>(h, n, d); }},
      {"sphere", [](Inputs& r, Index h, Index n, Index d) { return r.sphere<double>(h, n, d, 1); }},
      {"heavy tails",
       [](Inputs& r, Index h, Index n, Index d) { return r.heavy_tailed<double>(h, n, d, 0.3); }},
      {"offset", [](Inputs& r, Index h, Index n,
                    Index d) { return r.common_mean<double>(h, n, d, r.uniform(0, 10), r.uniform(0.1, 1)); }},
      {"clusters", clusters},
      {"decaying", decaying},
      {"corners", corners},
      {"segment", segment},
  };
  return all;
}

void scale(Tensor<double>& x, double factor) {
  for (double& value : x.values) value *= factor;
}

template <class Real>
class Promise : public testing::Test {};
using Reals = testing::Types<float, double>;
TYPED_TEST_SUITE(Promise, Reals);

TYPED_TEST(Promise, IsKeptOnRandomProblems) {
  // Each kind of queries with each kind of keys, entries from tiny to beyond what has a polynomial.
  constexpr int kRepeats = 24;
  Inputs random(1);
  Tally all;
  for (const auto& [query_kind, draw_queries] : draws())
    for (const auto& [key_kind, draw_keys] : draws())
      for (int repeat = 0; repeat < kRepeats; ++repeat) {
        const Index kv_heads = random.integer(1, 2), group = random.integer(1, 2);
        // A causal mask leaves something far only where there are many keys before the queries.
        const bool causal = repeat % 4 == 3;
        const Index d = random.integer(1, 7), n_q = random.integer(1, causal ? 20 : 60);
        const Index n_k = causal ? random.integer(270, 400) : random.integer(1, 90);
        AttentionCase c{.shapes = {}, .text = ", " + query_kind + " queries, " + key_kind + " keys"};
        c.base.tolerance = std::pow(10.0, random.uniform(std::is_same_v<TypeParam, float> ? -3.5 : -5, -0.5));
        if (causal) c.base.mask = Mask::causal();
        if (repeat % 3 == 0 && d % 2 == 0) c.base.rope = Rope{};
        // One side's size is the other's inverse, over six decades.
        const double size = std::exp(random.uniform(-3, 1)), decade = std::pow(10.0, random.uniform(-3, 3));
        c.base.scale = size * (repeat % 5 == 0 ? -1 : 1);
        Tensor<double> q = draw_queries(random, kv_heads * group, n_q, d),
                       k = draw_keys(random, kv_heads, n_k, d);
        scale(q, decade);
        scale(k, 1 / decade);
        check<TypeParam>(c, q, k, all);
        if (this->HasFatalFailure()) return;
      }
  all.print("random problems");
  EXPECT_GE(all.kept, 1000);
  EXPECT_GE(all.refused, 50) << "problems that are too easy say little";
}

TYPED_TEST(Promise, IsKeptOnTheHeadsOfBoundedModels) {
  if (kHeadsDir.empty()) GTEST_SKIP() << "set the CMake variable FASTROPE_HEADS_DIR to the folder of heads";
  Tally all;
  Inputs random(2);
  for (const BoundedHead& head : read_bounded_heads(kHeadsDir + "/bounded_lm_heads.bin"))
    for (const double tolerance : {1e-1, 1e-2})
      for (int repeat = 0; repeat < 2; ++repeat) {
        AttentionCase c{.shapes = {}, .text = ", bounded heads"};
        c.base.tolerance = tolerance;
        c.base.scale = 1.0;
        c.base.rope = Rope{};
        const Index n_k = 400, n_q = 100, begin = random.integer(0, head.q.rows - n_k);
        const auto slice = [&](const Tensor<float>& x, Index first, Index n) {
          return converted<double>(
              TensorView<const float>{x.view().head(0).row(first), 1, n, x.cols, 0, x.cols});
        };
        check<TypeParam>(c, slice(head.q, begin + n_k - n_q, n_q), slice(head.k, begin, n_k), all);
        if (this->HasFatalFailure()) return;
      }
  all.print("heads of bounded models");
  EXPECT_GE(all.kept, 20);
}

TYPED_TEST(Promise, IsKeptOnTheHeadsOfATrainedModel) {
  // Its logits reach hundreds: scores are tempered until polynomials serve, and beyond.
  if (kModelsDir.empty())
    GTEST_SKIP() << "set the CMake variable FASTROPE_MODELS_DIR to the folder of models";
  PlainLlama model(kModelsDir + "/stories260K.bin");
  model.greedy({1}, 150);
  const auto d = static_cast<Index>(model.head_size());
  const auto rows = [&](const std::vector<PlainLlama::Vector>& tokens, std::size_t head) {
    Tensor<double> x(1, static_cast<Index>(tokens.size()), d);
    for (std::size_t i = 0; i < tokens.size(); ++i)
      std::copy_n(tokens[i].begin() + static_cast<std::ptrdiff_t>(head) * d, d,
                  &x(0, static_cast<Index>(i), 0));
    return x;
  };
  Tally all;
  for (std::size_t layer = 0; layer < model.queries().size(); ++layer)
    for (std::size_t head = 0; head < model.heads(); head += 2)
      for (const double temper : {1.0, 0.1, 0.01, 0.003}) {
        AttentionCase c{.shapes = {}, .text = ", layer " + std::to_string(layer)};
        c.base.tolerance = 1e-2;
        c.base.scale = temper / std::sqrt(static_cast<double>(d));
        check<TypeParam>(c, rows(model.queries()[layer], head),
                         rows(model.keys()[layer], head / (model.heads() / model.kv_heads())), all);
        if (this->HasFatalFailure()) return;
      }
  all.print("tempered heads of a trained model");
  EXPECT_GE(all.kept, 40);
  EXPECT_GE(all.refused, 10);
}

TYPED_TEST(Promise, EndsWhereEntriesAreTooLarge) {
  // At both ends of the range, just inside and outside of what a degree can do: the plan says so or keeps it.
  Tally all;
  Inputs random(3);
  for (const double tolerance : {1e-1, 1e-2, 1e-3})
    for (double radius = 0.05; radius < 40; radius *= 1.03) {
      AttentionCase c{.shapes = {}, .text = ", radius " + std::to_string(radius)};
      c.base.tolerance = tolerance;
      c.base.scale = radius;
      check<TypeParam>(c, corners(random, 1, 8, 1), segment(random, 1, 90, 1), all);
      if (this->HasFatalFailure()) return;
    }
  all.print("entries at the boundary");
  EXPECT_GE(all.kept, 200);
  EXPECT_GE(all.refused, 10);
}

}  // namespace
}  // namespace fastrope_test
