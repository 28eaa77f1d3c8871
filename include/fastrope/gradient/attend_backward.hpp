// attend_backward: the gradient of exact attention, with nothing n x n in memory.
//
// Flash attention backwards (Dao et al. 2022): scores are made again tile by tile from q and k, and the log
// of each row's sum, which the forward pass gave, turns them into weights.
#pragma once

#include <cstddef>
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
  if (x.lse.rows != s.heads || x.lse.cols != s.n_q || (x.lse.data == nullptr && s.heads * s.n_q != 0))
    fail("lse is [", x.lse.rows, ", ", x.lse.cols, x.lse.data == nullptr ? "] and null" : "]",
         ", the call is [heads = ", s.heads, ", n_q = ", s.n_q, "]");
}

/// Throws Error for what has a gradient that is not computed yet.
inline void require_exact(const Options& options) {
  if (options.weights)
    fail("attend_backward: options.weights, of ", options.weights->support().size(),
         " entries, have no gradient yet; RoPE has, as options.rope");
  if (options.tolerance > 0)
    fail("attend_backward: options.tolerance is ", options.tolerance,
         "; gradients are exact only, of tolerance 0, until there are approximate ones");
  if (options.path != Path::automatic && options.path != Path::exact)
    fail("attend_backward: options.path is ", options.path, "; gradients are exact only");
}

template <class Real>
void run_backward(const BackwardTensors<Real>& x, const Options& options,
                  const ParameterGradients& parameters) {
  const Shapes shapes = shapes_of(x.q, x.k, x.v);
  require_gradients(shapes, x);
  require_exact(options);
  require_sizes(shapes);
  Shapes of_scores = shapes;
  of_scores.d_v = 0;
  const Problem problem(of_scores, options);
  problem.gates.require_values();
  require_parameters(problem, options.bias, parameters);

  std::vector<std::byte> memory(Workspace::bytes_of(
      [&](Workspace& w) { BackwardCall<Real>(problem, shapes.d_v, options.bias, parameters, w); }));
  Workspace workspace(memory);
  BackwardCall<Real>(problem, shapes.d_v, options.bias, parameters, workspace).run(problem, x, parameters);
}

}  // namespace detail

/// The gradients of a function L of exact attention's result, from that with respect to the result.
///     d_q = dL/dq,  d_k = dL/dk,  d_v = dL/dv  where  d_out = dL/dout
/// q, d_q: [heads, n_q, d]; k, d_k: [kv_heads, n_k, d]; v, d_v: [kv_heads, n_k, d_v]; out, d_out: [heads,
/// n_q, d_v]; lse: [heads, n_q], natural log, of a polynomial kernel the row's sum itself. out and lse are
/// those of attend_partial, of a batch or of a plan of tolerance 0 whose path is exact, with the same q, k, v
/// and options. d_q, d_k and d_v, of q's arithmetic type, are overwritten. Those of query heads that share a
/// key head add up; rows are those before RoPE, unless options.rope_already_applied; dense_bias is a
/// constant, and so is N where at_least's constant is the row's sum. `parameters`: the gradients of lag bias,
/// sinks and gates, where memory is given.
/// Requires: results that share no memory with each other or with what is read.
/// Ensures: results that do not depend on the number of threads. Weights come from lse as it was rounded to
/// Real, a relative error of |lse| epsilon / 2 in each: rows whose biases are all huge, such as padding of
/// -FLT_MAX, have gradients of no meaning unless their d_out is 0. Of a polynomial kernel the sum is rounded,
/// and a row whose N is below the smallest normal number has gradients of 0, like one without keys. What is
/// not finite stays with its row, and those that attend to it or that it attends to.
/// Throws Error, naming the values, for tensors, options and gates that clash, general weights, a tolerance
/// and a path that is not exact.
/// Cost: 2 n_q n_k (3 d + 2 d_v) flops and n_q n_k exponentials or values of the polynomial over the allowed
/// pairs rounded up to whole panels, with a softcap 2 n_q n_k d more. Allocates once: 8 bytes for each
/// element of d_q, d_k and d_v, the packed keys and values, blocks of a fixed size for each worker, and with
/// the gradients of gates 8 bytes for each query and key of each query head. With the gradient of a bias,
/// threads share out the key heads, else splits of 512 keys too.
template <TensorLike Q, RowsLike K, RowsLike V, TensorLike Out, TensorLike DOut,
          class Real = ArithmeticOf<ElementOf<Q>>>
void attend_backward(const Q& q, const K& k, const V& v, const Out& out,
                     std::type_identity_t<MatrixView<const Real>> lse, const DOut& d_out,
                     std::type_identity_t<TensorView<Real>> d_q, std::type_identity_t<TensorView<Real>> d_k,
                     std::type_identity_t<TensorView<Real>> d_v, const Options& options,
                     const ParameterGradients& parameters = {}) {
  detail::run_backward<Real>({StoredRows(as_tensor(q)), StoredRows(as_rows(k)), StoredRows(as_rows(v)),
                              StoredRows(as_tensor(out)), lse, StoredRows(as_tensor(d_out)), d_q, d_k, d_v},
                             options, parameters);
}

}  // namespace fastrope::inline FASTROPE_TARGET
