// AttentionCase: one call's shapes and options together with the memory that the options point to, and the
// lag bias written again as a formula for the oracle.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "fastrope/problem/options.hpp"
#include "fastrope/problem/problem.hpp"
#include "support/inputs.hpp"
#include "support/norms.hpp"
#include "support/reference.hpp"
#include "support/tensor.hpp"

namespace fastrope_test {

using fastrope::Options;
using fastrope::Shapes;

struct AttentionCase {
  Shapes shapes;
  Options base = {};  ///< without the spans below
  BiasFunction bias = {};
  std::vector<float> sinks = {};
  std::vector<float> dense = {};  ///< [heads or 1, n_q or 1, n_k]
  Index dense_head_stride = 0;
  Index dense_row_stride = 0;
  std::vector<Position> query_positions = {};
  std::vector<Position> key_positions = {};
  std::vector<Position> query_section_positions = {};  ///< [sections, n_q]
  std::vector<Position> key_section_positions = {};    ///< [sections, n_k]
  fastrope::RowRanges ranges = {};
  std::vector<float> log_gates = {};        ///< [rows, n_k]
  std::vector<float> log_input_gates = {};  ///< the same
  std::string text = {};                    ///< what distinguishes the case

  /// Valid while the case lives.
  Options options() const {
    Options options = base;
    options.sinks = sinks;
    options.query_positions = query_positions;
    options.key_positions = key_positions;
    const auto sections = [&](const std::vector<Position>& positions, Index n) {
      return fastrope::MatrixView<const Position>(positions.data(), n == 0 ? 0 : std::ssize(positions) / n,
                                                  n);
    };
    if (!query_section_positions.empty())
      options.query_section_positions = sections(query_section_positions, shapes.n_q);
    if (!key_section_positions.empty())
      options.key_section_positions = sections(key_section_positions, shapes.n_k);
    if (!ranges.ranges.empty()) options.key_ranges = ranges;
    const auto gates = [&](const std::vector<float>& x) {
      return fastrope::MatrixView<const float>(x.data(), std::ssize(x) / shapes.n_k, shapes.n_k);
    };
    if (!log_gates.empty()) options.log_gates = gates(log_gates);
    if (!log_input_gates.empty()) options.log_input_gates = gates(log_input_gates);
    if (!dense.empty())
      options.dense_bias = {dense.data(), shapes.heads,      shapes.n_q,
                            shapes.n_k,   dense_head_stride, dense_row_stride};
    return options;
  }

  friend std::ostream& operator<<(std::ostream& out, const AttentionCase& c) {
    const Shapes& s = c.shapes;
    return out << "heads " << s.heads << '/' << s.kv_heads << ", n_q " << s.n_q << ", n_k " << s.n_k << ", d "
               << s.d << ", d_v " << s.d_v << ", lags " << c.base.mask.first << ".." << c.base.mask.last
               << c.text;
  }
};

/// q, k, v of a case and an output that no kernel has written yet.
template <class T, class KV = T>
struct AttentionInputs {
  Tensor<T> q;
  Tensor<KV> k, v;
  Tensor<T> out;

  /// Logits of deviation 1 at the default scale, |v| < 1.
  AttentionInputs(const Shapes& s, Inputs& random)
      : q(random.gaussian<T>(s.heads, s.n_q, s.d)),
        k(random.gaussian<KV>(s.kv_heads, s.n_k, s.d)),
        v(s.kv_heads, s.n_k, s.d_v),
        out(s.heads, s.n_q, s.d_v) {
    for (KV& x : v.values) x = static_cast<KV>(random.uniform(-1, 1));
    for (T& x : out.values) x = std::numeric_limits<T>::quiet_NaN();
  }
  AttentionInputs(const Shapes& s, Inputs&& random) : AttentionInputs(s, random) {}
  AttentionInputs(const Shapes& s, std::uint64_t seed) : AttentionInputs(s, Inputs(seed)) {}

  Reference reference(const AttentionCase& c) const {
    return reference_attention(q.view(), k.view(), v.view(), c.options(), c.bias);
  }
};

/// -slopes[h] |lag|.
inline BiasFunction alibi_formula(std::vector<double> slopes) {
  return [slopes = std::move(slopes)](Index head, Position lag) {
    return -slopes[slopes.size() == 1 ? 0 : static_cast<std::size_t>(head)] *
           std::abs(static_cast<double>(lag));
  };
}

/// T5's relative_position_bucket as HuggingFace has it, for relative_position = key - query = -lag; table:
/// [buckets, heads].
inline BiasFunction t5_formula(std::vector<double> table, Index heads, bool bidirectional,
                               Index max_distance) {
  return [table = std::move(table), heads, bidirectional, max_distance](Index head, Position lag) {
    Index buckets = static_cast<Index>(table.size()) / heads, bucket = 0;
    Position distance = lag;
    if (bidirectional) {
      buckets /= 2;
      if (-lag > 0) bucket = buckets;
      distance = std::abs(lag);
    } else {
      distance = std::max<Position>(lag, 0);
    }
    const Index max_exact = buckets / 2;
    if (distance < max_exact) {
      bucket += distance;
    } else {
      const double large = std::log(static_cast<double>(distance) / static_cast<double>(max_exact)) /
                           std::log(static_cast<double>(max_distance) / static_cast<double>(max_exact)) *
                           static_cast<double>(buckets - max_exact);
      bucket += std::min(max_exact + static_cast<Index>(large + 1e-12), buckets - 1);
    }
    return table[static_cast<std::size_t>(bucket * heads + head)];
  };
}

/// values [heads or 1, lags], from first_lag.
inline BiasFunction table_formula(std::vector<double> values, Index table_heads, Position first_lag) {
  return [values = std::move(values), table_heads, first_lag](Index head, Position lag) {
    const Index lags = static_cast<Index>(values.size()) / table_heads;
    return values.at(static_cast<std::size_t>((table_heads == 1 ? 0 : head) * lags + lag - first_lag));
  };
}

/// `count` random numbers in [low, high).
inline std::vector<double> random_numbers(Inputs& random, Index count, double low, double high) {
  std::vector<double> numbers;
  for (Index i = 0; i < count; ++i) numbers.push_back(random.uniform(low, high));
  return numbers;
}

inline void set_alibi(AttentionCase& c, Inputs& random) {
  const std::vector<double> slopes = random_numbers(random, c.shapes.heads, 0.001, 0.1);
  c.base.bias = fastrope::LagBias::alibi(slopes);
  c.bias = alibi_formula(slopes);
  c.text += ", ALiBi";
}

inline void set_t5(AttentionCase& c, Inputs& random, bool bidirectional) {
  const Index heads = c.shapes.heads, max_distance = 50;
  const std::vector<double> table = random_numbers(random, 16 * heads, -2, 2);
  c.base.bias = fastrope::LagBias::t5(table, heads, bidirectional, max_distance);
  c.bias = t5_formula(table, heads, bidirectional, max_distance);
  c.text += bidirectional ? ", T5 both ways" : ", T5 one way";
}

/// A table over lags -reach..reach, for each head or one for all.
inline void set_table(AttentionCase& c, Inputs& random, Index table_heads, Position reach) {
  const std::vector<double> values = random_numbers(random, table_heads * (2 * reach + 1), -2, 2);
  c.base.bias = fastrope::LagBias::table(values, table_heads, -reach);
  c.bias = table_formula(values, table_heads, -reach);
  c.text += ", bias table";
}

/// W(lag) on `entries` random places of d x d, lags -reach..reach, weights in [-1, 1).
inline fastrope::RelativeWeights random_weights(Inputs& random, Index d, Index entries, Position reach) {
  std::vector<fastrope::RelativeWeights::Entry> support;
  while (static_cast<Index>(support.size()) < std::min(entries, d * d)) {
    const fastrope::RelativeWeights::Entry entry{random.integer(0, d - 1), random.integer(0, d - 1)};
    if (std::find(support.begin(), support.end(), entry) == support.end()) support.push_back(entry);
  }
  const Index size = static_cast<Index>(support.size()) * (2 * reach + 1);
  return {support, -reach, random_numbers(random, size, -1, 1)};
}

/// A dense bias, one value in `masked_out_of` -infinity; its rows and heads repeated where asked.
inline void set_dense(AttentionCase& c, Inputs& random, bool per_head, bool per_row, Index masked_out_of) {
  const Shapes& s = c.shapes;
  c.dense_row_stride = per_row ? s.n_k : 0;
  c.dense_head_stride = per_head ? (per_row ? s.n_q : 1) * s.n_k : 0;
  c.dense.resize(static_cast<std::size_t>((per_head ? s.heads : 1) * (per_row ? s.n_q : 1) * s.n_k));
  for (float& b : c.dense)
    b = random.integer(1, masked_out_of) == 1 ? -INFINITY : static_cast<float>(random.uniform(-2, 2));
  c.text += per_head ? ", dense bias per head" : ", dense bias";
  if (!per_row) c.text += " of one row";
}

inline void set_sinks(AttentionCase& c, Inputs& random) {
  for (Index h = 0; h < c.shapes.heads; ++h) c.sinks.push_back(static_cast<float>(random.uniform(-3, 3)));
  c.text += ", sinks";
}

/// Sections of so many pairs of the rope, and random positions for each.
inline void set_sections(AttentionCase& c, Inputs& random, std::vector<Index> pairs,
                         fastrope::SectionOrder order) {
  const Index count = std::ssize(pairs);
  c.base.rope->sections = std::move(pairs);
  c.base.rope->section_order = order;
  const auto positions = [&](Index n) {
    std::vector<Position> all;
    for (Index i = 0; i < count * n; ++i) all.push_back(random.integer(-20, 20) + i % n / 7);
    return all;
  };
  c.query_section_positions = positions(c.shapes.n_q);
  c.key_section_positions = positions(c.shapes.n_k);
  c.text += order == fastrope::SectionOrder::interleaved ? ", interleaved sections" : ", sections";
}

/// The log gates of `rows` heads: log(1 - 2^-a) for a up to `weakest`, one token in `resets_of` -infinity
/// (0: none).
inline void set_gates(AttentionCase& c, Inputs& random, Index rows, double weakest, Index resets_of = 0) {
  c.log_gates.resize(static_cast<std::size_t>(rows * c.shapes.n_k));
  for (float& g : c.log_gates) {
    g = static_cast<float>(std::log1p(-std::exp2(-random.uniform(0.01, weakest))));
    if (resets_of > 0 && random.integer(1, resets_of) == 1) g = -INFINITY;
  }
  c.text += ", gates of " + std::to_string(rows) + " heads" + (resets_of > 0 ? " with resets" : "");
}
/// Log input gates up to +-size.
inline void set_input_gates(AttentionCase& c, Inputs& random, Index rows, double size) {
  c.log_input_gates.resize(static_cast<std::size_t>(rows * c.shapes.n_k));
  for (float& b : c.log_input_gates) b = static_cast<float>(random.uniform(-size, size));
  c.text += ", input gates";
}

/// n positions from `first`, shuffled.
inline std::vector<Position> shuffled_positions(Inputs& random, Index n, Position first) {
  std::vector<Position> positions(static_cast<std::size_t>(n));
  for (Index i = 0; i < n; ++i) positions[static_cast<std::size_t>(i)] = first + i;
  std::shuffle(positions.begin(), positions.end(), random.random());
  return positions;
}

}  // namespace fastrope_test
