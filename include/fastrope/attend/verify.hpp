// Verify: some rows of an output recomputed in double precision by the exact path.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <span>
#include <vector>

#include "fastrope/core/index.hpp"
#include "fastrope/core/numbers.hpp"
#include "fastrope/core/stored_rows.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/tensor_view.hpp"
#include "fastrope/exact/exact_call.hpp"
#include "fastrope/exact/row_kernels.hpp"
#include "fastrope/problem/problem.hpp"

namespace fastrope::inline FASTROPE_TARGET {

namespace detail {

/// max |v| of a key head's finite values.
inline double largest_value(const StoredHead& v, const Shapes& s) {
  double largest = 0;
  for (Index j = 0; j < s.n_k; ++j)
    v.for_each_piece<double>(j, s.d_v, [&](Index, const double* x, Index count) {
      for (Index c = 0; c < count; ++c)
        if (std::isfinite(x[c])) largest = std::max(largest, std::abs(x[c]));
    });
  return largest;
}

/// Some rows of what a call says of every pair of a query and a key.
class PairRows {
 public:
  PairRows(const Problem& problem, std::span<const Index> rows) : heads_(problem.shapes.heads) {
    const Index n_k = problem.shapes.n_k, count = std::ssize(rows), all = heads_ * count;
    if (problem.dense_bias.data != nullptr) bias_ = std::make_unique<float[]>(size(all * n_k));
    if (problem.dense_mask.data != nullptr) mask_ = std::make_unique<bool[]>(size(all * n_k));
    for (Index row = 0; row < all; ++row) {
      const Index h = row / count, i = rows[size(row % count)];
      if (bias_) problem.dense_bias.read(h, i, {0, n_k}, bias_.get() + row * n_k);
      if (mask_) std::copy_n(problem.dense_mask.head(h).row(i), n_k, mask_.get() + row * n_k);
    }
    if (problem.grid.has_ranges()) keep_ranges(problem.grid, rows);
  }

  KeyRanges ranges() const { return {ranges_, per_row_}; }
  /// The dense rows of the problem of these rows.
  void give(Problem& problem) const {
    const Shapes& s = problem.shapes;
    problem.set_dense(
        bias_ ? contiguous<const float>(bias_.get(), s.heads, s.n_q, s.n_k) : DenseBias(),
        mask_ ? contiguous<const bool>(mask_.get(), s.heads, s.n_q, s.n_k) : TensorView<const bool>());
  }

 private:
  static std::size_t size(Index n) { return static_cast<std::size_t>(n); }

  void keep_ranges(const LagGrid& grid, std::span<const Index> rows) {
    std::vector<std::vector<Range>> pieces;
    for (Index h = 0; h < heads_; ++h)
      for (const Index i : rows)
        grid.keys_of(h, i).for_each(
            {0, grid.n_k()}, [&, row = &pieces.emplace_back()](Range piece) { row->push_back(piece); });
    per_row_ = 1;
    for (const auto& row : pieces) per_row_ = std::max(per_row_, std::ssize(row));
    for (auto& row : pieces) {
      row.resize(size(per_row_));
      ranges_.insert(ranges_.end(), row.begin(), row.end());
    }
  }

  Index heads_;
  std::unique_ptr<float[]> bias_ = {};
  std::unique_ptr<bool[]> mask_ = {};
  std::vector<Range> ranges_ = {};  // [heads, rows, per_row]
  Index per_row_ = 0;
};

/// |a - b|; 0 where neither is a number, infinity where one is not.
inline double difference(double a, double b) {
  if (a == b || (std::isnan(a) && std::isnan(b))) return 0;
  const double size = std::abs(a - b);
  return std::isnan(size) ? std::numeric_limits<double>::infinity() : size;
}

}  // namespace detail

/// [heads]: the largest |out - exact| / max|V| in `rows` rows, evenly spread from the first to the last; V
/// that of the head, and of 0 the difference itself. Allocates. Cost: of exact attention in double for so
/// many rows.
inline std::vector<double> observed_errors(const Problem& problem, const StoredRows& q,
                                           const KeyRows<double>& k, const ValueRows<double>& v,
                                           const StoredRows& out, Index rows) {
  const Shapes& s = problem.shapes;
  const LagGrid& grid = problem.grid;
  std::vector<Index> sampled;
  for (Index r = 0; r < rows; ++r) sampled.push_back(r * (s.n_q - 1) / std::max<Index>(1, rows - 1));
  std::vector<Position> query_positions, key_positions(static_cast<std::size_t>(s.n_k));
  for (const Index i : sampled) query_positions.push_back(grid.query_position(i));
  for (Index j = 0; j < s.n_k; ++j)
    key_positions[static_cast<std::size_t>(grid.source(j))] = grid.key_position(j);
  std::vector<Position> query_sections;  // [sections, rows]
  for (Index section = 0; section < problem.sections && !problem.query_sections.empty(); ++section)
    for (const Index i : sampled) query_sections.push_back(problem.query_sections(section, i));
  const detail::PairRows pairs(problem, sampled);
  Problem some = problem.with(
      rows, s.n_k,
      {.queries = query_positions,
       .keys = key_positions,
       .query_sections = {query_sections.data(), query_sections.empty() ? 0 : problem.sections, rows},
       .key_sections = problem.key_sections.view(),
       .key_ranges = pairs.ranges(),
       .log_gates = problem.gates.log,
       .log_input_gates = problem.gates.log_input});
  pairs.give(some);

  std::vector<double> queries(static_cast<std::size_t>(s.heads * rows * s.d)),
      exact(static_cast<std::size_t>(s.heads * rows * s.d_v));
  for (Index h = 0; h < s.heads; ++h)
    for (Index r = 0; r < rows; ++r)
      q.head(h).read(sampled[static_cast<std::size_t>(r)], s.d, queries.data() + (h * rows + r) * s.d);
  std::vector<std::byte> memory(exact_workspace_bytes<double>(some));
  run_exact<double>(
      some,
      {contiguous(queries.data(), s.heads, rows, s.d), k, v, contiguous(exact.data(), s.heads, rows, s.d_v)},
      memory);

  std::vector<double> errors;
  for (Index h = 0; h < s.heads; ++h) {
    double largest = 0;
    for (Index r = 0; r < rows; ++r) {
      const double* expected = exact.data() + (h * rows + r) * s.d_v;
      out.head(h).for_each_piece<double>(
          sampled[static_cast<std::size_t>(r)], s.d_v, [&](Index first, const double* x, Index count) {
            for (Index c = 0; c < count; ++c)
              largest = std::max(largest, detail::difference(x[c], expected[first + c]));
          });
    }
    const double size = detail::largest_value(v.head(problem.kv_head(h)), s);
    errors.push_back(size > 0 ? largest / size : largest);
  }
  return errors;
}

}  // namespace fastrope::inline FASTROPE_TARGET
