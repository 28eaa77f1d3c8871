// Options of a piece: what some queries of a call and some of its keys have of the options of all.
#pragma once

#include <cstddef>
#include <iterator>
#include <span>
#include <vector>

#include "fastrope/core/index.hpp"
#include "fastrope/core/storage.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/problem/options.hpp"
#include "fastrope/problem/shapes.hpp"

namespace fastrope::inline FASTROPE_TARGET::mpi::detail {

/// The options of rows [rows] of this rank against keys [keys] of the whole sequence, which stand at
/// key_positions. ranges: room for theirs.
inline Options options_of_piece(const Options& whole, const Shapes& local, Range rows, Range keys,
                                std::span<const Position> query_positions,
                                std::span<const Position> key_positions, std::vector<Range>& ranges) {
  Options o = whole;
  o.tolerance = 0;
  o.path = Path::exact;
  o.sinks = {};
  o.query_positions = query_positions;
  o.key_positions = key_positions;
  if (whole.key_ranges.given()) {
    const Index m = whole.key_ranges.per_row, n_q = local.n_q;
    const Index heads = m == 0 || n_q == 0 ? 1 : std::ssize(whole.key_ranges.ranges) / (m * n_q);
    ranges.clear();
    for (Index h = 0; h < heads; ++h)
      for (Index r = (h * n_q + rows.begin) * m; r < (h * n_q + rows.end) * m; ++r) {
        const Range seen = intersect(whole.key_ranges.ranges[static_cast<std::size_t>(r)], keys);
        ranges.push_back(seen.empty() ? Range{0, 0} : Range{seen.begin - keys.begin, seen.end - keys.begin});
      }
    o.key_ranges.ranges = ranges;
  }
  const auto part = [&](auto view) {
    view.data += rows.begin * view.row_stride + keys.begin;
    view.rows = rows.size();
    view.cols = keys.size();
    return view;
  };
  if (whole.dense_bias.data != nullptr) {
    if (whole.dense_bias.type == DenseType::float32) o.dense_bias = part(whole.dense_bias.as<float>());
    if (whole.dense_bias.type == DenseType::float16) o.dense_bias = part(whole.dense_bias.as<float16>());
    if (whole.dense_bias.type == DenseType::bfloat16) o.dense_bias = part(whole.dense_bias.as<bfloat16>());
  }
  if (whole.dense_mask.data != nullptr) o.dense_mask = part(whole.dense_mask);
  return o;
}

}  // namespace fastrope::inline FASTROPE_TARGET::mpi::detail
