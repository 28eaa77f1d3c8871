// Shapes: the sizes of a call; SequenceOptions: what one sequence of a batch has of its own.
#pragma once

#include <span>

#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/tensor_view.hpp"
#include "fastrope/position/key_ranges.hpp"
#include "fastrope/problem/dense_bias.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// Sizes of q [heads, n_q, d], k [kv_heads, n_k, d], v [kv_heads, n_k, d_v] and out [heads, n_q, d_v].
struct Shapes {
  Index heads = 0;
  Index kv_heads = 0;
  Index n_q = 0;
  Index n_k = 0;
  Index d = 0;
  Index d_v = 0;

  bool empty() const { return heads == 0 || n_q == 0 || d_v == 0; }
  friend bool operator==(const Shapes&, const Shapes&) = default;
};

/// What one sequence has of its own, as Options has it of one call; empty: the defaults that it has there.
struct SequenceOptions {
  std::span<const Position> queries = {};
  std::span<const Position> keys = {};
  MatrixView<const Position> query_sections = {};  ///< [rope.sections, n_q]
  MatrixView<const Position> key_sections = {};    ///< [rope.sections, n_k]
  KeyRanges key_ranges = {};
  DenseBias dense_bias = {};
  TensorView<const bool> dense_mask = {};
  MatrixView<const float> log_gates = {};        ///< [kv_heads or heads, n_k]
  MatrixView<const float> log_input_gates = {};  ///< [kv_heads or heads, n_k]
};
using SequencePositions = SequenceOptions;

}  // namespace fastrope::inline FASTROPE_TARGET
