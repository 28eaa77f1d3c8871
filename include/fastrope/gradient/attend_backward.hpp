// attend_backward: the gradient of exact attention, with nothing n x n in memory.
//
// Flash attention backwards (Dao et al. 2022): scores are made again tile by tile from q and k, and the log
// of each row's sum, which the forward pass gave, turns them into weights. With a tolerance and bounded
// entries, gradients by features, in linear time (backward_choice.hpp).
#pragma once

#include <cmath>
#include <cstddef>
#include <string>
#include <type_traits>
#include <vector>

#include "fastrope/core/error.hpp"
#include "fastrope/core/paged_view.hpp"
#include "fastrope/core/row_overlap.hpp"
#include "fastrope/core/stored_rows.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/tensor_view.hpp"
#include "fastrope/core/workspace.hpp"
#include "fastrope/gradient/backward_call.hpp"
#include "fastrope/gradient/backward_choice.hpp"
#include "fastrope/gradient/feature_backward.hpp"
#include "fastrope/gradient/parameter_gradients.hpp"
#include "fastrope/problem/options.hpp"
#include "fastrope/problem/problem.hpp"

namespace fastrope::inline FASTROPE_TARGET {

namespace detail {

/// Throws Error, naming the values, unless t is [heads, rows, cols] and has data.
template <class Tensor>
void require_shape(const char* name, const Tensor& t, Index heads, Index rows, Index cols) {
  if (t.heads != heads || t.rows != rows || t.cols != cols)
    fail(name, " is [", t.heads, ", ", t.rows, ", ", t.cols, "], the call needs [", heads, ", ", rows, ", ",
         cols, "]");
  if (t.data == nullptr && heads * rows * cols != 0)
    fail(name, " is a null pointer with size [", heads, ", ", rows, ", ", cols, "]");
}

template <class Real>
void require_gradients(const Shapes& s, const BackwardTensors<Real>& x) {
  require_shape("out", x.out, s.heads, s.n_q, s.d_v);
  require_shape("d_out", x.d_out, s.heads, s.n_q, s.d_v);
  require_shape("d_q", x.d_q, s.heads, s.n_q, s.d);
  require_shape("d_k", x.d_k, s.kv_heads, s.n_k, s.d);
  require_shape("d_v", x.d_v, s.kv_heads, s.n_k, s.d_v);
  require_separate_rows("d_q", x.d_q);
  require_separate_rows("d_k", x.d_k);
  require_separate_rows("d_v", x.d_v);
}

/// why: what makes the call exact, empty if it never was to be anything else.
template <class Real>
void require_row_sums(const Shapes& s, const MatrixView<const Real>& lse, const std::string& why) {
  if (lse.rows != s.heads || lse.cols != s.n_q || (lse.data == nullptr && s.heads * s.n_q != 0))
    fail("lse is [", lse.rows, ", ", lse.cols, lse.data == nullptr ? "] and null" : "]",
         ", the call is [heads = ", s.heads, ", n_q = ", s.n_q, "]",
         why.empty() ? "" : " and exact with this tolerance: ", why);
}

/// Throws Error for what has a gradient that is not computed yet.
inline void require_differentiable(const Options& options) {
  if (options.weights)
    fail("attend_backward: options.weights, of ", options.weights->support().size(),
         " entries, have no gradient yet; RoPE has, as options.rope");
  if (!(options.tolerance >= 0) || std::isinf(options.tolerance))
    fail("attend_backward: options.tolerance is 0 or a positive number, got ", options.tolerance);
  if (options.path == Path::toeplitz)
    fail("attend_backward: options.path is toeplitz; gradients are exact or by features");
  if (options.path == Path::polynomial && options.tolerance == 0)
    fail("attend_backward: options.path is polynomial, which needs a tolerance above 0");
}

/// By features, or the reason why not.
template <class Real>
BackwardReport run_features(const Problem& problem, const BackwardTensors<Real>& x, const Options& options) {
  const BackwardSizes sizes{largest_row(x.q, length_of), largest_row(x.k, length_of),
                            largest_row(x.v, largest_of), largest_row(x.d_out, largest_of)};
  BackwardChoice choice = choose_backward<Real>(problem, options, x.v.cols, sizes);
  if (!choice.features) return choice.report;
  std::vector<std::byte> memory(
      Workspace::bytes_of([&](Workspace& w) { FeatureBackward(problem, x.v.cols, *choice.features, w); }));
  Workspace workspace(memory);
  FeatureBackward(problem, x.v.cols, *choice.features, workspace)
      .run(problem, {x.q, x.k, x.v, x.d_out, x.d_q, x.d_k, x.d_v});
  return choice.report;
}

template <class Real>
BackwardReport run_backward(const BackwardTensors<Real>& x, const Options& options,
                            const ParameterGradients& parameters) {
  const Shapes shapes = shapes_of(x.q, x.k, x.v);
  require_gradients(shapes, x);
  require_differentiable(options);
  require_sizes(shapes);
  Shapes of_scores = shapes;
  of_scores.d_v = 0;
  const Problem problem(of_scores, options);
  problem.gates.require_values();
  require_parameters(problem, options.bias, parameters);

  BackwardReport report;
  if (options.tolerance > 0 && options.path != Path::exact) {
    report = run_features(problem, x, options);
    if (report.path == Path::polynomial) return report;
  }
  require_row_sums(shapes, x.lse, report.reason);
  std::vector<std::byte> memory(Workspace::bytes_of(
      [&](Workspace& w) { BackwardCall<Real>(problem, shapes.d_v, options.bias, parameters, w); }));
  Workspace workspace(memory);
  BackwardCall<Real>(problem, shapes.d_v, options.bias, parameters, workspace).run(problem, x, parameters);
  return report;
}

}  // namespace detail

/// The gradients of a function L of exact attention's result, from that with respect to the result.
///     d_q = dL/dq,  d_k = dL/dk,  d_v = dL/dv  where  d_out = dL/dout
/// q, d_q: [heads, n_q, d]; k, d_k: [kv_heads, n_k, d]; v, d_v: [kv_heads, n_k, d_v]; out, d_out: [heads,
/// n_q, d_v]; lse: [heads, n_q], natural log, of a polynomial kernel the row's sum itself. out and lse are
/// those of attend_partial, of a batch or of a plan of tolerance 0 whose path is exact, with the same q, k,
/// v and options. d_q, d_k and d_v, of q's arithmetic type, are overwritten. Those of query heads that
/// share a key head add up; rows are those before RoPE, unless options.rope_already_applied; dense_bias is
/// a constant, and so is N where at_least's constant is the row's sum. `parameters`: the gradients of lag
/// bias, sinks and gates, where memory is given.
/// With options.tolerance > 0, and entries |s| |q_i| |k_j| so small that it takes less time, gradients are
/// computed by features, in time linear in n_q + n_k. Then, for every row, beside rounding to q's type,
///     |d_q_i - exact|_2 <= tolerance |s| G^2 max|k|_2 max|V| |d_out_i|_1,
///     |d_k_j - exact|_2 <= tolerance |s| G^2 max|q|_2 max|V| sum_i p_ij |d_out_i|_1,
///     |d_v_jc - exact|  <= tolerance sum_i p_ij |d_out_ic|
/// with s the scale, p the exact weights, G the attention factor of RoPE or 1 if that is more, and maxima
/// over all rows; the report has the bound that takes tolerance's place. That is of softmax with a full
/// mask, or a causal one with n_q <= n_k, without given positions, key ranges, softcap, sinks, biases,
/// gates and dense masks; all else is exact, and the report says why. out and lse are not read then, and
/// lse may be without data. options.path exact and polynomial choose.
/// Requires: results that share no memory with each other or with what is read.
/// Ensures: results that do not depend on the number of threads. Exact weights come from lse as it was
/// rounded to Real, a relative error of |lse| epsilon / 2 in each: rows whose biases are all huge, such as
/// padding of -FLT_MAX, have gradients of no meaning unless their d_out is 0. Of a polynomial kernel the
/// sum is rounded, and a row whose N is below the smallest normal number has gradients of 0, like one
/// without keys. What is not finite stays with its row, and those that attend to it or that it attends to.
/// Throws Error, naming the values, for tensors, options and gates that clash, general weights, path
/// toeplitz, path polynomial where it cannot be, and an lse without data where the call is exact.
/// Cost: 2 n_q n_k (3 d + 2 d_v) flops and n_q n_k exponentials or values of the polynomial over the
/// allowed pairs rounded up to whole panels, with a softcap 2 n_q n_k d more. Allocates once: 8 bytes for
/// each element of d_q, d_k and d_v, the packed keys and values, blocks of a fixed size for each worker,
/// and with the gradients of gates 8 bytes for each query and key of each query head. With the gradient of
/// a bias, threads share out the key heads, else splits of 512 keys too. By features of rank r, 12 r (d_v +
/// 1) flops of double for a query and a key, and memory for each worker of 8 r (64 + d_v) bytes and 8 (d_v
/// + 1) for each query of a key head; threads share out the key heads.
template <TensorLike Q, RowsLike K, RowsLike V, TensorLike Out, TensorLike DOut,
          class Real = ArithmeticOf<ElementOf<Q>>>
BackwardReport attend_backward(const Q& q, const K& k, const V& v, const Out& out,
                               std::type_identity_t<MatrixView<const Real>> lse, const DOut& d_out,
                               std::type_identity_t<TensorView<Real>> d_q,
                               std::type_identity_t<TensorView<Real>> d_k,
                               std::type_identity_t<TensorView<Real>> d_v, const Options& options,
                               const ParameterGradients& parameters = {}) {
  return detail::run_backward<Real>(
      {StoredRows(as_tensor(q)), StoredRows(as_rows(k)), StoredRows(as_rows(v)), StoredRows(as_tensor(out)),
       lse, StoredRows(as_tensor(d_out)), d_q, d_k, d_v},
      options, parameters);
}

}  // namespace fastrope::inline FASTROPE_TARGET
