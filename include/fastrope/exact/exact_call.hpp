// ExactCall: every head of a call by the exact path, in the way that suits its shapes.
#pragma once

#include <optional>

#include "fastrope/core/tensor_view.hpp"
#include "fastrope/core/workspace.hpp"
#include "fastrope/exact/attention.hpp"
#include "fastrope/exact/decode.hpp"
#include "fastrope/problem/problem.hpp"

namespace fastrope {

/// Few query rows for each key head are bound by memory and read the cache in place; more are bound by
/// arithmetic and worth packing.
template <class Real>
class ExactCall {
 public:
  ExactCall(const Problem& problem, Workspace& workspace) {
    if (DecodeAttention<Real>::suits(problem))
      decode_.emplace(problem, workspace);
    else
      tiled_.emplace(problem, workspace);
  }

  /// q: [heads, n_q, d], k: [kv_heads, n_k, d], v: [kv_heads, n_k, d_v], out: [heads, n_q, d_v];
  /// lse: [heads, n_q], natural log, or without data.
  template <class Q, class K, class V, class Out>
  void run(const Problem& problem, TensorView<const Q> q, const K& k, const V& v, TensorView<Out> out,
           MatrixView<Real> lse) {
    if (problem.shapes.heads == 0 || problem.shapes.n_q == 0) return;
    if (decode_)
      decode_->run(problem, q, k, v, out, lse);
    else
      tiled_->run(problem, q, k, v, out, lse);
  }

 private:
  struct Tiled {
    PackedKeys<Real> packed;
    ExactAttention<Real> attention;

    Tiled(const Problem& problem, Workspace& workspace)
        : packed(problem, workspace), attention(problem, packed, workspace) {}

    template <class Q, class K, class V, class Out>
    void run(const Problem& problem, TensorView<const Q> q, const K& k, const V& v, TensorView<Out> out,
             MatrixView<Real> lse) {
      packed.pack(problem, k, v);
      attention.prepare(problem);
      const RowTasks<Real> tasks(problem, {0, problem.shapes.heads});
      attention.run(problem, packed, q, out, lse, tasks.count(), [&](Index t) { return tasks[t]; });
    }
  };

  std::optional<DecodeAttention<Real>> decode_ = {};
  std::optional<Tiled> tiled_ = {};
};

}  // namespace fastrope
