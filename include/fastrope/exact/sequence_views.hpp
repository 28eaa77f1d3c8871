// SequenceViews: the tensors of one sequence of a batch.
#pragma once

#include "fastrope/core/storage.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/tensor_view.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// One sequence's tensors. q: [heads, n_q, d], k: [kv_heads, n_k, d], v: [kv_heads, n_k, d_v], out: [heads,
/// n_q, d_v]; K and V are a TensorView or a PagedView. n_q and n_k may be 0. lse: [heads, n_q], the natural
/// log of each row's sum of exponentials, as merge() wants it, of a polynomial kernel the sum itself; without
/// data where it is not wanted.
template <class Q, class K = TensorView<const Q>, class V = K, class Out = Q>
struct SequenceViews {
  TensorView<const Q> q;
  K k;
  V v;
  TensorView<Out> out;
  MatrixView<ArithmeticOf<Q>> lse = {};
};

}  // namespace fastrope::inline FASTROPE_TARGET
