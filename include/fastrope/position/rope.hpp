// Rotary position embedding: which pairs of columns turn, and at what frequency.
//
// At position p the pair m of `rotary_dim` columns is turned by the angle p * theta_m, so that the product of
// a query at position p and a key at position t depends on the lag p - t alone:
//     q^T R(p)^T R(t) k,  R(p) = diag of 2x2 rotations,  theta_m = base^(-2m / rotary_dim), scaled as
//     `scaling` says.
// Multimodal RoPE (Qwen2-VL, Wang et al. 2024) deals the pairs out to sections, each turned by positions of
// its own: time, height and width of an image's patch; of text they are all the token's, which is plain RoPE.
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
/// Truncated, as the paper's code has it, the ramp begins and ends at whole pair numbers, rounded outwards;
/// otherwise where the formula says (gpt-oss: `truncate: false` in transformers). q and k are also multiplied
/// by the attention factor, 0.1 ln(factor) + 1 unless given.
struct YarnScaling {
  double factor = 1.0;
  double original_context = 4096;
  double beta_fast = 32;
  double beta_slow = 1;
  std::optional<double> attention_factor = {};
  bool truncate = true;
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
/// `attention_factor`. A pair of infinite factor does not turn.
struct FactorScaling {
  std::vector<double> factors = {};
  double attention_factor = 1.0;
};

using RopeScaling =
    std::variant<std::monostate, LinearScaling, NtkScaling, YarnScaling, Llama3Scaling, FactorScaling>;

/// How pairs are dealt out to S sections of n_0, n_1, .. pairs.
///
/// consecutive: the first n_0 pairs to section 0, the next n_1 to section 1, and so on: Qwen2-VL and
/// Qwen2.5-VL (apply_multimodal_rotary_pos_emb of transformers, whose doubled list of sections says it for
/// both halves of the columns), ggml_rope_multi with GGML_ROPE_TYPE_MROPE.
///
/// interleaved: pair m to section m mod S while that has had fewer than its n pairs, else to section 0:
/// Qwen3-VL (apply_interleaved_mrope of transformers: t h w t h w .. t t). ggml's GGML_ROPE_TYPE_IMROPE
/// agrees where the turns go round, as for 11/11/10 of Qwen3.5, but gives the pairs that are left, 61 and 62
/// of 24/20/20, to its fourth position, which llama.cpp sets to 0 for text: an infinite factor keeps a pair
/// as still as that.
enum class SectionOrder { consecutive, interleaved };

/// Rotary positions of one layer. Phases are held for positions within +-RopeFrequencies::max_position(),
/// 2^31 for frequencies of at most 1; calls with others are refused.
struct Rope {
  double base = 10000.0;
  RopePairing pairing = RopePairing::interleaved;
  Index rotary_dim = 0;  ///< columns that turn; 0: all from rotary_begin on
  RopeScaling scaling = {};
  Index rotary_begin = 0;            ///< the first of them: 0, or d - rotary_dim where the last ones turn
  std::vector<Index> sections = {};  ///< pairs of each, rotary_dim / 2 together; empty: no sections
  SectionOrder section_order = SectionOrder::consecutive;
};

/// Rope resolved for a head size: angles per position for each pair, its section, and the factor on the
/// rotated columns of q and k.
struct RopeFrequencies {
  /// The largest angle, in radians, that is formed: beyond it, rounding of theta and of its products with
  /// positions would change phases by more than 6e-7 (rotation.hpp has the bound).
  static constexpr double kMaxAngle = 0x1p31;
  static constexpr Index kMaxSections = 8;

  RopePairing pairing = RopePairing::interleaved;
  std::vector<double> theta = {};  ///< [rotary_dim / 2], radians per position
  double attention_factor = 1.0;
  Index begin = 0;                          ///< the first column that turns
  Index sections = 1;                       ///< <= kMaxSections
  std::vector<Index> section_of_pair = {};  ///< [rotary_dim / 2]; empty: 0 of all

  Index pairs() const { return static_cast<Index>(theta.size()); }
  Index first_column(Index m) const { return begin + (pairing == RopePairing::interleaved ? 2 * m : m); }
  Index second_column(Index m) const {
    return begin + (pairing == RopePairing::interleaved ? 2 * m + 1 : m + pairs());
  }
  bool turns_column(Index c) const { return c >= begin && c < begin + 2 * pairs(); }
  Index section(Index m) const {
    return section_of_pair.empty() ? 0 : section_of_pair[static_cast<std::size_t>(m)];
  }
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
  double low = yarn_pair(s.beta_fast, s.original_context, rope.base, rotary_dim);
  double high = yarn_pair(s.beta_slow, s.original_context, rope.base, rotary_dim);
  if (s.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, rotary_dim - 1);
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
    if (!(s.factors[m] > 0))
      fail("rope: a frequency factor must be positive, or infinite where a pair does not turn, got ",
           s.factors[m]);
    theta[m] /= s.factors[m];
  }
  require_positive("attention_factor", s.attention_factor);
  return s.attention_factor;
}

/// The section of each pair; nothing without sections.
inline std::vector<Index> section_of_pairs(const Rope& rope, Index pairs) {
  const Index count = std::ssize(rope.sections);
  if (count == 0) return {};
  if (count > RopeFrequencies::kMaxSections)
    fail("rope: ", count, " sections are more than ", RopeFrequencies::kMaxSections);
  Index sum = 0;
  for (const Index n : rope.sections) {
    if (n < 0 || n > pairs) fail("rope: a section of ", n, " of ", pairs, " pairs");
    sum += n;
  }
  if (sum != pairs) fail("rope: the sections have ", sum, " pairs together, ", pairs, " turn");
  std::vector<Index> section(static_cast<std::size_t>(pairs), 0);
  Index first = 0;  // of a section, in consecutive order
  for (Index s = 0; s < count; ++s) {
    const Index n = rope.sections[static_cast<std::size_t>(s)];
    if (rope.section_order == SectionOrder::consecutive) {
      std::fill_n(section.begin() + first, n, s);
      first += n;
    } else if (s > 0) {
      if (n > 0 && s + count * (n - 1) >= pairs)
        fail("rope: every ", count, "th of ", pairs, " pairs from ", s, " on are fewer than the ", n,
             " of section ", s);
      for (Index m = 0; m < n; ++m) section[static_cast<std::size_t>(s + count * m)] = s;
    }
  }
  return section;
}

}  // namespace detail

/// The frequencies of `rope` for heads of d columns.
/// Ensures: each theta is within (1 + 2^9 e / 2^-52) 2^-53 theta of what the formulas give, e the epsilon of
/// long double (1.25 times the rounding of a double where that has 64 bits): 512 roundings' worth of room for
/// those of an exponent, |ln theta| times one, of pow and of a ramp between two scalings.
/// Throws Error if the columns that turn are odd in number or not among the d, sections do not share out
/// their pairs, or a parameter is out of range.
inline RopeFrequencies rope_frequencies(const Rope& rope, Index d) {
  if (rope.rotary_begin < 0 || rope.rotary_begin > d)
    detail::fail("rope: rotary_begin ", rope.rotary_begin, " is not in [0, d = ", d, "]");
  const Index most = d - rope.rotary_begin;
  const Index rotary_dim = rope.rotary_dim == 0 ? most : rope.rotary_dim;
  if (rotary_dim < 0 || rotary_dim > most)
    detail::fail("rope: rotary_dim ", rotary_dim, " is not in [0, d = ", d, "]",
                 rope.rotary_begin == 0 ? "" : " from rotary_begin on");
  if (rotary_dim % 2 != 0)
    detail::fail("rope: columns turn in pairs, so ", rope.rotary_dim == 0 ? "d" : "rotary_dim",
                 " must be even, got ", rotary_dim);
  detail::require_positive("base", rope.base);
  std::vector<long double> theta(static_cast<std::size_t>(rotary_dim / 2));
  for (std::size_t m = 0; m < theta.size(); ++m)
    theta[m] = std::pow(static_cast<long double>(rope.base),
                        -2.0L * static_cast<long double>(m) / static_cast<long double>(rotary_dim));
  RopeFrequencies f{.pairing = rope.pairing,
                    .begin = rope.rotary_begin,
                    .sections = std::max<Index>(1, std::ssize(rope.sections)),
                    .section_of_pair = detail::section_of_pairs(rope, rotary_dim / 2)};
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
