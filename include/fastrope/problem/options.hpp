// Options: what a caller asks for beside q, k and v.
#pragma once

#include <optional>
#include <ostream>
#include <span>
#include <vector>

#include "fastrope/core/error.hpp"
#include "fastrope/core/executor.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/numbers.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/tensor_view.hpp"
#include "fastrope/position/key_ranges.hpp"
#include "fastrope/position/lag_bias.hpp"
#include "fastrope/position/mask.hpp"
#include "fastrope/position/relative_weights.hpp"
#include "fastrope/position/rope.hpp"
#include "fastrope/problem/dense_bias.hpp"
#include "fastrope/problem/kernel.hpp"
#include "fastrope/problem/normaliser.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// The ways attention is computed; automatic lets the dispatcher choose for each head.
enum class Path { automatic, exact, polynomial, toeplitz };

constexpr const char* to_string(Path path) {
  switch (path) {
    case Path::automatic:
      return "automatic";
    case Path::exact:
      return "exact";
    case Path::polynomial:
      return "polynomial";
    case Path::toeplitz:
      return "toeplitz";
  }
  return "unknown";
}

inline std::ostream& operator<<(std::ostream& out, Path path) { return out << to_string(path); }

/// One attention call. A logit is
///     x = scale * q^T W(lag) k,  x = softcap * tanh(x / softcap) if softcap > 0,  x += bias(lag) +
///     dense_bias,
/// where W comes from rope, weights or neither (the identity). A key is left out where mask, key_ranges,
/// dense_mask or a bias of -infinity says so. A polynomial kernel takes the place of exp; softcap, sinks,
/// dense_bias and bias, which change an exponent, do not go with it, but ALiBi, which is a constant gate.
/// Gates multiply the weight of key j for query i by exp(G_i - G_j + b_j), G_i the sum of the log gates of
/// all keys at query i's position or before (gates.hpp). They go with masks of lags >= 0, and not with
/// key_ranges, dense_bias and dense_mask, nor under softmax with bias; runs read them when called.
struct Options {
  std::optional<Rope> rope = {};
  bool rope_already_applied = false;  ///< q and k arrive turned: rope is only described, not applied
  Mask mask = Mask::full();
  KeyRanges key_ranges = {};  ///< a few ranges of keys for each row, of which the mask may leave a part;
                              ///< read, like positions, when a call is checked or planned; by a
                              ///< plan with capacity whenever it is run
  LagBias bias = LagBias::none();
  std::optional<RelativeWeights> weights = {};   ///< general W(lag); excludes rope
  std::optional<double> scale = {};              ///< default 1/sqrt(d)
  Kernel kernel = Kernel::softmax();             ///< what becomes of a logit: exp or a polynomial
  MatrixView<const float> log_gates = {};        ///< [kv_heads or heads, n_k], at most 0; -infinity: a reset
  MatrixView<const float> log_input_gates = {};  ///< [kv_heads or heads, n_k], below infinity; -infinity: a
                                                 ///< weight of 0, of a key that is not left out: NaN stays
  Normaliser normaliser = {};  ///< what rows are divided by; but the plain sum, for polynomial kernels
  double tolerance = 0;        ///< max |out - exact| / max|V| allowed; 0: exact path only. With a
                               ///< polynomial kernel rows whose bound by features is more (0: than
                               ///< 1e-2) are computed by exact tiles if those have a smaller one
  Path path = Path::automatic;
  Index verify = 0;                                ///< rows that attend() recomputes for its report
  double softcap = 0;                              ///< 0: none
  std::span<const float> sinks = {};               ///< one logit per query head that joins the denominator
  DenseBias dense_bias = {};                       ///< [heads, n_q, n_k], -inf masks; strides may be 0
  TensorView<const bool> dense_mask = {};          ///< [heads, n_q, n_k], true: may attend; strides may be 0
  std::span<const Position> query_positions = {};  ///< empty: where the last n_q keys stand
  std::span<const Position> key_positions = {};    ///< empty: 0..n_k-1
  /// [rope.sections, n_q] and [rope.sections, n_k]: what each section's pairs turn by, in the place of the
  /// positions above, which mask and biases go by in any case; empty: those, which is plain RoPE
  MatrixView<const Position> query_section_positions = {};
  MatrixView<const Position> key_section_positions = {};
  Executor executor = Executor::serial();
};

}  // namespace fastrope::inline FASTROPE_TARGET
