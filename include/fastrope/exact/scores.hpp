// Scores: the logits of a block of queries against a run of key panels, ready for the online softmax: base-2,
// that is, times log2(e), unless the kernel is a polynomial.
//
// A logit is scale q.k, or scale q^T W(lag) k for a general family, then softcap, lag bias, dense bias and
// mask, in that order. Each stage is a pass over scores that are in the first-level cache, and one that is
// not used is not run. Biases may be huge beside the scores that they are added to, up to -FLT_MAX in padding
// rows: a reference, the largest bias that there is, is taken out of them before, in double; it is given back
// to the logarithm of a row's sum and to sinks.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/workspace.hpp"
#include "fastrope/exact/exp2.hpp"
#include "fastrope/exact/lag_lines.hpp"
#include "fastrope/exact/packing.hpp"
#include "fastrope/exact/tile_kernel.hpp"
#include "fastrope/problem/problem.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// What is taken out of a row's biases, in natural units: the largest dense one, and of those of the lag,
/// with what is left of the dense ones if there are both, the largest in the row, or in the head if there are
/// no dense ones. Apart, as the first may be so large that the second would be lost beside it.
struct BiasReference {
  double dense = 0;
  double rest = 0;

  double total() const { return dense + rest; }
};

/// Makes score blocks for one problem; shared by all workers.
template <class Real>
class Scores {
 public:
  Scores(const Problem& problem, Workspace& workspace)
      : lags_(problem.bias.empty() ? LagGrid::Lags{} : problem.grid.allowed_lags()),
        bias_(problem.grid, problem.bias.empty() ? 0 : problem.shapes.heads, workspace),
        weights_(problem.grid, problem.weights ? static_cast<Index>(problem.weights->support().size()) : 0,
                 workspace),
        lag_references_(workspace.take<double>(bias_.count()).data()) {}

  /// The independent tasks that lay out the lag functions.
  Index tasks() const { return bias_.count() + weights_.count(); }

  /// Call for every task, before any block.
  void prepare(const Problem& problem, Index task) {
    if (task < bias_.count()) {
      if (lags_.first <= lags_.last)
        lag_references_[task] = problem.bias.largest(task, lags_.first, lags_.last);
      else
        lag_references_[task] = 0;
      bias_.fill(task, bias_values(problem, task));
    } else {
      const Index s = task - bias_.count();
      weights_.fill(s, weight_values(problem, s));
    }
  }

  /// What queries are multiplied by when they are packed. Operands of bfloat16 take a power of two and the
  /// sign, which round nothing, and leave the rest to product_factor.
  template <class T = Real>
  static double query_factor(const Problem& problem) {
    if (!problem.kernel.is_softmax()) return problem.scale;
    const double factor = problem.softcap > 0 ? problem.scale / problem.softcap : problem.scale * kLog2E;
    return std::is_same_v<T, bfloat16> ? factor / product_factor<T>(problem) : factor;
  }
  /// What products of packed queries and keys are to be multiplied by, >= 1.
  template <class T = Real>
  static double product_factor(const Problem& problem) {
    if (!std::is_same_v<T, bfloat16> || !problem.kernel.is_softmax()) return 1;
    const double factor = problem.softcap > 0 ? problem.scale / problem.softcap : problem.scale * kLog2E;
    int exponent = 0;
    return factor == 0 ? 1 : 2 * std::abs(std::frexp(factor, &exponent));
  }

  /// What is taken out of the biases of query i of head h, over its keys `allowed`.
  BiasReference reference(const Problem& problem, Index h, Index i, Range allowed) const {
    if (problem.dense_bias.data == nullptr) return {0, lag_reference(h)};
    constexpr double kNone = -std::numeric_limits<double>::infinity();
    const float* row = problem.dense_bias.head(h).row(i);
    const auto largest = [&](auto&& value) {
      double most = kNone;
      for (Index j = allowed.begin; j < allowed.end; ++j)
        if (dense_allows(problem, h, i, j)) most = std::max(most, value(j));
      return std::isfinite(most) ? most : 0;
    };
    const auto dense = [&](Index j) { return static_cast<double>(row[problem.grid.source(j)]); };
    if (problem.bias.empty()) {
      if (problem.dense_mask.data != nullptr || !problem.grid.in_order()) return {largest(dense), 0};
      const double most = simd::largest(row + allowed.begin, allowed.size());
      return {std::isfinite(most) ? most : 0, 0};
    }
    const double of_dense = largest(dense);
    return {of_dense, largest([&](Index j) { return dense(j) - of_dense + lag_bias(problem, h, i, j); })};
  }
  /// What is taken out of a head's lag bias where there is no dense one.
  double lag_reference(Index h) const { return bias_.count() > 0 ? lag_references_[h] : 0; }

  /// Raw products: scores [row_count, keys.size()], row stride `stride`, of packed queries and the key panels
  /// of `keys`. Requires keys made of whole panels and row_count a multiple of kRowMultipleOf<T>. `rows` are
  /// the queries, packed to panel_width; scratch: [keys.size()].
  template <class T>
  void product(const Problem& problem, const PackedKeys<T>& packed, Index kv, const Real* queries,
               Index panel_width, Range rows, Index row_count, Range keys, Real* scores, Index stride,
               Real* scratch) const {
    constexpr Index kWidth = PackedKeys<T>::kWidth;
    for (Index j = keys.begin; j < keys.end; j += kWidth) {
      const Real* panel = packed.panel(kv, j / kWidth);
      Real* block = scores + (j - keys.begin);
      if (problem.weights)
        weighted_product(problem, queries, panel_width, rows, {j, j + kWidth}, panel, block, stride, scratch);
      else
        multiply<false, T>(row_count, kWidth, packed.words(), packed.query_operand(queries, panel_width),
                           panel, kWidth, block, stride);
    }
  }

  /// For polynomial kernels, before finish(): scores that are infinite become NaN, which is what the row's
  /// quotient of infinite sums is, since -infinity is to say that a key is masked. scores: [rows, cols], row
  /// stride `stride`.
  static void mark_infinite(const Problem& problem, Index rows, Index cols, Real* scores, Index stride) {
    using namespace simd;
    if (problem.kernel.is_softmax()) return;
    for (Index r = 0; r < rows; ++r)
      for (Real *x = scores + r * stride, *end = x + cols; x < end; x += kLanes<Real>)
        store<Real>(fma(load(x), zero<Real>(), load(x)), x);
  }

  /// Whether finish() does more than the mask.
  static bool modifies(const Problem& problem) {
    return problem.softcap > 0 || !problem.bias.empty() || problem.is_dense();
  }

  /// Softcap, biases and mask on the scores of some queries of head h: those of query i are -infinity then
  /// but for the keys that are both in `keys` and in allowed[i - rows.begin]. scores: [rows.size(),
  /// padded.size()], row stride `stride`, of `padded` keys, whole vectors of them, to be multiplied by
  /// `factor`; references: of the rows; scratch: [padded.size()].
  void finish(const Problem& problem, Index h, Range rows, Range padded, Range keys, const Range* allowed,
              const BiasReference* references, Real factor, Real* scores, Index stride, Real* scratch) const {
    using namespace simd;
    constexpr Index kStep = kLanes<Real>;
    const Index count = rows.size(), size = padded.size();
    if (factor != 1)
      for (Index r = 0; r < count; ++r)
        for (Real *x = scores + r * stride, *end = x + size; x < end; x += kStep)
          store<Real>(mul(load(x), set(factor)), x);
    if (problem.softcap > 0) {
      const Vec<Real> cap = set(static_cast<Real>(problem.softcap * kLog2E));
      for (Index r = 0; r < count; ++r)
        for (Real *x = scores + r * stride, *end = x + size; x < end; x += kStep)
          store<Real>(mul(cap, tanh<Real>(load(x))), x);
    }
    if (bias_.count() > 0 && problem.dense_bias.data == nullptr) {
      for (Index r = 0; r < count; ++r) {
        const Real* bias =
            bias_.row(problem.grid, h, rows.begin + r, padded, bias_values(problem, h), scratch);
        for (Real *x = scores + r * stride, *end = x + size; x < end; x += kStep, bias += kStep)
          store<Real>(add(load(x), load(bias)), x);
      }
    }
    for (Index r = 0; r < count; ++r) {
      const Range some = intersect(allowed[r], keys);
      Real* row = scores + r * stride;
      if (problem.is_dense())
        add_dense(problem, h, rows.begin + r, padded, some, references[r], row, scratch);
      if (some.size() == size) continue;
      const Index first = some.empty() ? size : some.begin - padded.begin;
      const Index last = some.empty() ? size : some.end - padded.begin;
      std::fill(row, row + first, kMasked);
      std::fill(row + last, row + size, kMasked);
    }
  }

  /// Whether dense mask and bias let query i of head h attend to key j.
  static bool dense_allows(const Problem& problem, Index h, Index i, Index j) {
    const Index column = problem.grid.source(j);
    if (problem.dense_mask.data != nullptr && !problem.dense_mask.head(h)(i, column)) return false;
    return problem.dense_bias.data == nullptr ||
           problem.dense_bias.head(h)(i, column) != -std::numeric_limits<float>::infinity();
  }

 private:
  static constexpr Real kMasked = -std::numeric_limits<Real>::infinity();

  /// The lag bias of head h without its reference, base-2, and entry s of the general weights, as LagLines
  /// wants them.
  auto bias_values(const Problem& problem, Index h) const {
    return [&problem, h, reference = lag_reference(h)](Position lag, Index count, Real* x) {
      problem.bias.fill(h, lag, count, reference, kLog2E, x);
    };
  }
  static double lag_bias(const Problem& problem, Index h, Index i, Index j) {
    return problem.bias.empty() ? 0 : problem.bias(h, problem.grid.lag(i, j));
  }
  static auto weight_values(const Problem& problem, Index s) {
    return [&problem, s](Position lag, Index count, Real* x) {
      for (Index m = 0; m < count; ++m) x[m] = static_cast<Real>((*problem.weights)(lag - m, s));
    };
  }

  /// Dense bias, with the lag's if there are both, and mask on the scores of the allowed keys; those at the
  /// others may become anything.
  static void add_dense(const Problem& problem, Index h, Index i, Range keys, Range allowed,
                        const BiasReference& reference, Real* scores, Real* scratch) {
    using namespace simd;
    std::fill_n(scratch, keys.size(), Real{0});
    if (problem.dense_bias.data != nullptr) {
      const float* row = problem.dense_bias.head(h).row(i);
      Real* bias = scratch + (allowed.begin - keys.begin);
      if (problem.bias.empty() && problem.grid.in_order()) {
        convert(row + allowed.begin, allowed.size(), bias);
        const auto largest = static_cast<Real>(reference.dense);  // one of them
        for (Index m = 0; m < allowed.size(); ++m) bias[m] -= largest;
      } else {
        for (Index j = allowed.begin; j < allowed.end; ++j)
          *bias++ = static_cast<Real>(static_cast<double>(row[problem.grid.source(j)]) - reference.dense +
                                      lag_bias(problem, h, i, j) - reference.rest);
      }
    }
    if (problem.dense_mask.data != nullptr) {
      const bool* row = problem.dense_mask.head(h).row(i);
      for (Index j = allowed.begin; j < allowed.end; ++j)
        if (!row[problem.grid.source(j)]) scratch[j - keys.begin] = kMasked;
    }
    // A masked score is -infinity even if it was NaN.
    for (Index j = 0; j < keys.size(); j += kLanes<Real>) {
      const Vec<Real> bias = load(scratch + j), masked = set(kMasked);
      const Vec<Real> sum = fma(bias, set(static_cast<Real>(kLog2E)), load(scores + j));
      store<Real>(if_equal(bias, masked, masked, sum), scores + j);
    }
  }

  /// scores(i, j) = sum over the support of q(i, a) W(lag)[a, b] k(j, b), for the keys of a panel: 3 n^2 |S|
  /// flops. A few rows at a time share what they load of the panel.
  void weighted_product(const Problem& problem, const Real* queries, Index panel_width, Range rows,
                        Range keys, const Real* panel, Real* scores, Index stride, Real* scratch) const {
    constexpr int kTogether = simd::kRegisters >= 32 ? 4 : 2;
    Index i = rows.begin;
    const auto some = [&](auto count) {
      constexpr int kRows = count;
      for (; i + kRows <= rows.end; i += kRows)
        weighted_rows<kRows>(problem, queries + (i - rows.begin), panel_width, i, keys, panel,
                             scores + (i - rows.begin) * stride, stride, scratch);
    };
    if (weights_.holds(problem.grid, rows, keys)) some(std::integral_constant<int, kTogether>{});
    some(std::integral_constant<int, 1>{});
  }

  template <int kRows>
  void weighted_rows(const Problem& problem, const Real* queries, Index panel_width, Index i, Range keys,
                     const Real* panel, Real* scores, Index stride, Real* scratch) const {
    using namespace simd;
    constexpr Index kStep = kLanes<Real>;
    constexpr int kVecs = static_cast<int>(kTileCols<Real> / kStep);
    const auto support = problem.weights->support();
    Vec<Real> sums[kRows][kVecs];
    for (auto& row : sums)
      for (auto& sum : row) sum = zero<Real>();
    for (Index s = 0; s < weights_.count(); ++s) {
      const auto [a, b] = support[static_cast<std::size_t>(s)];
      const Real* column = panel + b * kTileCols<Real>;
      // Of the last row; each row before begins one value later.
      const Real* weight =
          weights_.row(problem.grid, s, i + kRows - 1, keys, weight_values(problem, s), scratch);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const Vec<Real> query = set(queries[a * panel_width + r]);
#pragma GCC unroll 8
        for (int v = 0; v < kVecs; ++v)
          sums[r][v] = fma(mul(query, load(weight + (kRows - 1 - r) + v * kStep)), load(column + v * kStep),
                           sums[r][v]);
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) store<Real>(sums[r][v], scores + r * stride + v * kStep);
  }

  LagGrid::Lags lags_;      // that the mask allows, where there is a lag bias
  LagLines<Real> bias_;     // a line per head, base-2, without the head's reference
  LagLines<Real> weights_;  // a line per support entry
  double* lag_references_;  // [heads] where there is a lag bias
};

}  // namespace fastrope::inline FASTROPE_TARGET
