// Rotary position embedding: which pairs of columns turn, and at what frequency.
//
// At position p the pair m of the first `rotary_dim` columns is turned by the angle p * theta_m, so that the
// product of a query at position p and a key at position t depends on the lag p - t alone:
//     q^T R(p)^T R(t) k,  R(p) = diag of 2x2 rotations,  theta_m = base^(-2m / rotary_dim), scaled as
//     `scaling` says.
#pragma once

#include <cmath>
#include <numbers>
#include <optional>
#include <variant>
#include <vector>

#include "fastrope/core/error.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// Which two columns form pair m: (2m, 2m+1) as in the paper, llama2.c and GPT-J, or (m, m + rotary_dim/2) as
/// in GPT-NeoX.
enum class RopePairing { interleaved, half_split };

/// All frequencies divided by `factor` (position interpolation).
struct LinearScaling {
  double factor = 1.0;
};

/// The base grows to base * factor^(rotary_dim / (rotary_dim - 2)), which divides the lowest frequency by
/// `factor` and leaves the highest (NTK-aware scaling).
struct NtkScaling {
  double factor = 1.0;
};

/// YaRN (Peng et al. 2023): pairs that turn less than beta_slow times in original_context are divided by
/// `factor`, those that turn more than beta_fast times are kept, a linear ramp over the pair number between.
/// q and k are also multiplied by the attention factor, 0.1 ln(factor) + 1 unless given.
struct YarnScaling {
  double factor = 1.0;
  double original_context = 4096;
  double beta_fast = 32;
  double beta_slow = 1;
  std::optional<double> attention_factor = {};
};

/// Llama 3.1: wavelengths above original_context / low_freq_factor are stretched by `factor`, those below
/// original_context / high_freq_factor kept, and a smooth blend between.
struct Llama3Scaling {
  double factor = 8;
  double low_freq_factor = 1;
  double high_freq_factor = 4;
  double original_context = 8192;
};

/// theta_m divided by factors[m] (LongRoPE and other explicit tables), q and k multiplied by
/// `attention_factor`.
struct FactorScaling {
  std::vector<double> factors = {};
  double attention_factor = 1.0;
};

using RopeScaling =
    std::variant<std::monostate, LinearScaling, NtkScaling, YarnScaling, Llama3Scaling, FactorScaling>;

/// Rotary positions of one layer.
struct Rope {
  double base = 10000.0;
  RopePairing pairing = RopePairing::interleaved;
  Index rotary_dim = 0;  ///< leading columns that turn; 0: all of d
  RopeScaling scaling = {};
};

/// Rope resolved for a head size: angles per position for each pair, and the factor on the rotated columns of
/// q and k.
struct RopeFrequencies {
  RopePairing pairing = RopePairing::interleaved;
  std::vector<double> theta = {};  ///< [rotary_dim / 2], radians per position
  double attention_factor = 1.0;

  Index pairs() const { return static_cast<Index>(theta.size()); }
  Index first_column(Index m) const { return pairing == RopePairing::interleaved ? 2 * m : m; }
  Index second_column(Index m) const { return pairing == RopePairing::interleaved ? 2 * m + 1 : m + pairs(); }
  friend bool operator==(const RopeFrequencies&, const RopeFrequencies&) = default;
};

namespace detail {

inline void require_positive(const char* name, double value) {
  if (!(value > 0) || !std::isfinite(value))
    fail("rope: ", name, " must be positive and finite, got ", value);
}

/// The pair number, as a real, that turns `turns` times over `context` positions.
inline double yarn_pair(double turns, double context, double base, double rotary_dim) {
  return rotary_dim * std::log(context / (turns * 2 * std::numbers::pi)) / (2 * std::log(base));
}

inline void scale_frequencies(std::monostate, const Rope&, RopeFrequencies&) {}

inline void scale_frequencies(const LinearScaling& s, const Rope&, RopeFrequencies& f) {
  require_positive("linear scaling factor", s.factor);
  for (double& theta : f.theta) theta /= s.factor;
}

inline void scale_frequencies(const NtkScaling& s, const Rope&, RopeFrequencies& f) {
  require_positive("NTK scaling factor", s.factor);
  const double last =
      static_cast<double>(f.pairs() - 1);  // base^(-2m/D) becomes base^(-2m/D) * factor^(-m/(D/2 - 1))
  for (Index m = 1; m < f.pairs(); ++m) f.theta[m] *= std::pow(s.factor, -static_cast<double>(m) / last);
}

inline void scale_frequencies(const YarnScaling& s, const Rope& rope, RopeFrequencies& f) {
  require_positive("YaRN factor", s.factor);
  require_positive("YaRN original_context", s.original_context);
  require_positive("YaRN beta_fast", s.beta_fast);
  require_positive("YaRN beta_slow", s.beta_slow);
  if (!(s.beta_fast > s.beta_slow))
    fail("rope: YaRN beta_fast (", s.beta_fast, ") must exceed beta_slow (", s.beta_slow, ")");
  if (!(rope.base > 1)) fail("rope: YaRN needs a base above 1, got ", rope.base);
  const double rotary_dim = 2.0 * static_cast<double>(f.pairs());
  const double low =
      std::max(std::floor(yarn_pair(s.beta_fast, s.original_context, rope.base, rotary_dim)), 0.0);
  double high =
      std::min(std::ceil(yarn_pair(s.beta_slow, s.original_context, rope.base, rotary_dim)), rotary_dim - 1);
  if (high == low) high += 1e-3;
  for (Index m = 0; m < f.pairs(); ++m) {
    const double interpolated = std::clamp((static_cast<double>(m) - low) / (high - low), 0.0, 1.0);
    f.theta[m] *= (1 - interpolated) + interpolated / s.factor;
  }
  f.attention_factor = s.attention_factor.value_or(s.factor <= 1 ? 1.0 : 0.1 * std::log(s.factor) + 1.0);
  require_positive("YaRN attention_factor", f.attention_factor);
}

inline void scale_frequencies(const Llama3Scaling& s, const Rope&, RopeFrequencies& f) {
  require_positive("Llama-3 factor", s.factor);
  require_positive("Llama-3 low_freq_factor", s.low_freq_factor);
  require_positive("Llama-3 original_context", s.original_context);
  if (!(s.high_freq_factor > s.low_freq_factor))
    fail("rope: Llama-3 high_freq_factor (", s.high_freq_factor, ") must exceed low_freq_factor (",
         s.low_freq_factor, ")");
  for (double& theta : f.theta) {
    const double turns = s.original_context * theta / (2 * std::numbers::pi);
    const double kept =
        std::clamp((turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor), 0.0, 1.0);
    theta *= kept + (1 - kept) / s.factor;
  }
}

inline void scale_frequencies(const FactorScaling& s, const Rope&, RopeFrequencies& f) {
  if (static_cast<Index>(s.factors.size()) != f.pairs())
    fail("rope: ", s.factors.size(), " frequency factors for ", f.pairs(), " pairs of columns");
  for (Index m = 0; m < f.pairs(); ++m) {
    require_positive("frequency factor", s.factors[m]);
    f.theta[m] /= s.factors[m];
  }
  require_positive("attention_factor", s.attention_factor);
  f.attention_factor = s.attention_factor;
}

}  // namespace detail

/// The frequencies of `rope` for heads of d columns.
/// Throws Error if d is odd where all of it turns, rotary_dim is odd, negative or > d, or a parameter is out
/// of range.
inline RopeFrequencies rope_frequencies(const Rope& rope, Index d) {
  const Index rotary_dim = rope.rotary_dim == 0 ? d : rope.rotary_dim;
  if (rotary_dim < 0 || rotary_dim > d)
    detail::fail("rope: rotary_dim ", rotary_dim, " is not in [0, d = ", d, "]");
  if (rotary_dim % 2 != 0)
    detail::fail("rope: columns turn in pairs, so ", rope.rotary_dim == 0 ? "d" : "rotary_dim",
                 " must be even, got ", rotary_dim);
  detail::require_positive("base", rope.base);
  RopeFrequencies f{.pairing = rope.pairing, .theta = std::vector<double>(rotary_dim / 2)};
  for (Index m = 0; m < f.pairs(); ++m)
    f.theta[m] = std::pow(rope.base, -2.0 * static_cast<double>(m) / static_cast<double>(rotary_dim));
  std::visit([&](const auto& scaling) { detail::scale_frequencies(scaling, rope, f); }, rope.scaling);
  return f;
}

}  // namespace fastrope::inline FASTROPE_TARGET
