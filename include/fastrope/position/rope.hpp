// Rotary position embedding: which pairs of columns turn, and at what frequency.
//
// At position p the pair m of the first `rotary_dim` columns is turned by the angle p * theta_m, so that the
// product of a query at position p and a key at position t depends on the lag p - t alone:
//     q^T R(p)^T R(t) k,  R(p) = diag of 2x2 rotations,  theta_m = base^(-2m / rotary_dim), scaled as
//     `scaling` says.
#pragma once

#include <algorithm>
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

/// Rotary positions of one layer. Phases are held for positions within +-RopeFrequencies::max_position(),
/// 2^31 for frequencies of at most 1; calls with others are refused.
struct Rope {
  double base = 10000.0;
  RopePairing pairing = RopePairing::interleaved;
  Index rotary_dim = 0;  ///< leading columns that turn; 0: all of d
  RopeScaling scaling = {};
};

/// Rope resolved for a head size: angles per position for each pair, and the factor on the rotated columns of
/// q and k.
struct RopeFrequencies {
  /// The largest angle, in radians, that is formed: beyond it, rounding of theta and of its products with
  /// positions would change phases by more than 6e-7 (rotation.hpp has the bound).
  static constexpr double kMaxAngle = 0x1p31;

  RopePairing pairing = RopePairing::interleaved;
  std::vector<double> theta = {};  ///< [rotary_dim / 2], radians per position
  double attention_factor = 1.0;

  Index pairs() const { return static_cast<Index>(theta.size()); }
  Index first_column(Index m) const { return pairing == RopePairing::interleaved ? 2 * m : m; }
  Index second_column(Index m) const { return pairing == RopePairing::interleaved ? 2 * m + 1 : m + pairs(); }
  double largest_theta() const { return theta.empty() ? 0 : *std::max_element(theta.begin(), theta.end()); }
  /// The farthest position, or lag, that is turned: 2^31, or where an angle reaches kMaxAngle.
  Position max_position() const { return static_cast<Position>(kMaxAngle / std::max(1.0, largest_theta())); }
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

/// scale_frequencies(scaling, rope, theta) scales what the base alone gives, [pairs], and returns the
/// attention factor. In long double: there are up to a dozen operations, and theta, which positions multiply,
/// is to be rounded once (rotation.hpp).
inline double scale_frequencies(std::monostate, const Rope&, std::vector<long double>&) { return 1; }

inline double scale_frequencies(const LinearScaling& s, const Rope&, std::vector<long double>& theta) {
  require_positive("linear scaling factor", s.factor);
  for (long double& t : theta) t /= s.factor;
  return 1;
}

inline double scale_frequencies(const NtkScaling& s, const Rope&, std::vector<long double>& theta) {
  require_positive("NTK scaling factor", s.factor);
  const long double factor = s.factor, last = static_cast<long double>(theta.size()) - 1;
  for (std::size_t m = 1; m < theta.size(); ++m)  // base^(-2m/D) becomes base^(-2m/D) * factor^(-m/(D/2 - 1))
    theta[m] *= std::pow(factor, -static_cast<long double>(m) / last);
  return 1;
}

inline double scale_frequencies(const YarnScaling& s, const Rope& rope, std::vector<long double>& theta) {
  require_positive("YaRN factor", s.factor);
  require_positive("YaRN original_context", s.original_context);
  require_positive("YaRN beta_fast", s.beta_fast);
  require_positive("YaRN beta_slow", s.beta_slow);
  if (!(s.beta_fast > s.beta_slow))
    fail("rope: YaRN beta_fast (", s.beta_fast, ") must exceed beta_slow (", s.beta_slow, ")");
  if (!(rope.base > 1)) fail("rope: YaRN needs a base above 1, got ", rope.base);
  const double rotary_dim = 2.0 * static_cast<double>(theta.size());
  const double low =
      std::max(std::floor(yarn_pair(s.beta_fast, s.original_context, rope.base, rotary_dim)), 0.0);
  double high =
      std::min(std::ceil(yarn_pair(s.beta_slow, s.original_context, rope.base, rotary_dim)), rotary_dim - 1);
  if (high == low) high += 1e-3;
  for (std::size_t m = 0; m < theta.size(); ++m) {
    const long double interpolated =
        std::clamp((static_cast<long double>(m) - low) / (high - low), 0.0L, 1.0L);
    theta[m] *= (1 - interpolated) + interpolated / s.factor;
  }
  const double attention_factor =
      s.attention_factor.value_or(s.factor <= 1 ? 1.0 : 0.1 * std::log(s.factor) + 1.0);
  require_positive("YaRN attention_factor", attention_factor);
  return attention_factor;
}

inline double scale_frequencies(const Llama3Scaling& s, const Rope&, std::vector<long double>& theta) {
  require_positive("Llama-3 factor", s.factor);
  require_positive("Llama-3 low_freq_factor", s.low_freq_factor);
  require_positive("Llama-3 original_context", s.original_context);
  if (!(s.high_freq_factor > s.low_freq_factor))
    fail("rope: Llama-3 high_freq_factor (", s.high_freq_factor, ") must exceed low_freq_factor (",
         s.low_freq_factor, ")");
  const long double low = s.low_freq_factor, high = s.high_freq_factor;
  for (long double& t : theta) {
    const long double turns = s.original_context * t / (2 * std::numbers::pi_v<long double>);
    const long double kept = std::clamp((turns - low) / (high - low), 0.0L, 1.0L);
    t *= kept + (1 - kept) / s.factor;
  }
  return 1;
}

inline double scale_frequencies(const FactorScaling& s, const Rope&, std::vector<long double>& theta) {
  if (s.factors.size() != theta.size())
    fail("rope: ", s.factors.size(), " frequency factors for ", theta.size(), " pairs of columns");
  for (std::size_t m = 0; m < theta.size(); ++m) {
    require_positive("frequency factor", s.factors[m]);
    theta[m] /= s.factors[m];
  }
  require_positive("attention_factor", s.attention_factor);
  return s.attention_factor;
}

}  // namespace detail

/// The frequencies of `rope` for heads of d columns.
/// Ensures: each theta is within (1 + 2^9 e / 2^-52) 2^-53 theta of what the formulas give, e the epsilon of
/// long double (1.25 times the rounding of a double where that has 64 bits): 512 roundings' worth of room for
/// those of an exponent, |ln theta| times one, of pow and of a ramp between two scalings.
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
  std::vector<long double> theta(static_cast<std::size_t>(rotary_dim / 2));
  for (std::size_t m = 0; m < theta.size(); ++m)
    theta[m] = std::pow(static_cast<long double>(rope.base),
                        -2.0L * static_cast<long double>(m) / static_cast<long double>(rotary_dim));
  RopeFrequencies f{.pairing = rope.pairing};
  f.attention_factor = std::visit(
      [&](const auto& scaling) { return detail::scale_frequencies(scaling, rope, theta); }, rope.scaling);
  for (const long double t : theta) {
    f.theta.push_back(static_cast<double>(t));
    if (!std::isfinite(f.theta.back()))
      detail::fail("rope: base ", rope.base, " and its scaling make a frequency of ", f.theta.back());
  }
  return f;
}

}  // namespace fastrope::inline FASTROPE_TARGET
