// Entry bounds: a look at q, k and v, from which every bound on the logits follows.
//
// A sample of the rows tells what is worth measuring; one pass over them measures it.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "fastrope/core/index.hpp"
#include "fastrope/core/simd.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/tensor_view.hpp"
#include "fastrope/core/transpose.hpp"
#include "fastrope/polynomial/low_rank.hpp"
#include "fastrope/polynomial/projection_choice.hpp"
#include "fastrope/polynomial/row_bounds.hpp"
#include "fastrope/polynomial/rows.hpp"
#include "fastrope/position/rotation.hpp"
#include "fastrope/problem/problem.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// The ranges of one head's values. Rows may be added.
template <class Real>
class ValueBounds {
 public:
  /// Reads the rows that were not there before.
  void extend(const RowSource<Real>& values) {
    Eigen::Matrix<Real, kRowBlock, Eigen::Dynamic> columns(kRowBlock, values.d);
    for_each_block(values, rows_, false, [&](Range block, auto& rows) {
      // Rows past the end repeat the first.
      for (Index i = block.size(); i < kRowBlock; ++i) rows.row(i) = rows.row(0);
      transpose(rows.data(), kRowBlock, values.d, values.d, columns.data(), kRowBlock);
      add(columns);
    });
    rows_ = values.count;
  }

  /// Counts the rows of a matrix in, which is stored column by column.
  template <class Matrix>
  void add(const Matrix& rows) {
    if (lowest_.size() == 0) {
      lowest_.setConstant(rows.cols(), std::numeric_limits<Real>::infinity());
      highest_ = -lowest_;
    }
    if (rows.rows() == 0) return;
    for (Index c = 0; c < rows.cols(); ++c) {
      const auto column = rows.col(c).array();
      lowest_(c) = std::min(lowest_(c), column.minCoeff());
      highest_(c) = std::max(highest_(c), column.maxCoeff());
      zeros_ += (Real{0} * column).sum();
    }
  }

  bool finite() const { return zeros_ == Real{0}; }
  /// Half of the largest range of a column, over the largest element.
  double spread() const {
    double range = 0, largest = 0;
    for (Index c = 0; c < lowest_.size(); ++c) {
      const auto low = static_cast<double>(lowest_(c)), high = static_cast<double>(highest_(c));
      range = std::max(range, high - low);
      largest = std::max({largest, high, -low});
    }
    // One rounding of the range and one of the quotient.
    constexpr double kOutward = 1 + 2 * std::numeric_limits<double>::epsilon();
    return largest > 0 ? std::min(1.0, range / largest / 2 * kOutward) : 1;
  }

 private:
  using Row = Eigen::Array<Real, 1, Eigen::Dynamic>;

  Index rows_ = 0;
  Row lowest_ = {}, highest_ = {};
  Real zeros_ = 0;  // or NaN, if a value is not finite
};

/// row_of(i), [d] each, for i in rows, converted to `to`, [rows.size(), d]. Rows that follow each other in
/// memory are converted together: a row may be shorter than a vector.
template <class Real, class RowOf>
void convert_rows(Range rows, Index d, const RowOf& row_of, Real* to) {
  for (Index i = rows.begin; i < rows.end;) {
    const auto* first = row_of(i);
    Index end = i + 1;
    while (end < rows.end && row_of(end) == first + (end - i) * d) ++end;
    simd::convert(first, (end - i) * d, to + (i - rows.begin) * d);
    i = end;
  }
}

/// Rows row_of(i), i < count, turned by the angles of position_of(i). What they refer to must outlive it.
template <class Real, class RowOf, class PositionOf>
RowSource<Real> rotated_rows(const Rotation& rotation, Index count, Index d, RowOf row_of,
                             PositionOf position_of) {
  std::vector<Real> table(static_cast<std::size_t>(kRowBlock * rotation.row_size()));
  return {count, d, [&rotation, d, row_of, position_of, table](Range rows, bool turned, Real* to) mutable {
            turned = rotation.pairs() > 0 && (turned || rotation.frequencies().attention_factor != 1);
            convert_rows(rows, d, row_of, to);
            if (!turned) return;
            for (Index begin = rows.begin; begin < rows.end; begin += kRowBlock) {
              const Range block{begin, std::min(begin + kRowBlock, rows.end)};
              rotation.fill(block, position_of, table.data());
              for (Index i = block.begin; i < block.end; ++i, to += d)
                rotation.apply(table.data() + (i - begin) * rotation.row_size(), to);
            }
          }};
}

/// What is remembered of one key head's rows.
template <class Real>
struct KeyMemory {
  /// Keys as some query heads want them measured.
  struct Measured {
    ProjectionChoice<Real> choice = {};
    RowBounds<Real> keys = {};
    Index chosen_at = 0;  ///< keys that there were then
  };

  RowBounds<Real> lengths = {};
  ValueBounds<Real> values = {};
  std::map<std::tuple<Index, Index, bool>, Measured> measured = {};  ///< by query heads, may_weigh_keys
  std::optional<Shift<Real>> key_shift = {};  ///< of all that is measured: keys are packed once for all heads
  Index shift_chosen_at = 0;                  ///< keys that there were then
};

/// The rows of a key head and of its query heads, as planning looks at them: nothing is read before it is
/// asked for, and what was measured is kept. Requires a query head.
template <class Real>
class GroupLook {
 public:
  GroupLook(std::vector<RowSource<Real>> queries, RowSource<Real> keys, RowSource<Real> values,
            KeyMemory<Real> memory = {})
      : queries_(std::move(queries)),
        keys_(std::move(keys)),
        values_(std::move(values)),
        memory_(std::move(memory)),
        query_norms_(queries_.size()) {
    // Keys that have doubled may have moved.
    if (keys_.count < 2 * memory_.shift_chosen_at) return;
    memory_.key_shift.reset();
    memory_.measured.clear();
  }

  const RowSource<Real>& queries(Index head) const { return queries_[static_cast<std::size_t>(head)]; }
  const RowSource<Real>& keys() const { return keys_; }
  const RowSource<Real>& values() const { return values_; }
  /// What the next look at the same keys, and more, may begin with.
  KeyMemory<Real>& memory() { return memory_; }

  /// At least max_i |q_i|_2 of a head of the group; infinity if a query is not finite.
  double query_norm(Index head) {
    std::optional<double>& norm = query_norms_[static_cast<std::size_t>(head)];
    if (!norm) {
      RowBounds<Real> bounds;
      bounds.extend(queries(head));
      norm = largest(bounds.norms());
    }
    return *norm;
  }
  /// At least max_j |k_j|_2; infinity if a key is not finite.
  double key_norm() {
    if (!key_norm_) {
      memory_.lengths.extend(keys_);
      key_norm_ = largest(memory_.lengths.norms());
    }
    return *key_norm_;
  }

  /// Which of q, k and v is not finite, as far as anybody asked; else empty.
  std::string not_finite(Index head) {
    const char* which = std::isinf(query_norm(head)) ? "q" : std::isinf(key_norm()) ? "k" : nullptr;
    if (which == nullptr && looked_at_values_ && !memory_.values.finite()) which = "v";
    if (which == nullptr) return {};
    return detail::message(which, " is not finite (or its norms overflow), so entries have no bound");
  }

  /// All of them are read.
  const ValueBounds<Real>& value_bounds() {
    if (!looked_at_values_) memory_.values.extend(values_);
    looked_at_values_ = true;
    return memory_.values;
  }

  /// That of the values if they were looked at; at most 1.
  double known_spread() const { return looked_at_values_ ? memory_.values.spread() : 1; }

  /// Low-rank features of some heads of the group; request.value_spread is found here. Without a fit,
  /// `reason` says why.
  std::optional<LowRankFit> fit(Range heads, std::span<const FarPairs> far, LowRankRequest request,
                                std::string& reason) {
    const auto some = std::span<const RowSource<Real>>(queries_).subspan(
        static_cast<std::size_t>(heads.begin), static_cast<std::size_t>(heads.size()));
    request.value_spread = sampled_spread();
    auto [at, is_new] = memory_.measured.try_emplace({heads.begin, heads.end, request.may_weigh_keys});
    typename KeyMemory<Real>::Measured& measured = at->second;
    const Shift<Real>* shift = memory_.key_shift ? &*memory_.key_shift : nullptr;
    if (is_new) {
      auto choice = choose_projection<Real>({some, &keys_, far, shift}, request, reason);
      if (!choice) {
        memory_.measured.erase(at);
        return std::nullopt;
      }
      measured = {*choice, RowBounds<Real>(choice->of_keys()), keys_.count};
    }
    const auto queries =
        measure_rows<Real>({some, &keys_, far, shift}, request.scale, measured.choice, measured.keys);
    if (shift == nullptr) {
      memory_.key_shift = measured.choice.keys;
      memory_.shift_chosen_at = keys_.count;
    }
    key_norm_ = largest(measured.keys.norms());
    for (Index h = heads.begin; h < heads.end; ++h)
      query_norms_[static_cast<std::size_t>(h)] =
          largest(queries[static_cast<std::size_t>(h - heads.begin)].norms());
    request.value_spread = value_bounds().spread();
    for (Index h = heads.begin; h < heads.end; ++h)
      if (reason = not_finite(h); !reason.empty()) return std::nullopt;
    ProjectionChoice<Real> choice = measured.choice;
    choice.mean_key = mean_key(measured);
    return fit_low_rank<Real>(choice, {queries, &measured.keys}, far, request, reason);
  }

 private:
  /// A mean of keys, of which those that came after the choice may lie as far out as any.
  double mean_key(const typename KeyMemory<Real>::Measured& measured) const {
    const double known = static_cast<double>(measured.chosen_at) / static_cast<double>(keys_.count);
    if (known == 1) return measured.choice.mean_key;
    const double reach = largest(measured.keys.distances());
    if (measured.choice.queries.centre != Centre::none) return reach;
    return known * measured.choice.mean_key + (1 - known) * reach;
  }

  /// About that of all values.
  double sampled_spread() {
    if (looked_at_values_) return memory_.values.spread();
    ValueBounds<Real> bounds;
    bounds.add(sample(values_, {0, values_.count}, 128));
    return bounds.spread();
  }

  std::vector<RowSource<Real>> queries_;
  RowSource<Real> keys_;
  RowSource<Real> values_;
  KeyMemory<Real> memory_;
  std::vector<std::optional<double>> query_norms_;
  std::optional<double> key_norm_ = {};
  bool looked_at_values_ = false;
};

/// A look at key head kv and its query heads. The problem and the tensors must outlive it.
template <class Real, class Q, class K, class V>
GroupLook<Real> group_look(const Problem& problem, Index kv, TensorView<const Q> q, const K& k, const V& v,
                           KeyMemory<Real> memory = {}) {
  const Shapes& s = problem.shapes;
  const LagGrid& grid = problem.grid;
  std::vector<RowSource<Real>> queries;
  for (Index h = kv * problem.group(); h < (kv + 1) * problem.group(); ++h)
    queries.push_back(rotated_rows<Real>(
        problem.rotation, s.n_q, s.d, [head = q.head(h)](Index i) { return head.row(i); },
        [&grid](Index i) { return grid.query_position(i); }));
  RowSource<Real> keys = rotated_rows<Real>(
      problem.rotation, s.n_k, s.d, [&grid, head = k.head(kv)](Index j) { return head.row(grid.source(j)); },
      [&grid](Index j) { return grid.key_position(j); });
  RowSource<Real> values{s.n_k, s.d_v, [&grid, head = v.head(kv), d_v = s.d_v](Range rows, bool, Real* to) {
                           convert_rows(
                               rows, d_v, [&](Index j) { return head.row(grid.source(j)); }, to);
                         }};
  return {std::move(queries), std::move(keys), std::move(values), std::move(memory)};
}

/// [d]: the largest size of a column's elements, before rotation.
template <class Real>
Eigen::RowVectorXd largest_columns(const RowSource<Real>& source) {
  Point<Real> largest = Point<Real>::Zero(source.d);
  for_each_block(source, 0, false, [&](Range block, const auto& rows) {
    largest = largest.cwiseMax(rows.topRows(block.size()).cwiseAbs().colwise().maxCoeff());
  });
  return largest.template cast<double>();
}

/// The entries of a general family, x = scale q^T W(lag) k, over the lags that are allowed.
struct WeightedBounds {
  double radius = 0;  ///< |x| <= radius
  double feature_radius =
      0;  ///< |scale| max|q^|_2 max|k^|_2, q^ = (q[a_s])_s, k^ = (max|W_s| k[b_s])_s: norms of the features
  double balance = 1;         ///< queries times it and keys over it make q^ and k^ equally long
  double largest_weight = 0;  ///< max|W_s(lag)|
};

/// Two bounds on |x|, the lesser taken: sum_s max|q[a_s]| max|W_s| max|k[b_s]|, and |q| |k| times the largest
/// sqrt(|W|_1 |W|_inf) >= |W|_2.
template <class Real>
WeightedBounds weighted_bounds(GroupLook<Real>& look, Index head, const Problem& problem) {
  constexpr double epsilon = std::numeric_limits<Real>::epsilon();
  const RelativeWeights& weights = *problem.weights;
  const auto support = weights.support();
  const LagGrid::Lags lags = problem.grid.allowed_lags();
  const auto size = static_cast<std::size_t>(problem.shapes.d);
  double largest_norm = 0;
  std::vector<double> largest(support.size());
  for (Position lag = lags.first; lag <= lags.last; ++lag) {
    std::vector<double> across(size), down(size);
    for (std::size_t s = 0; s < support.size(); ++s) {
      const double w = std::abs(weights(lag, static_cast<Index>(s)));
      across[static_cast<std::size_t>(support[s].a)] += w;
      down[static_cast<std::size_t>(support[s].b)] += w;
      largest[s] = std::max(largest[s], w);
    }
    largest_norm = std::max(largest_norm, std::sqrt(*std::max_element(across.begin(), across.end()) *
                                                    *std::max_element(down.begin(), down.end())));
  }
  const Eigen::RowVectorXd query_columns = largest_columns(look.queries(head)),
                           key_columns = largest_columns(look.keys());
  double entrywise = 0, query_square = 0, key_square = 0;
  for (std::size_t s = 0; s < support.size(); ++s) {
    const double q = query_columns(support[s].a);
    const double k = key_columns(support[s].b) * largest[s];
    entrywise += q * k;
    query_square += q * q;
    key_square += k * k;
  }
  const double scale = std::abs(problem.scale);
  const double allowance = 1 + 16 * epsilon;
  const double query_size = scale * std::sqrt(query_square), key_size = std::sqrt(key_square);
  return {.radius =
              scale * std::min(entrywise, look.query_norm(head) * look.key_norm() * largest_norm) * allowance,
          .feature_radius = query_size * key_size * allowance,
          .balance = query_size > 0 && key_size > 0 ? std::sqrt(key_size / query_size) : 1,
          .largest_weight = *std::max_element(largest.begin(), largest.end())};
}

}  // namespace fastrope::inline FASTROPE_TARGET
