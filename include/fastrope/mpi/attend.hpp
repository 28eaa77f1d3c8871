// mpi::attend: exact attention over a sequence that is spread over MPI ranks.
//
// Each rank has consecutive rows of q and out, and consecutive rows of k and v. Keys go to the ranks whose
// queries meet them, or queries to the keys (shares.hpp); each piece is a partial result (attend_partial),
// and these merge. What is sent next is on its way while a piece is computed, in slices of its queries
// between which MPI gets the time to send.
#pragma once

#include <mpi.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>
#include <limits>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "fastrope/core/index.hpp"
#include "fastrope/core/paged_view.hpp"
#include "fastrope/core/stored_rows.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/tensor_view.hpp"
#include "fastrope/exact/attend_partial.hpp"
#include "fastrope/mpi/messages.hpp"
#include "fastrope/mpi/ranks.hpp"
#include "fastrope/mpi/shares.hpp"
#include "fastrope/mpi/terms.hpp"
#include "fastrope/problem/options.hpp"
#include "fastrope/problem/problem.hpp"

namespace fastrope::inline FASTROPE_TARGET::mpi {

/// What a rank did.
struct Report {
  int ranks = 1;
  double share = 1;      ///< of all pairs of queries and keys, those that this rank computed
  Index bytes_sent = 0;  ///< to other ranks: keys, values, queries and partial results
  Index bytes_received = 0;
};

namespace detail {

using fastrope::detail::fail;

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

/// This rank's rows, which begin at position `first` where none are given.
inline RankRows rank_rows(std::span<const Position> given, Index count, Position first) {
  if (given.empty() || count == 0) return {count, first, first + count - 1, true};
  const auto [least, most] = std::minmax_element(given.begin(), given.end());
  bool consecutive = true;
  for (Index i = 1; i < count; ++i)
    consecutive =
        consecutive && given[static_cast<std::size_t>(i)] == given[static_cast<std::size_t>(i - 1)] + 1;
  return {count, *least, *most, consecutive};
}

/// One rank's part in a call.
template <class Q, class K, class V>
class Call {
 public:
  using Real = ArithmeticOf<ElementOf<Q>>;
  using Query = ElementOf<Q>;
  using Key = typename fastrope::detail::KernelElement<Real, K>::type;
  using Value = typename fastrope::detail::KernelElement<Real, V>::type;

  /// Collective, and so is run. Everything must outlive the call.
  Call(const Ranks& ranks, const Q& q, const K& k, const V& v, const OutputRows& out, const Options& options)
      : ranks_(ranks),
        me_(static_cast<std::size_t>(ranks.rank())),
        q_(as_tensor(q)),
        k_(k),
        v_(v),
        key_rows_(k),
        value_rows_(v),
        out_(out),
        options_(options),
        pack_q_(q_),
        pack_k_(k_),
        pack_v_(v_) {
    decide();
  }

  Report run() {
    Messages messages(ranks_);
    allocate();
    send_rows(messages);
    std::string failure = compute(messages);
    join(messages, failure);
    messages.wait();
    ranks_.agree([&] {
      if (!failure.empty()) throw Error(failure);
    });
    write();
    double pairs = 0, own = 0;
    for (const Piece& piece : pieces_) {
      const RankRows& rows = queries_[static_cast<std::size_t>(piece.query_rank)];
      const double of_piece = pairs_of(rows, keys_[static_cast<std::size_t>(piece.key_rank)], options_.mask) *
                              static_cast<double>(piece.rows.size()) / static_cast<double>(rows.count);
      pairs += of_piece;
      if (piece.worker == ranks_.rank()) own += of_piece;
    }
    return {ranks_.count(), pairs > 0 ? own / pairs : 0, messages.sent(), messages.received()};
  }

 private:
  enum Tag { kKeys, kQueries, kResults };
  static constexpr Index kSlice = 1024;  // queries, between which MPI gets time
  static constexpr Real kNone = -std::numeric_limits<Real>::infinity();

  void decide() {
    std::vector<Index> row;
    Terms terms;
    ranks_.agree([&] {
      local_ = shapes_of(q_, k_, v_);
      require_output(local_, out_);
      terms =
          terms_of(local_, options_,
                   std::vector<Index>{q_.type->bytes, q_.type->elements, k_.type->bytes, k_.type->elements,
                                      v_.type->bytes, v_.type->elements, k_.is_scaled(), v_.is_scaled()});
    });
    row = {local_.n_q, local_.n_k};
    row.insert(row.end(), terms.numbers().begin(), terms.numbers().end());
    const auto rows = ranks_.gather(row);
    Index n_q = 0, first_query = 0, first_key = 0;
    for (std::size_t r = 0; r < rows.size(); ++r) {
      for (std::size_t t = 2; t < row.size(); ++t)
        if (rows[r][t] != rows[0][t]) fail("ranks ", 0, " and ", r, " differ in ", terms.name(t - 2));
      if (r == me_) {
        first_query = n_q;
        first_key = n_k_;
      }
      first_keys_.push_back(n_k_);
      n_q += rows[r][0];
      n_k_ += rows[r][1];
    }
    ranks_.agree([&] { require_local(local_, n_k_, options_); });
    const RankRows of_q = rank_rows(options_.query_positions, local_.n_q, n_k_ - n_q + first_query),
                   of_k = rank_rows(options_.key_positions, local_.n_k, first_key);
    for (const auto& r : ranks_.gather({of_q.count, of_q.least, of_q.most, of_q.consecutive, of_k.count,
                                        of_k.least, of_k.most, of_k.consecutive})) {
      queries_.push_back({r[0], r[1], r[2], r[3] != 0});
      keys_.push_back({r[4], r[5], r[6], r[7] != 0});
    }
    const bool queries_move = !options_.key_ranges.given() && options_.dense_bias.data == nullptr &&
                              options_.dense_mask.data == nullptr;
    pieces_ = shares(queries_, keys_, options_.mask, queries_move);
  }

  // ---- messages ----

  static Index bytes_of_positions(const RankRows& rows, Index count) {
    return rows.consecutive ? 0 : count * static_cast<Index>(sizeof(Position));
  }
  /// k, v and where they stand.
  Index bytes_of_keys(int rank) const {
    const RankRows& rows = keys_[static_cast<std::size_t>(rank)];
    return pack_k_.bytes(local_.kv_heads, rows.count) + pack_v_.bytes(local_.kv_heads, rows.count) +
           bytes_of_positions(rows, rows.count);
  }
  Index bytes_of_queries(const Piece& piece) const {
    return pack_q_.bytes(local_.heads, piece.rows.size()) +
           bytes_of_positions(queries_[static_cast<std::size_t>(piece.query_rank)], piece.rows.size());
  }
  Index bytes_of_results(const Piece& piece) const {
    return local_.heads * piece.rows.size() * (local_.d_v + 1) * static_cast<Index>(sizeof(Real));
  }
  bool is_mine(int rank) const { return rank == ranks_.rank(); }
  /// Whether what this rank computes takes rows of another.
  bool takes_rows(const Piece& piece) const {
    return is_mine(piece.worker) && piece.query_rank != piece.key_rank;
  }
  Index bytes_to_take(const Piece& piece) const {
    return is_mine(piece.query_rank) ? bytes_of_keys(piece.key_rank) : bytes_of_queries(piece);
  }

  /// Of all memory, so that nothing fails while others wait.
  void allocate() {
    ranks_.agree([&] {
      Index taken = 0, rows = 0;
      bool keys_go = false;
      for (const Piece& piece : pieces_) {
        if (is_mine(piece.worker)) rows = std::max(rows, std::min(kSlice, piece.rows.size()));
        if (takes_rows(piece)) taken = std::max(taken, bytes_to_take(piece));
        if (is_mine(piece.query_rank) && !is_mine(piece.worker)) {
          sent_queries_.push_back(Messages::buffer(bytes_of_queries(piece)));
          received_results_.push_back(Messages::buffer(bytes_of_results(piece)));
        }
        if (!is_mine(piece.query_rank) && is_mine(piece.worker))
          sent_results_.push_back(Messages::buffer(bytes_of_results(piece)));
        keys_go = keys_go || (is_mine(piece.key_rank) && !is_mine(piece.worker));
      }
      if (keys_go) sent_keys_ = Messages::buffer(bytes_of_keys(ranks_.rank()));
      for (std::vector<std::byte>& buffer : taken_) buffer = Messages::buffer(taken);
      const auto floats = [](Index count) { return std::vector<Real>(static_cast<std::size_t>(count)); };
      part_ = floats(local_.heads * rows * (local_.d_v + 1));
      state_ = floats(local_.heads * local_.n_q * local_.d_v);
      lse_ = floats(local_.heads * local_.n_q);
      for (Index h = 0; h < local_.heads; ++h)  // a sink is a state of its own, without a value
        std::fill_n(lse_.begin() + h * local_.n_q, local_.n_q,
                    options_.sinks.empty() ? kNone : options_.sinks[static_cast<std::size_t>(h)]);
    });
  }

  /// Positions of rows that are not consecutive.
  static void copy_positions(const RankRows& of_rank, std::span<const Position> positions, std::byte* to) {
    if (!of_rank.consecutive) std::memcpy(to, positions.data(), positions.size_bytes());
  }

  void send_rows(Messages& messages) {
    if (!sent_keys_.empty()) {
      const Range all{0, local_.n_k};
      std::byte* to = sent_keys_.data();
      pack_k_.pack(k_, all, to);
      pack_v_.pack(v_, all, to += pack_k_.bytes(local_.kv_heads, local_.n_k));
      copy_positions(keys_[me_], options_.key_positions, to + pack_v_.bytes(local_.kv_heads, local_.n_k));
    }
    std::size_t sent = 0, received = 0;
    for (const Piece& piece : pieces_) {
      if (is_mine(piece.key_rank) && piece.worker == piece.query_rank && !is_mine(piece.worker))
        messages.send(sent_keys_, bytes_of_keys(ranks_.rank()), piece.worker, kKeys);
      if (!is_mine(piece.query_rank) || is_mine(piece.worker)) continue;
      std::vector<std::byte>& queries = sent_queries_[sent++];
      pack_q_.pack(q_, piece.rows, queries.data());
      if (!queries_[me_].consecutive)
        copy_positions(queries_[me_],
                       options_.query_positions.subspan(static_cast<std::size_t>(piece.rows.begin),
                                                        static_cast<std::size_t>(piece.rows.size())),
                       queries.data() + pack_q_.bytes(local_.heads, piece.rows.size()));
      messages.send(queries, bytes_of_queries(piece), piece.worker, kQueries);
      results_.push_back(
          messages.receive(received_results_[received++], bytes_of_results(piece), piece.worker, kResults));
    }
  }

  // ---- work ----

  /// Computes this rank's pieces, the next one's rows on their way. Returns what went wrong; the others get
  /// what they wait for in any case.
  std::string compute(Messages& messages) {
    std::vector<const Piece*> mine;
    for (const Piece& piece : pieces_)
      if (is_mine(piece.worker)) mine.push_back(&piece);
    std::vector<MPI_Request> requests(mine.size(), MPI_REQUEST_NULL);
    std::size_t takers = 0, sent = 0;
    std::vector<std::size_t> place(mine.size());
    const auto take = [&](std::size_t p) {
      if (p >= mine.size() || !takes_rows(*mine[p])) return;
      const Piece& piece = *mine[p];
      place[p] = takers++ % taken_.size();
      const bool keys = is_mine(piece.query_rank);
      requests[p] = messages.receive(taken_[place[p]], bytes_to_take(piece),
                                     keys ? piece.key_rank : piece.query_rank, keys ? kKeys : kQueries);
    };
    std::string failure;
    take(0);
    for (std::size_t p = 0; p < mine.size(); ++p) {
      take(p + 1);
      MPI_Wait(&requests[p], MPI_STATUS_IGNORE);
      const Piece& piece = *mine[p];
      std::vector<std::byte>* const result = is_mine(piece.query_rank) ? nullptr : &sent_results_[sent++];
      try {
        if (failure.empty()) attend_piece(piece, taken_[place[p]].data(), result, messages);
      } catch (const std::exception& error) {
        failure = error.what();
      }
      if (result != nullptr) messages.send(*result, bytes_of_results(piece), piece.query_rank, kResults);
    }
    return failure;
  }

  /// Positions of rows of a rank, of which `given` are not consecutive ones.
  static std::vector<Position> positions_of(const RankRows& rows, Range some, const Position* given) {
    std::vector<Position> positions;
    for (Index i = some.begin; i < some.end; ++i)
      positions.push_back(rows.consecutive ? rows.least + i : given[i - some.begin]);
    return positions;
  }

  /// taken: the rows that the piece takes of another rank, if it does; result: where its results go, null:
  /// into this rank's state.
  void attend_piece(const Piece& piece, const std::byte* taken, std::vector<std::byte>* result,
                    Messages& messages) {
    const RankRows &of_q = queries_[static_cast<std::size_t>(piece.query_rank)],
                   &of_k = keys_[static_cast<std::size_t>(piece.key_rank)];
    const Index heads = local_.heads, kv_heads = local_.kv_heads, n = piece.rows.size();
    StoredRows q = q_;
    KeyRows<Real> k = key_rows_;
    ValueRows<Real> v = value_rows_;
    const Position* query_positions = options_.query_positions.data();
    if (!of_q.consecutive) query_positions += piece.rows.begin;
    const Position* key_positions = options_.key_positions.data();
    Range rows = piece.rows;  // of q
    if (!is_mine(piece.key_rank)) {
      const std::byte* values = taken + pack_k_.bytes(kv_heads, of_k.count);
      k = KeyRows<Real>(contiguous(reinterpret_cast<const Key*>(taken), kv_heads, of_k.count, local_.d));
      v = ValueRows<Real>(
          contiguous(reinterpret_cast<const Value*>(values), kv_heads, of_k.count, local_.d_v));
      key_positions = reinterpret_cast<const Position*>(values + pack_v_.bytes(kv_heads, of_k.count));
    } else if (!is_mine(piece.query_rank)) {
      q = contiguous(reinterpret_cast<const Query*>(taken), heads, n, local_.d);
      query_positions = reinterpret_cast<const Position*>(taken + pack_q_.bytes(heads, n));
      rows = {0, n};
    }
    const Index first_key = first_keys_[static_cast<std::size_t>(piece.key_rank)];
    const std::vector<Position> keys = positions_of(of_k, {0, of_k.count}, key_positions),
                                queries = positions_of(of_q, piece.rows, query_positions);
    std::vector<Range> ranges;
    for (Index at = 0; at < n; at += kSlice) {
      const Range slice{at, std::min(at + kSlice, n)}, of_rows{rows.begin + at, rows.begin + slice.end};
      StoredRows some = q;
      some.data += of_rows.begin * some.row_stride;
      some.rows = slice.size();
      const Options options = options_of_piece(
          options_, local_, of_rows, {first_key, first_key + of_k.count},
          std::span(queries).subspan(static_cast<std::size_t>(at), static_cast<std::size_t>(slice.size())),
          keys, ranges);
      const TensorView<Real> out = contiguous(part_.data(), heads, slice.size(), local_.d_v);
      const MatrixView<Real> lse(part_.data() + heads * slice.size() * local_.d_v, heads, slice.size());
      fastrope::detail::attend_part<OperandOf<Real, Q, K, V>>({some, k, v, out, lse}, options);
      if (result == nullptr) {
        merge_rows(of_rows, out, lse);
      } else {
        Real* const to = reinterpret_cast<Real*>(result->data());
        for (Index h = 0; h < heads; ++h) {
          std::copy_n(out.head(h).row(0), slice.size() * local_.d_v, to + (h * n + at) * local_.d_v);
          std::copy_n(lse.row(h), slice.size(), to + heads * n * local_.d_v + h * n + at);
        }
      }
      messages.progress();
    }
  }

  /// Partial results of some of this rank's queries join its state.
  void merge_rows(Range rows_of_state, TensorView<const Real> out, MatrixView<const Real> lse) {
    const TensorView<Real> state = contiguous(state_.data(), local_.heads, local_.n_q, local_.d_v);
    MatrixView<Real> sums(lse_.data(), local_.heads, local_.n_q);
    sums.data += rows_of_state.begin;
    sums.cols = rows_of_state.size();
    fastrope::merge<Real>(rows(state, rows_of_state), sums, out, lse);
  }

  /// Takes the results that other ranks computed of this one's queries, in the order of the pieces.
  void join(Messages& messages, std::string& failure) {
    std::size_t received = 0;
    for (const Piece& piece : pieces_) {
      if (!is_mine(piece.query_rank) || is_mine(piece.worker)) continue;
      messages.progress();
      MPI_Wait(&results_[received], MPI_STATUS_IGNORE);
      const Real* from = reinterpret_cast<const Real*>(received_results_[received++].data());
      const Index heads = local_.heads, n = piece.rows.size();
      if (failure.empty())
        merge_rows(piece.rows, contiguous(from, heads, n, local_.d_v),
                   {from + heads * n * local_.d_v, heads, n});
    }
  }

  void write() const {
    std::vector<double> row(static_cast<std::size_t>(local_.d_v));
    for (Index h = 0; h < local_.heads; ++h)
      for (Index i = 0; i < local_.n_q; ++i) {
        std::copy_n(state_.begin() + (h * local_.n_q + i) * local_.d_v, local_.d_v, row.begin());
        out_.template write<Real>(h, i, row.data(), 1, local_.d_v);
      }
  }

  const Ranks& ranks_;
  std::size_t me_;
  StoredRows q_, k_, v_;
  KeyRows<Real> key_rows_;
  ValueRows<Real> value_rows_;
  OutputRows out_;
  const Options& options_;
  PackedRows<Real> pack_q_, pack_k_, pack_v_;
  Shapes local_ = {};
  Index n_k_ = 0;                       // of all ranks
  std::vector<Index> first_keys_ = {};  // [ranks], among all keys
  std::vector<RankRows> queries_ = {}, keys_ = {};
  std::vector<Piece> pieces_ = {};
  std::vector<std::byte> sent_keys_ = {};
  std::array<std::vector<std::byte>, 2> taken_ = {};
  std::vector<std::vector<std::byte>> sent_queries_ = {}, sent_results_ = {}, received_results_ = {};
  std::vector<MPI_Request> results_ = {};
  std::vector<Real> part_ = {}, state_ = {}, lse_ = {};
};

}  // namespace detail

/// Attention over a sequence whose rows are spread over the ranks of comm; collective. q [heads, n_q, d],
/// k [kv_heads, n_k, d], v [kv_heads, n_k, d_v] and out [heads, n_q, d_v] are this rank's rows, which follow
/// those of the ranks before, n_q and n_k any numbers, also 0. Types, sizes and options are the same on all
/// ranks; query_positions, key_positions, the rows of key_ranges, dense_bias and dense_mask are of this
/// rank's rows, the keys in these are counted over all ranks. By default the queries of all ranks stand where
/// the last keys of all do. Exact, but for rounding, whatever tolerance is asked for. Allocates messages: its
/// own k, v and q, and twice those of the largest rank. MPI is called by the calling thread alone, so
/// MPI_THREAD_FUNNELED is enough. Throws Error, the same on every rank, for tensors and options that clash on
/// some rank or differ between ranks.
/// Cost: each rank computes about its share of the pairs that the mask allows, sends its keys at most once to
/// every other, and, where a mask leaves ranks with unequal work, a part of its queries.
template <TensorLike Q, RowsLike K, RowsLike V, TensorLike Out>
Report attend(MPI_Comm comm, const Q& q, const K& k, const V& v, Out&& out, const Options& options) {
  const Ranks ranks(comm);
  return detail::Call<Q, K, V>(ranks, q, k, v, as_tensor(out), options).run();
}

}  // namespace fastrope::inline FASTROPE_TARGET::mpi
