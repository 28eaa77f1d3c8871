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
    v.type->for_each_piece<double>(v.row(j), s.d_v, [&](Index, const double* x, Index count) {
      for (Index c = 0; c < count; ++c)
        if (std::isfinite(x[c])) largest = std::max(largest, std::abs(x[c]));
    });
  return largest;
}

/// Some rows of a dense bias or mask, which then views `memory`; what has no data has none to lose.
template <class T>
void keep_rows(std::span<const Index> rows, TensorView<const T>& dense, std::unique_ptr<T[]>& memory) {
  if (dense.data == nullptr) return;
  const Index count = std::ssize(rows);
  memory = std::make_unique<T[]>(static_cast<std::size_t>(dense.heads * count * dense.cols));
  for (Index h = 0; h < dense.heads; ++h)
    for (Index r = 0; r < count; ++r)
      std::copy_n(dense.head(h).row(rows[static_cast<std::size_t>(r)]), dense.cols,
                  memory.get() + (h * count + r) * dense.cols);
  dense = contiguous(static_cast<const T*>(memory.get()), dense.heads, count, dense.cols);
}

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
  Problem some = problem.with(rows, s.n_k,
                              {query_positions,
                               key_positions,
                               {query_sections.data(), query_sections.empty() ? 0 : problem.sections, rows},
                               problem.key_sections.view()});
  std::unique_ptr<float[]> bias;
  std::unique_ptr<bool[]> mask;
  detail::keep_rows(sampled, some.dense_bias, bias);
  detail::keep_rows(sampled, some.dense_mask, mask);

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
      out.type->for_each_piece<double>(out.head(h).row(sampled[static_cast<std::size_t>(r)]), s.d_v,
                                       [&](Index first, const double* x, Index count) {
                                         for (Index c = 0; c < count; ++c)
                                           largest = std::max(largest,
                                                              detail::difference(x[c], expected[first + c]));
                                       });
    }
    const double size = detail::largest_value(v.head(problem.kv_head(h)), s);
    errors.push_back(size > 0 ? largest / size : largest);
  }
  return errors;
}

}  // namespace fastrope::inline FASTROPE_TARGET
