// Scores: the logits of a block of queries against a run of key panels, ready for the online softmax: base-2,
// that is, times log2(e), unless the kernel is a polynomial.
//
// A logit is scale q.k, or scale q^T W(lag) k for a general family, then softcap, lag bias or gates, dense
// bias and mask, in that order; the gates of a polynomial kernel are factors of its weights. Each stage is a
// pass over scores that are in the first-level cache, and one that is not used is not run. Biases may be huge
// beside the scores that they are added to, up to -FLT_MAX in padding rows: a reference, the largest bias
// that there is, is taken out of them before, in double; it is given back to the logarithm of a row's sum and
// to sinks.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/workspace.hpp"
#include "fastrope/exact/dense_blocks.hpp"
#include "fastrope/exact/exp2.hpp"
#include "fastrope/exact/gate_sums.hpp"
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
  double rest = 0;   ///< with gates, of all that they add to a logit
  double level = 0;  ///< the part of it that is taken out of the keys' levels

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
        lag_references_(workspace.take<double>(bias_.count()).data()),
        gates_(problem, workspace),
        dense_(problem, workspace) {}

  /// The independent tasks that sum up gates, lay out the lag functions and read dense bias and mask.
  Index tasks() const { return dense_.tasks() + gates_.tasks() + bias_.count() + weights_.count(); }

  /// Call for every task, before any block.
  void prepare(const Problem& problem, Index task) {
    if (task < dense_.tasks()) return dense_.prepare(problem, task);
    task -= dense_.tasks();
    if (task < gates_.tasks()) return gates_.prepare(problem, task);
    task -= gates_.tasks();
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

  const GateSums& gates() const { return gates_; }
  /// The keys that query i of head h may attend to. Views the grid.
  KeySet allowed(const Problem& problem, Index h, Index i) const { return gates_.allowed(problem, h, i); }

  /// What is taken out of the biases of query i of head h, over its keys `allowed`.
  BiasReference reference(const Problem& problem, Index h, Index i, const KeySet& allowed) const {
    if (!gates_.empty()) {
      const GateReference of_gates = gates_.reference(problem, h, i, allowed);
      return {.rest = of_gates.sum + of_gates.level, .level = of_gates.level};
    }
    if (problem.dense_bias.data == nullptr) return {0, lag_reference(h)};
    const double of_dense = dense_.largest(h, i);
    if (problem.bias.empty()) return {of_dense, 0};
    double rest = -std::numeric_limits<double>::infinity();
    allowed.for_each({0, problem.shapes.n_k}, [&](Range keys) {
      for (Index j = keys.begin; j < keys.end; ++j)
        if (dense_allows(problem, h, i, j))
          rest = std::max(rest, static_cast<double>(problem.dense_bias(h, i, problem.grid.source(j))) -
                                    of_dense + lag_bias(problem, h, i, j));
    });
    return {of_dense, std::isfinite(rest) ? rest : 0};
  }
  /// What is taken out of a head's lag bias where there is no dense one.
  double lag_reference(Index h) const { return bias_.count() > 0 ? lag_references_[h] : 0; }

  /// Whether a query in `rows` of head h may see a key in `keys`, for all that dense bias and mask say of
  /// whole blocks.
  bool dense_sees(Index h, Range rows, Range keys) const { return dense_.sees(h, rows, keys); }
  /// Whether dense bias and mask may change a score of these.
  bool dense_masks(const Problem& problem, Index h, Range rows, Range keys) const {
    return problem.dense_bias.data != nullptr || dense_.masks(h, rows, keys);
  }

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

  /// Whether finish() does more than leave keys out.
  static bool modifies(const Problem& problem) {
    return problem.softcap > 0 || !problem.bias.empty() || problem.dense_bias.data != nullptr ||
           (problem.gates.given() && problem.kernel.is_softmax());
  }

  /// What the gates of a polynomial kernel multiply the weights of `keys`, whole vectors of them, by: in
  /// `line` [keys.size()], or null without any.
  const Real* factors(Index h, Range keys, const BiasReference& reference, Real* line) const {
    if (gates_.empty()) return nullptr;
    gates_.factors(h, keys, reference.level, line);
    return line;
  }

  /// Softcap, biases and mask on the scores of some queries of head h: those of query i are -infinity then
  /// but for the keys that are both in `keys` and in allowed[i - rows.begin]. scores: [rows.size(),
  /// padded.size()], row stride `stride`, of `padded` keys, whole vectors of them, to be multiplied by
  /// `factor`; references: of the rows; scratch: [padded.size()].
  void finish(const Problem& problem, Index h, Range rows, Range padded, Range keys, const KeySet* allowed,
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
    if (!gates_.empty() && problem.kernel.is_softmax())
      for (Index r = 0; r < count; ++r)
        gates_.add(h, padded, references[r].level, scores + r * stride, scratch);
    const bool dense = dense_masks(problem, h, rows, keys);
    for (Index r = 0; r < count; ++r) {
      Real* row = scores + r * stride;
      if (dense) add_dense(problem, h, rows.begin + r, padded, keys, allowed[r], references[r], row, scratch);
      if (allowed[r].solid(keys).size() == size) continue;
      Index first = 0;  // of what is left out
      allowed[r].for_each(keys, [&](Range piece) {
        std::fill(row + first, row + (piece.begin - padded.begin), kMasked);
        first = piece.end - padded.begin;
      });
      std::fill(row + first, row + size, kMasked);
    }
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

  /// Dense bias, with the lag's if there are both, and mask on the scores of the `padded` keys that are in
  /// `keys` and allowed; those at the others may become anything.
  static void add_dense(const Problem& problem, Index h, Index i, Range padded, Range keys,
                        const KeySet& allowed, const BiasReference& reference, Real* scores, Real* scratch) {
    using namespace simd;
    std::fill_n(scratch, padded.size(), Real{0});
    allowed.for_each(keys, [&](Range piece) {
      dense_values(problem, h, i, piece, reference, scratch + (piece.begin - padded.begin));
    });
    // A masked score is -infinity even if it was NaN.
    for (Index j = 0; j < padded.size(); j += kLanes<Real>) {
      const Vec<Real> bias = load(scratch + j), masked = set(kMasked);
      const Vec<Real> sum = fma(bias, set(static_cast<Real>(kLog2E)), load(scores + j));
      store<Real>(if_equal(bias, masked, masked, sum), scores + j);
    }
  }

  /// bias [keys.size()] = what dense bias, with the lag's, and mask add to the scores of keys in one range.
  static void dense_values(const Problem& problem, Index h, Index i, Range keys,
                           const BiasReference& reference, Real* bias) {
    if (problem.dense_bias.data != nullptr) {
      if (problem.grid.in_order())
        problem.dense_bias.read(h, i, keys, bias);
      else
        for (Index j = keys.begin; j < keys.end; ++j)
          bias[j - keys.begin] = static_cast<Real>(problem.dense_bias(h, i, problem.grid.source(j)));
      const auto largest = static_cast<Real>(reference.dense);  // one of them
      if (problem.bias.empty())
        for (Index m = 0; m < keys.size(); ++m) bias[m] -= largest;
      else
        for (Index j = keys.begin; j < keys.end; ++j)
          bias[j - keys.begin] =
              static_cast<Real>(static_cast<double>(bias[j - keys.begin]) - reference.dense +
                                lag_bias(problem, h, i, j) - reference.rest);
    }
    if (problem.dense_mask.data != nullptr) {
      const bool* row = problem.dense_mask.head(h).row(i);
      for (Index j = keys.begin; j < keys.end; ++j)
        if (!row[problem.grid.source(j)]) bias[j - keys.begin] = kMasked;
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
  GateSums gates_;
  DenseBlocks dense_;
};

}  // namespace fastrope::inline FASTROPE_TARGET
