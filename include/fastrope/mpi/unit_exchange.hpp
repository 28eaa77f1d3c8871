// UnitExchange: rows of all heads on every rank become all rows of some heads, and back.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <span>
#include <utility>
#include <vector>

#include "fastrope/core/index.hpp"
#include "fastrope/core/stored_rows.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/mpi/exchange.hpp"
#include "fastrope/mpi/head_part.hpp"
#include "fastrope/mpi/layout.hpp"
#include "fastrope/mpi/messages.hpp"
#include "fastrope/mpi/ranks.hpp"
#include "fastrope/mpi/shares.hpp"
#include "fastrope/problem/shapes.hpp"

namespace fastrope::inline FASTROPE_TARGET::mpi::detail {

/// Query heads of one key head that one rank computes.
struct HeadUnit {
  Range heads;
  Index kv_head;
  int rank;
};

/// All heads in units, as many as there are ranks where the query heads of a key head can be divided so, and
/// dealt out to ranks in order.
inline std::vector<HeadUnit> head_units(const Shapes& s, int ranks) {
  std::vector<HeadUnit> units;
  const Index group = s.kv_heads == 0 ? 0 : s.heads / s.kv_heads;
  const Index parts = group == 0 ? 0 : std::clamp<Index>(ceil_div(ranks, s.kv_heads), 1, group);
  const Index count = s.kv_heads * parts;
  for (Index u = 0; u < count; ++u) {
    const Index kv = u / parts, part = u % parts;
    units.push_back({{kv * group + group * part / parts, kv * group + group * (part + 1) / parts},
                     kv,
                     static_cast<int>(u * ranks / count)});
  }
  return units;
}

/// All rows of q, k and v of a unit, packed.
struct UnitRows {
  Buffer q, k, v;
};

/// Brings the rows of units together, and what comes of them back to the ranks whose rows they are.
template <class Real>
class UnitExchange {
 public:
  /// The tensors and what is referred to must outlive it.
  UnitExchange(const Ranks& ranks, const Layout& layout, std::span<const HeadUnit> units, const StoredRows& q,
               const StoredRows& k, const StoredRows& v)
      : ranks_(ranks),
        layout_(layout),
        units_(units),
        q_(q),
        k_(k),
        v_(v),
        pack_q_(q),
        pack_k_(k),
        pack_v_(v) {}

  bool is_mine(const HeadUnit& unit) const { return unit.rank == ranks_.rank(); }

  /// The rows of this rank's units; collective.
  std::vector<UnitRows> collect(Traffic& traffic) const {
    std::vector<Buffer> to;
    ranks_.agree([&] {
      const Index n_q = layout_.own.n_q, n_k = layout_.own.n_k;
      const auto bytes = [&](const HeadUnit& unit) {
        return pack_q_.bytes(unit.heads.size(), n_q) + pack_k_.bytes(1, n_k) + pack_v_.bytes(1, n_k);
      };
      std::vector<Index> at(static_cast<std::size_t>(ranks_.count()));
      for (const HeadUnit& unit : units_) at[rank_of(unit)] += bytes(unit);
      for (Index& size : at) to.emplace_back(static_cast<std::size_t>(std::exchange(size, 0)));
      for (const HeadUnit& unit : units_) {
        const Range kv{unit.kv_head, unit.kv_head + 1};
        std::byte* from_here = to[rank_of(unit)].data() + at[rank_of(unit)];
        at[rank_of(unit)] += bytes(unit);
        pack_q_.pack(heads_of(q_, unit.heads), {0, n_q}, from_here);
        pack_k_.pack(heads_of(k_, kv), {0, n_k}, from_here += pack_q_.bytes(unit.heads.size(), n_q));
        pack_v_.pack(heads_of(v_, kv), {0, n_k}, from_here + pack_k_.bytes(1, n_k));
      }
    });
    const std::vector<Buffer> from = exchange(ranks_, std::move(to), traffic);
    std::vector<UnitRows> all;
    ranks_.agree([&] {
      std::vector<const std::byte*> at;
      for (const Buffer& buffer : from) at.push_back(buffer.data());
      for (const HeadUnit& unit : units_) {
        if (!is_mine(unit)) continue;
        UnitRows& rows = all.emplace_back();
        rows.q = joined(pack_q_, unit.heads.size(), layout_.queries, at);
        rows.k = joined(pack_k_, 1, layout_.keys, at);
        rows.v = joined(pack_v_, 1, layout_.keys, at);
      }
    });
    return all;
  }
  StoredRows queries(const UnitRows& rows, const HeadUnit& unit) const {
    return pack_q_.view(rows.q.data(), unit.heads.size(), layout_.whole.n_q);
  }
  StoredRows keys(const UnitRows& rows) const { return pack_k_.view(rows.k.data(), 1, layout_.whole.n_k); }
  StoredRows values(const UnitRows& rows) const { return pack_v_.view(rows.v.data(), 1, layout_.whole.n_k); }

  /// out: this rank's rows of the units' results, of which `results` are those of its own units, with all
  /// their rows; collective.
  void distribute(const std::vector<Buffer>& results, const OutputRows& out, Traffic& traffic) const {
    const Index row_bytes = layout_.own.d_v * out.type->bytes;
    std::vector<Buffer> to;
    ranks_.agree([&] {
      to.resize(static_cast<std::size_t>(ranks_.count()));
      std::size_t mine = 0;
      for (const HeadUnit& unit : units_) {
        if (!is_mine(unit)) continue;
        const std::byte* from = results[mine++].data();
        for (Index h = 0; h < unit.heads.size(); ++h)
          for (std::size_t r = 0; r < to.size(); ++r) {
            const Index bytes = layout_.queries[r].count * row_bytes;
            to[r].insert(to[r].end(), from, from + bytes);
            from += bytes;
          }
      }
    });
    const std::vector<Buffer> from = exchange(ranks_, std::move(to), traffic);
    std::vector<const std::byte*> at;
    for (const Buffer& buffer : from) at.push_back(buffer.data());
    for (const HeadUnit& unit : units_)
      for (Index h = unit.heads.begin; h < unit.heads.end; ++h)
        for (Index i = 0; i < layout_.own.n_q; ++i) {
          std::memcpy(out.row(h, i), at[rank_of(unit)], static_cast<std::size_t>(row_bytes));
          at[rank_of(unit)] += row_bytes;
        }
  }

 private:
  static std::size_t rank_of(const HeadUnit& unit) { return static_cast<std::size_t>(unit.rank); }

  /// [heads, rows of all ranks] of what each rank has packed, from at[rank] on, which goes along.
  static Buffer joined(const PackedRows<Real>& pack, Index heads, const std::vector<RankRows>& of_ranks,
                       std::vector<const std::byte*>& at) {
    Index all = 0, first = 0;
    for (const RankRows& rows : of_ranks) all += rows.count;
    Buffer to(static_cast<std::size_t>(heads * all * pack.row_bytes()));
    for (std::size_t r = 0; r < of_ranks.size(); ++r) {
      const Index count = of_ranks[r].count, bytes = count * pack.row_bytes();
      for (Index h = 0; h < heads && bytes > 0; ++h)
        std::memcpy(to.data() + (h * all + first) * pack.row_bytes(), at[r] + h * bytes,
                    static_cast<std::size_t>(bytes));
      at[r] += pack.bytes(heads, count);
      first += count;
    }
    return to;
  }

  const Ranks& ranks_;
  const Layout& layout_;
  std::span<const HeadUnit> units_;
  const StoredRows &q_, &k_, &v_;
  PackedRows<Real> pack_q_, pack_k_, pack_v_;
};

}  // namespace fastrope::inline FASTROPE_TARGET::mpi::detail
