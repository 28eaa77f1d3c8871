// Packing: q, k and v converted to the arithmetic type, turned by their positions and laid out for the tiles.
//
// A panel is `width` rows of words stored column by column, [words, width], so that one column of many rows
// is a vector. (Words: tile_kernel.hpp. Of T = float and double they are the elements.) Keys are packed once
// per call, in ascending order of position, in panels of kTileCols; queries one block at a time.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <type_traits>
#include <vector>

#include "fastrope/core/index.hpp"
#include "fastrope/core/stored_rows.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/workspace.hpp"
#include "fastrope/exact/rotation_tables.hpp"
#include "fastrope/exact/tile_kernel.hpp"
#include "fastrope/problem/problem.hpp"

namespace fastrope::inline FASTROPE_TARGET {

namespace detail {

/// panel(c, i) = row i's word c for c < words and i < width, row stride `width` of the panel; zeros from
/// `count` on. load(i, x) writes row i to x [row_size]; scratch: [kBlockRows, row_size], whole vectors.
/// Requires width a multiple of kBlockRows.
template <class Real, class Load>
void pack_columns(Index count, Index width, Index words, Real* panel, Real* scratch, Index row_size,
                  Load&& load) {
  using namespace simd;
  for (Index i = 0; i < width; i += kBlockRows<Real>) {
    for (Index r = 0; r < kBlockRows<Real>; ++r) {
      if (i + r < count)
        load(i + r, scratch + r * row_size);
      else
        std::fill_n(scratch + r * row_size, words, Real{0});
    }
    transpose_strip(scratch, row_size, words, panel + i, width);
  }
}

}  // namespace detail

/// Keys and values of every key/value head, packed to be multiplied as T, and the rotation tables of their
/// positions.
template <class T>
class PackedKeys {
 public:
  using Real = ArithmeticOf<T>;
  static constexpr Index kWidth = kTileCols<Real>;

  /// Of all keys. key_shifts: what is taken from the keys of each head after they are turned, [kv_heads] of
  /// [d] or of none: a constant, which falls out of the softmax. What it views must outlive it.
  explicit PackedKeys(const Problem& problem, Workspace& workspace,
                      std::span<const std::vector<Real>> key_shifts = {})
      : PackedKeys(problem, {0, problem.shapes.n_k},
                   WorkerScratch(problem.executor.workers(), worker_bytes(problem), workspace), workspace) {
    key_shifts_ = key_shifts;
  }
  /// Of the panels that hold `keys`, with worker_bytes(problem) of scratch that nobody else uses while a task
  /// runs. one_by_one: there is room for one key head, in which the next takes the place of the one before.
  PackedKeys(const Problem& problem, Range keys, const WorkerScratch& scratch, Workspace& workspace,
             bool one_by_one = false)
      : tables_(problem, whole_panels(problem, keys), workspace),
        words_(words_of<T>(problem.shapes.d)),
        value_stride_(round_up(problem.shapes.d_v, simd::kLanes<Real>)),
        packed_{keys.begin / kWidth, ceil_div(keys.end, kWidth)},
        head_step_(one_by_one ? 0 : packed_.size()),
        scratch_(scratch) {
    const Index panels = (one_by_one ? 1 : problem.shapes.kv_heads) * packed_.size();
    panels_ = workspace.take<Real>(panels * kWidth * words_).data();
    values_ = workspace.take<Real>(panels * kValueRows * value_stride_).data();
    finite_ = workspace.take<bool>(panels).data();
  }

  /// k: [kv_heads, n_k, d], v: [kv_heads, n_k, d_v].
  void pack(const Problem& problem, const StoredRows& k, const StoredRows& v) {
    problem.executor.parallel_for(tables_.tasks(problem),
                                  [&](Index task, Index) { tables_.fill(problem, task); });
    problem.executor.parallel_for(tasks(problem),
                                  [&](Index task, Index worker) { pack_task(problem, k, v, task, worker); });
  }

  /// To be filled before anything is packed.
  const RotationTables<Real>& tables() const { return tables_; }

  /// The independent tasks of packing, as many for each key head, head after head.
  Index tasks(const Problem& problem) const { return problem.shapes.kv_heads * packed_.size(); }
  void pack_task(const Problem& problem, const StoredRows& k, const StoredRows& v, Index task, Index worker) {
    const Index kv = task / packed_.size(), p = packed_.begin + task % packed_.size();
    const Index at = place(kv, p);
    const Range keys{p * kWidth, (p + 1) * kWidth};
    if (problem.grid.has_ranges() && problem.grid.reached().hull(keys).empty()) return;
    Workspace share = scratch_.of(worker);
    Real* scratch = share.take<Real>(scratch_size(problem.shapes)).data();
    pack_panel(problem, k.head(kv), key_shift(kv), keys, panels_ + at * kWidth * words_, scratch);
    finite_[at] = pack_values(problem, v.head(kv), keys, values_ + at * kValueRows * value_stride_, scratch);
  }
  static std::size_t worker_bytes(const Problem& problem) {
    return Workspace::bytes_of([&](Workspace& share) { share.take<Real>(scratch_size(problem.shapes)); });
  }

  /// Elements of scratch that packing takes.
  static Index scratch_size(const Shapes& s) {
    return std::max(simd::kBlockRows<Real> * row_size(s.d), 2 * round_up(s.d_v, simd::kLanes<Real>));
  }

  /// Rows [rows.begin, rows.end) of one query head times `factor`, zeros past the end, for query_operand:
  /// [width, words] in all. scratch: [scratch_size]. Requires width a multiple of kRowMultiple.
  void pack_queries(const Problem& problem, const StoredHead& q, Range rows, Index width, double factor,
                    Real* queries, Real* scratch) const {
    const Index d = problem.shapes.d;
    const auto load = [&](Index i, Real* x) {
      q.read(rows.begin + i, d, x);
      tables_.turn_query(problem, rows.begin + i, x);
      for (Index c = 0; c < d; ++c) x[c] *= static_cast<Real>(factor);
      make_words<T>(d, x);
    };
    if constexpr (kColumns) {
      detail::pack_columns(rows.size(), width, words_, queries, scratch, row_size(d), load);
    } else {
      for (Index i = 0; i < rows.size(); ++i) {
        load(i, scratch);
        std::copy_n(scratch, words_, queries + i * words_);
      }
      std::fill(queries + rows.size() * words_, queries + width * words_, Real{0});
    }
  }
  BroadcastOperand<Real> query_operand(const Real* queries, Index width) const {
    if (kColumns) return {queries, 1, width};
    return {queries, words_, 1};
  }

  /// Query i of packed ones, for query_operand of the same width.
  const Real* query(const Real* queries, Index i) const {
    return query_operand(queries, /*width=*/1).rows_from(i).data;
  }

  /// [d]: what was taken from the keys of a head; null for nothing.
  const Real* key_shift(Index kv) const {
    const auto at = static_cast<std::size_t>(kv);
    return at < key_shifts_.size() && !key_shifts_[at].empty() ? key_shifts_[at].data() : nullptr;
  }

  /// Words of a row of keys or queries.
  Index words() const { return words_; }
  /// Panel p of a key head, one that is packed, here and below: [words, kWidth], zeros past key n_k.
  const Real* panel(Index kv, Index p) const { return panels_ + place(kv, p) * kWidth * words_; }
  /// Values of a key head from a key on, a multiple of the word size: words of neighbouring keys, kValueRows
  /// a panel, [.., value_stride], zeros past n_k and d_v.
  const Real* values(Index kv, Index j = 0) const {
    return values_ + (place(kv, 0) * kValueRows + j / kWordSize<T>)*value_stride_;
  }
  /// Whether the values of the keys of panel p are finite: if not, a weight of 0 does not make them vanish.
  bool finite_values(Index kv, Index p) const { return finite_[place(kv, p)]; }
  Index value_stride() const { return value_stride_; }

 private:
  static Range whole_panels(const Problem& problem, Range keys) {
    return {round_down(keys.begin, kWidth), std::min(round_up(keys.end, kWidth), problem.shapes.n_k)};
  }

  static constexpr Index kValueRows = kWidth / kWordSize<T>;  // of words, in a panel
  /// Of panel p among those of all heads that are packed.
  Index place(Index kv, Index p) const { return kv * head_step_ + p - packed_.begin; }
  /// Queries are laid out in columns like keys; the matrix unit wants rows.
  static constexpr bool kColumns = !std::is_same_v<T, bfloat16>;

  /// Room for a row of d elements before and after they become words.
  static Index row_size(Index d) {
    return round_up(std::max(d, kWordSize<T> * words_of<T>(d)), simd::kLanes<Real>);
  }

  void pack_panel(const Problem& problem, const StoredHead& k, const Real* shift, Range keys, Real* panel,
                  Real* scratch) const {
    const Index count = intersect(keys, {0, problem.grid.n_k()}).size();
    const Index d = problem.shapes.d;
    detail::pack_columns(count, kWidth, words_, panel, scratch, row_size(d), [&](Index j, Real* x) {
      k.read(problem.grid.source(keys.begin + j), d, x);
      tables_.turn_key(problem, keys.begin + j, x);
      for (Index c = 0; shift != nullptr && c < d; ++c) x[c] -= shift[c];
      make_words<T>(d, x);
    });
  }

  /// Returns whether all of them are finite.
  bool pack_values(const Problem& problem, const StoredHead& v, Range keys, Real* values,
                   [[maybe_unused]] Real* scratch) const {
    using namespace simd;
    bool finite = true;
    const auto load_row = [&](Index j, Real* row) HWY_ATTR {
      const Index count = j < problem.grid.n_k() ? problem.shapes.d_v : 0;
      if (count > 0) v.read(problem.grid.source(j), count, row);
      std::fill(row + count, row + value_stride_, Real{0});
      finite &= all_finite(row, value_stride_);
    };
    for (Index j = keys.begin; j < keys.end; j += kWordSize<T>, values += value_stride_) {
#if FASTROPE_BFLOAT16_PRODUCTS
      if constexpr (std::is_same_v<T, bfloat16>) {
        Real* next = scratch + value_stride_;
        load_row(j, scratch);
        load_row(j + 1, next);
        for (Index c = 0; c < value_stride_; c += kLanes<Real>)
          store<Real>(pair_up(load(scratch + c), load(next + c)), values + c);
        continue;
      }
#endif
      load_row(j, values);
    }
    return finite;
  }

  RotationTables<Real> tables_;
  Index words_;
  Index value_stride_;
  Range packed_;     // panels
  Index head_step_;  // panels from one head to the next
  Real* panels_;     // [kv_heads or 1, packed_.size(), words, kWidth]
  Real* values_;     // [kv_heads or 1, packed_.size() * kValueRows, value_stride]
  bool* finite_;     // [kv_heads or 1, packed_.size()]
  WorkerScratch scratch_;
  std::span<const std::vector<Real>> key_shifts_ = {};
};

}  // namespace fastrope::inline FASTROPE_TARGET
