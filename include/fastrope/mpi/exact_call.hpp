// ExactCall: exact attention over a sequence that is spread over MPI ranks.
//
// Each rank has consecutive rows of q and out, and consecutive rows of k and v (layout.hpp). Keys go to the
// ranks whose queries meet them, or queries to the keys (shares.hpp); each piece is a partial result
// (attend_partial), and these merge. What is sent next is on its way while a piece is computed, in slices of
// its queries between which MPI gets the time to send.
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
#include "fastrope/exact/row_kernels.hpp"
#include "fastrope/mpi/exchange.hpp"
#include "fastrope/mpi/layout.hpp"
#include "fastrope/mpi/messages.hpp"
#include "fastrope/mpi/piece_options.hpp"
#include "fastrope/mpi/ranks.hpp"
#include "fastrope/mpi/shares.hpp"
#include "fastrope/problem/options.hpp"
#include "fastrope/problem/problem.hpp"

namespace fastrope::inline FASTROPE_TARGET::mpi::detail {

/// How the tensors of a call are stored, and what computes with them.
template <class Q, class K, class V, class Arithmetic = ArithmeticOf<ElementOf<Q>>>
struct CallTypes {
  using Real = Arithmetic;
  using Query = ElementOf<Q>;
  using Key = typename fastrope::detail::KernelElement<Real, K>::type;
  using Value = typename fastrope::detail::KernelElement<Real, V>::type;
  using Operand = OperandOf<Real, Q, K, V>;
};

/// One rank's part in a call. Types: CallTypes.
template <class Types>
class ExactCall {
 public:
  using Real = typename Types::Real;

  /// allow_pairs: whether products may be of bfloat16 where tensors are stored so. Everything must outlive
  /// the call.
  ExactCall(const Ranks& ranks, const Layout& layout, const ExactTensors<Real>& x, const Options& options,
            bool allow_pairs)
      : ranks_(ranks),
        me_(static_cast<std::size_t>(ranks.rank())),
        layout_(layout),
        shapes_(shapes_of(x.q, x.k, x.v)),
        x_(x),
        options_(options),
        allow_pairs_(allow_pairs),
        pack_q_(x.q),
        pack_k_(x.k),
        pack_v_(x.v) {
    const bool queries_move = !options.key_ranges.given() && options.dense_bias.data == nullptr &&
                              options.dense_mask.data == nullptr;
    pieces_ = shares(layout.queries, layout.keys, options.mask, queries_move);
  }

  /// Collective. Throws Error, the same on every rank, where it fails on one.
  Traffic run() {
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
    return traffic(messages);
  }

 private:
  enum Tag { kKeys, kQueries, kResults };
  static constexpr Index kSlice = 1024;  // queries, between which MPI gets time
  static constexpr Real kNone = -std::numeric_limits<Real>::infinity();

  Traffic traffic(const Messages& messages) const {
    Traffic done{.bytes_sent = messages.sent(), .bytes_received = messages.received()};
    for (const Piece& piece : pieces_) {
      const RankRows& rows = layout_.queries[static_cast<std::size_t>(piece.query_rank)];
      const RankRows& keys = layout_.keys[static_cast<std::size_t>(piece.key_rank)];
      const double pairs = pairs_of(rows, keys, options_.mask) * static_cast<double>(shapes_.heads) *
                           static_cast<double>(piece.rows.size()) / static_cast<double>(rows.count);
      done.pairs += pairs;
      if (is_mine(piece.worker)) done.own_pairs += pairs;
    }
    return done;
  }

  // ---- messages ----

  static Index bytes_of_positions(const RankRows& rows, Index count) {
    return rows.consecutive ? 0 : count * static_cast<Index>(sizeof(Position));
  }
  /// k, v and where they stand.
  Index bytes_of_keys(int rank) const {
    const RankRows& rows = layout_.keys[static_cast<std::size_t>(rank)];
    return pack_k_.bytes(shapes_.kv_heads, rows.count) + pack_v_.bytes(shapes_.kv_heads, rows.count) +
           bytes_of_positions(rows, rows.count);
  }
  Index bytes_of_queries(const Piece& piece) const {
    return pack_q_.bytes(shapes_.heads, piece.rows.size()) +
           bytes_of_positions(layout_.queries[static_cast<std::size_t>(piece.query_rank)], piece.rows.size());
  }
  Index bytes_of_results(const Piece& piece) const {
    return shapes_.heads * piece.rows.size() * (shapes_.d_v + 1) * static_cast<Index>(sizeof(Real));
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
      part_ = floats(shapes_.heads * rows * (shapes_.d_v + 1));
      state_ = floats(shapes_.heads * shapes_.n_q * shapes_.d_v);
      lse_ = floats(shapes_.heads * shapes_.n_q);
      for (Index h = 0; h < shapes_.heads; ++h)  // a sink is a state of its own, without a value
        std::fill_n(lse_.begin() + h * shapes_.n_q, shapes_.n_q,
                    options_.sinks.empty() ? kNone : options_.sinks[static_cast<std::size_t>(h)]);
    });
  }

  /// Positions of rows that are not consecutive.
  static void copy_positions(const RankRows& of_rank, std::span<const Position> positions, std::byte* to) {
    if (!of_rank.consecutive) std::memcpy(to, positions.data(), positions.size_bytes());
  }

  void send_rows(Messages& messages) {
    if (!sent_keys_.empty()) {
      const Range all{0, shapes_.n_k};
      std::byte* to = sent_keys_.data();
      pack_k_.pack(x_.k, all, to);
      pack_v_.pack(x_.v, all, to += pack_k_.bytes(shapes_.kv_heads, shapes_.n_k));
      copy_positions(layout_.keys[me_], options_.key_positions,
                     to + pack_v_.bytes(shapes_.kv_heads, shapes_.n_k));
    }
    std::size_t sent = 0, received = 0;
    for (const Piece& piece : pieces_) {
      if (is_mine(piece.key_rank) && piece.worker == piece.query_rank && !is_mine(piece.worker))
        messages.send(sent_keys_, bytes_of_keys(ranks_.rank()), piece.worker, kKeys);
      if (!is_mine(piece.query_rank) || is_mine(piece.worker)) continue;
      std::vector<std::byte>& queries = sent_queries_[sent++];
      pack_q_.pack(x_.q, piece.rows, queries.data());
      if (!layout_.queries[me_].consecutive)
        copy_positions(layout_.queries[me_],
                       options_.query_positions.subspan(static_cast<std::size_t>(piece.rows.begin),
                                                        static_cast<std::size_t>(piece.rows.size())),
                       queries.data() + pack_q_.bytes(shapes_.heads, piece.rows.size()));
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
    const RankRows &of_q = layout_.queries[static_cast<std::size_t>(piece.query_rank)],
                   &of_k = layout_.keys[static_cast<std::size_t>(piece.key_rank)];
    const Index heads = shapes_.heads, kv_heads = shapes_.kv_heads, n = piece.rows.size();
    StoredRows q = x_.q;
    KeyRows<Real> k = x_.k;
    ValueRows<Real> v = x_.v;
    const Position* query_positions = options_.query_positions.data();
    if (!of_q.consecutive) query_positions += piece.rows.begin;
    const Position* key_positions = options_.key_positions.data();
    Range rows = piece.rows;  // of q
    if (!is_mine(piece.key_rank)) {
      const std::byte* values = taken + pack_k_.bytes(kv_heads, of_k.count);
      k = KeyRows<Real>(
          contiguous(reinterpret_cast<const typename Types::Key*>(taken), kv_heads, of_k.count, shapes_.d));
      v = ValueRows<Real>(contiguous(reinterpret_cast<const typename Types::Value*>(values), kv_heads,
                                     of_k.count, shapes_.d_v));
      key_positions = reinterpret_cast<const Position*>(values + pack_v_.bytes(kv_heads, of_k.count));
    } else if (!is_mine(piece.query_rank)) {
      q = contiguous(reinterpret_cast<const typename Types::Query*>(taken), heads, n, shapes_.d);
      query_positions = reinterpret_cast<const Position*>(taken + pack_q_.bytes(heads, n));
      rows = {0, n};
    }
    const Index first_key = layout_.first_keys[static_cast<std::size_t>(piece.key_rank)];
    const std::vector<Position> keys = positions_of(of_k, {0, of_k.count}, key_positions),
                                queries = positions_of(of_q, piece.rows, query_positions);
    std::vector<Range> ranges;
    for (Index at = 0; at < n; at += kSlice) {
      const Range slice{at, std::min(at + kSlice, n)}, of_rows{rows.begin + at, rows.begin + slice.end};
      StoredRows some = q;
      some.data += of_rows.begin * some.row_stride;
      some.rows = slice.size();
      const Options options = options_of_piece(
          options_, shapes_, of_rows, {first_key, first_key + of_k.count},
          std::span(queries).subspan(static_cast<std::size_t>(at), static_cast<std::size_t>(slice.size())),
          keys, ranges);
      const TensorView<Real> out = contiguous(part_.data(), heads, slice.size(), shapes_.d_v);
      const MatrixView<Real> lse(part_.data() + heads * slice.size() * shapes_.d_v, heads, slice.size());
      fastrope::detail::attend_part<typename Types::Operand>({some, k, v, out, lse}, options, allow_pairs_);
      if (result == nullptr) {
        merge_rows(of_rows, out, lse);
      } else {
        Real* const to = reinterpret_cast<Real*>(result->data());
        for (Index h = 0; h < heads; ++h) {
          std::copy_n(out.head(h).row(0), slice.size() * shapes_.d_v, to + (h * n + at) * shapes_.d_v);
          std::copy_n(lse.row(h), slice.size(), to + heads * n * shapes_.d_v + h * n + at);
        }
      }
      messages.progress();
    }
  }

  /// Partial results of some of this rank's queries join its state.
  void merge_rows(Range rows_of_state, TensorView<const Real> out, MatrixView<const Real> lse) {
    const TensorView<Real> state = contiguous(state_.data(), shapes_.heads, shapes_.n_q, shapes_.d_v);
    MatrixView<Real> sums(lse_.data(), shapes_.heads, shapes_.n_q);
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
      const Index heads = shapes_.heads, n = piece.rows.size();
      if (failure.empty())
        merge_rows(piece.rows, contiguous(from, heads, n, shapes_.d_v),
                   {from + heads * n * shapes_.d_v, heads, n});
    }
  }

  void write() const {
    std::vector<double> row(static_cast<std::size_t>(shapes_.d_v));
    for (Index h = 0; h < shapes_.heads; ++h)
      for (Index i = 0; i < shapes_.n_q; ++i) {
        std::copy_n(state_.begin() + (h * shapes_.n_q + i) * shapes_.d_v, shapes_.d_v, row.begin());
        x_.out.template write<Real>(h, i, row.data(), 1, shapes_.d_v);
      }
  }

  const Ranks& ranks_;
  std::size_t me_;
  const Layout& layout_;
  Shapes shapes_;  // of this rank's tensors
  ExactTensors<Real> x_;
  const Options& options_;
  bool allow_pairs_;
  PackedRows<Real> pack_q_, pack_k_, pack_v_;
  std::vector<Piece> pieces_ = {};
  std::vector<std::byte> sent_keys_ = {};
  std::array<std::vector<std::byte>, 2> taken_ = {};
  std::vector<std::vector<std::byte>> sent_queries_ = {}, sent_results_ = {}, received_results_ = {};
  std::vector<MPI_Request> results_ = {};
  std::vector<Real> part_ = {}, state_ = {}, lse_ = {};
};

}  // namespace fastrope::inline FASTROPE_TARGET::mpi::detail
