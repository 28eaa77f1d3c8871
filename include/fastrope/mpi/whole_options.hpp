// WholeOptions: the options of all rows of a call, of which each rank gives those of its own.
#pragma once

#include <cstddef>
#include <iterator>
#include <span>
#include <vector>

#include "fastrope/core/error.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/tensor_view.hpp"
#include "fastrope/mpi/exchange.hpp"
#include "fastrope/mpi/layout.hpp"
#include "fastrope/mpi/ranks.hpp"
#include "fastrope/position/lag_bias.hpp"
#include "fastrope/problem/options.hpp"

namespace fastrope::inline FASTROPE_TARGET::mpi::detail {

/// The bias of some query heads.
inline LagBias bias_of_heads(const LagBias& all, Range heads) {
  if (all.heads() <= 1) return all;
  const auto part = [&](std::span<const double> x) {
    const Index each = std::ssize(x) / all.heads();
    return x.subspan(static_cast<std::size_t>(heads.begin * each),
                     static_cast<std::size_t>(heads.size() * each));
  };
  if (!all.is_table()) return LagBias::alibi(part(all.slopes()));
  const auto make = all.is_clamped() ? &LagBias::clamped_table : &LagBias::table;
  return make(part(all.values()), heads.size(), all.first_lag());
}

/// Holds positions, key ranges and gates of all ranks. What options refer to else must outlive it.
class WholeOptions {
 public:
  /// Collective. Requires options without dense bias and dense mask.
  WholeOptions(const Ranks& ranks, const Layout& layout, const Options& own, Traffic& traffic)
      : shapes_(layout.whole), all_(own) {
    const auto me = static_cast<std::size_t>(ranks.rank());
    const auto join = [&]<class T>(const char* name, MatrixView<const T>& view, std::vector<T>& memory) {
      if (view.rows == 0) return;
      memory = joined(ranks, name, view, traffic);
      view = {memory.data(), view.rows, std::ssize(memory) / view.rows};
    };
    const auto join_positions = [&](std::span<const Position>& view, const RankRows& rows,
                                    std::vector<Position>& memory) {
      std::vector<Position> positions(view.begin(), view.end());
      for (Index i = std::ssize(view); i < rows.count; ++i) positions.push_back(rows.least + i);
      view = memory = joined<Position>(ranks, "positions", {positions.data(), 1, rows.count}, traffic);
    };
    if (!layout.default_places) {
      join_positions(all_.query_positions, layout.queries[me], query_positions_);
      join_positions(all_.key_positions, layout.keys[me], key_positions_);
    }
    join("query_section_positions", all_.query_section_positions, query_sections_);
    join("key_section_positions", all_.key_section_positions, key_sections_);
    join("log_gates", all_.log_gates, gates_);
    join("log_input_gates", all_.log_input_gates, input_gates_);
    if (const Index of_rows = layout.own.n_q * own.key_ranges.per_row; own.key_ranges.per_row > 0) {
      const Index heads = of_rows == 0 ? 0 : std::ssize(own.key_ranges.ranges) / of_rows;
      ranges_ = joined<Range>(ranks, "key_ranges", {own.key_ranges.ranges.data(), heads, of_rows}, traffic);
      all_.key_ranges.ranges = ranges_;
    }
  }
  WholeOptions(const WholeOptions&) = delete;
  WholeOptions& operator=(const WholeOptions&) = delete;

  /// Of all heads.
  const Options& all() const { return all_; }
  /// Of some query heads of one key head.
  Options of(Range heads, Index kv_head) const {
    Options o = all_;
    o.bias = bias_of_heads(all_.bias, heads);
    const auto part = [&](auto x, Index each) {
      return x.subspan(static_cast<std::size_t>(heads.begin * each),
                       static_cast<std::size_t>(heads.size() * each));
    };
    if (!o.sinks.empty()) o.sinks = part(o.sinks, 1);
    const Index rows = shapes_.n_q * o.key_ranges.per_row;
    if (rows > 0 && std::ssize(o.key_ranges.ranges) > rows)
      o.key_ranges.ranges = part(o.key_ranges.ranges, rows);
    const auto rows_of = [&](MatrixView<const float>& gates) {
      if (gates.rows == 0) return;
      const Range some = gates.rows == shapes_.heads ? heads : Range{kv_head, kv_head + 1};
      gates = {gates.row(some.begin), some.size(), gates.cols, gates.row_stride};
    };
    rows_of(o.log_gates);
    rows_of(o.log_input_gates);
    return o;
  }

 private:
  /// [rows, columns of all ranks] of [rows, columns] of each. Ranks without columns may have any
  /// rows; throws Error where others differ in rows.
  template <class T>
  static std::vector<T> joined(const Ranks& ranks, const char* name, MatrixView<const T> own,
                               Traffic& traffic) {
    Packer packer;
    ranks.agree([&] {
      packer(own.rows, own.cols);
      for (Index r = 0; r < own.rows; ++r) packer.add_bytes(own.row(r), own.cols);
    });
    const std::vector<Buffer> parts = gather(ranks, packer.bytes(), traffic);
    std::vector<T> all;
    ranks.agree([&] {
      std::vector<MatrixView<const T>> views;
      Index rows = 0, cols = 0;
      for (const Buffer& part : parts) {
        Unpacker numbers(part);
        Index part_rows = 0, part_cols = 0;
        numbers(part_rows, part_cols);
        if (part_cols == 0) continue;
        if (!views.empty() && part_rows != rows)
          fastrope::detail::fail("ranks differ in ", name, ": [", rows, ", ..] and [", part_rows, ", ..]");
        views.push_back({reinterpret_cast<const T*>(numbers.left().data()), part_rows, part_cols});
        rows = part_rows;
        cols += part_cols;
      }
      all.reserve(static_cast<std::size_t>(rows * cols));
      for (Index r = 0; r < rows; ++r)
        for (const MatrixView<const T>& view : views)
          all.insert(all.end(), view.row(r), view.row(r) + view.cols);
    });
    return all;
  }

  Shapes shapes_;
  Options all_;
  std::vector<Position> query_positions_ = {}, key_positions_ = {}, query_sections_ = {}, key_sections_ = {};
  std::vector<Range> ranges_ = {};
  std::vector<float> gates_ = {}, input_gates_ = {};
};

}  // namespace fastrope::inline FASTROPE_TARGET::mpi::detail
