// Recurrent attention: causal attention with a polynomial kernel, whose state has a fixed size.
//
//     A_ij = P(x_ij) e^(G_i - G_j + b_j) for j <= i,
//     state [states, rank, d_v + 1] = sum_j e^(level_j - level) c_alpha k_j^alpha [v_j, 1]
// with a state for each key head, or for each query head where these are gated apart; without gates all
// levels are 0.
// Tokens enter the state in blocks of kKeyBlock, the first, the second, and so on, however they come. The
// recent ones, fewer than a block, are kept as they are: their weights are computed as such, since features
// lose digits where terms cancel, as they do while there are few tokens. A prompt is taken in chunks
// (polynomial/attention.hpp); a step reads its answer off the state and the recent tokens, in O(rank d_v),
// and folds a block into the state when it is full. Nothing is approximated, and every row has a bound on its
// rounding (kernel_rounding.hpp).
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "fastrope/core/index.hpp"
#include "fastrope/core/paged_view.hpp"
#include "fastrope/core/stored_rows.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/tensor_view.hpp"
#include "fastrope/core/workspace.hpp"
#include "fastrope/exact/attention.hpp"
#include "fastrope/polynomial/attention.hpp"
#include "fastrope/polynomial/kernel_bounds.hpp"
#include "fastrope/polynomial/kernel_rounding.hpp"
#include "fastrope/polynomial/monomials.hpp"
#include "fastrope/polynomial/recent_gates.hpp"
#include "fastrope/polynomial/rounding.hpp"
#include "fastrope/polynomial/saved_state.hpp"
#include "fastrope/polynomial/state.hpp"
#include "fastrope/problem/options.hpp"
#include "fastrope/problem/problem.hpp"
#include "fastrope/problem/run_status.hpp"

namespace fastrope::inline FASTROPE_TARGET {

namespace detail {
struct BoundedExp;
}

/// One sequence's attention with options.kernel, token after token, with arithmetic in Real; the state and
/// sums over recent tokens are in double. A copy is another sequence with the same past, and shares nothing
/// that either changes: what one takes afterwards the other does not see.
template <class Real>
class RecurrentAttention {
 public:
  /// For q of `heads` and k, v of `kv_heads` heads. options: a polynomial kernel; causal mask; rope, scale
  /// and normaliser as elsewhere; positions count tokens from 0. ALiBi is a constant gate. Gates come with
  /// the tokens; where those of query heads of one key head are to differ, options.log_gates says so by
  /// `heads` rows (without columns), and each query head has a state. Throws Error, naming the values, where
  /// options do not allow a recurrence and where the rank exceeds kMaxRank.
  RecurrentAttention(Index heads, Index kv_heads, Index d, Index d_v, const Options& options);

  /// Softmax with a promise: every entry |x| is at most `radius`, so that a polynomial is near enough to exp
  /// for options.tolerance and states take the place of the cache. row_bounds() counts the approximation, and
  /// error_bound() is what all of them keep to. What is held against the radius is |scale| |q| times the
  /// length of the longest key so far, with what rope's factor and rounding may add: a token beyond it is
  /// refused, with nothing changed, prefill throwing Error with the values and step returning
  /// RunStatus::promise_broken. Throws Error as the other, unless radius is a positive number and 0 <
  /// options.tolerance < 1, where no polynomial of a degree up to Kernel::kMaxDegree is near enough, and
  /// where rounding, which grows as e^(2 radius), leaves no promise within the tolerance. In
  /// attend/bounded_recurrence.hpp.
  RecurrentAttention(Index heads, Index kv_heads, Index d, Index d_v, const Options& options, double radius);

  /// Tokens so far.
  Position tokens() const { return tokens_; }
  /// Those of them that are in the state, the first ones: a multiple of kKeyBlock<Real>. The rest are kept
  /// beside it.
  Position tokens_in_state() const { return tokens_ - recent(); }
  Index rank() const { return units_.empty() ? 0 : units_.front().monomials->rank(); }
  /// [states, rank, d_v + 1]: what is kept of the tokens in the state, the term alpha as in MonomialSet; with
  /// gates, in units of the heaviest token's.
  std::span<const double> state() const { return state_; }
  /// [heads, tokens of the last prefill or step]: |out - exact| <= row_bounds()(h, i) max|V|, V all values so
  /// far of head h's key head, rounding to out's type included; may be infinite. Valid until the next call.
  MatrixView<const double> row_bounds() const {
    return {row_bounds_.data(), heads_, bounded_rows_, bounded_rows_};
  }

  /// With a radius at least |out - exact| / max|V| of every row that is stored in Real or wider, without
  /// gates and ALiBi (row_bounds() counts their rounding), for kPromisedTokens: at most the tolerance.
  /// Infinity without.
  double error_bound() const { return error_bound_; }

  /// Takes the next n tokens: q [heads, n, d], k [kv_heads, n, d], v [kv_heads, n, d_v]; out [heads, n, d_v]
  /// is what each attends to among all tokens so far. log_gates, log_input_gates: [kv_heads, n], or [heads,
  /// n] where the recurrence has a state for each query head; g at most 0, b below infinity; 0 where they are
  /// left out. Allocates a workspace. Throws Error for tensors and gates that clash; then nothing has
  /// changed. An exception of the executor leaves the state undefined. Cost: 4 n rank (d_v + 2) flops a head.
  template <TensorLike Q, RowsLike K, RowsLike V, TensorLike Out>
  void prefill(const Q& q, const K& k, const V& v, Out&& out, MatrixView<const float> log_gates = {},
               MatrixView<const float> log_input_gates = {}) {
    prefill_rows(as_tensor(q), as_rows(k), as_rows(v), as_tensor(out), {log_gates, log_input_gates});
  }

  /// The same for one token, n = 1; gates: [kv_heads], or [heads]. RunStatus::gates_refused for gates that
  /// are none. Allocates nothing and throws nothing; after RunStatus::executor_failed the token may be in the
  /// states of some heads. With rope, position_out_of_range once tokens() exceeds
  /// RopeFrequencies::max_position(). Cost: 2 rank (d_v + 2) flops a query head for what it reads, as many a
  /// key head, in blocks, for what it adds, and those of up to kKeyBlock recent tokens.
  template <TensorLike Q, RowsLike K, RowsLike V, TensorLike Out>
  RunStatus step(const Q& q, const K& k, const V& v, Out&& out, std::span<const float> log_gates = {},
                 std::span<const float> log_input_gates = {}) noexcept {
    const auto column = [](std::span<const float> x) {
      return MatrixView<const float>(x.data(), std::ssize(x), x.empty() ? 0 : 1, 1);
    };
    return step_rows(as_tensor(q), as_rows(k), as_rows(v), as_tensor(out),
                     {column(log_gates), column(log_input_gates)});
  }

  /// prefill() and step() of tensors whose types are known when the program runs.
  void prefill_rows(const StoredRows& q, const StoredRows& k, const StoredRows& v, const OutputRows& out,
                    const Gates& gates = {});
  RunStatus step_rows(const StoredRows& q, const StoredRows& k, const StoredRows& v, const OutputRows& out,
                      const Gates& gates = {}) noexcept;

  /// Bytes of a saved state: the same for all recurrences of these heads, sizes and kernel, whatever their
  /// past.
  std::size_t state_bytes() const noexcept {
    Index bytes = sizeof(SavedStateHeader);
    for_each_part(*this, [&](auto* data, Index, Index count) { bytes += count * Index{sizeof *data}; });
    return static_cast<std::size_t>(round_up(bytes, sizeof(std::uint64_t)));
  }
  /// Writes the past to memory of state_bytes(), of any alignment. Allocates nothing and throws nothing.
  /// Returns workspace_too_small, with nothing written, for fewer bytes; of more, the rest is left.
  RunStatus save(std::span<std::byte> to) const noexcept;
  /// Takes up the past that save() wrote: what follows is bit for bit what would have followed there, in
  /// row_bounds() too. Throws Error, naming what differs, unless `from` is whole, unchanged, and of a
  /// recurrence of the same heads, states, sizes, arithmetic, kernel, scale, rope and normaliser; then
  /// nothing has changed. Of other vector lengths it may be.
  void load(std::span<const std::byte> from);

 private:
  static constexpr Index kBlock = kKeyBlock<Real>;
  /// Rows that a prompt is taken in at a time: their pairs are computed as such, so few; the state is read
  /// and written for each chunk, so not too few where it is large. Whole blocks.
  static constexpr Index kChunk = 768, kSmallRank = 1024;
  static_assert(kChunk % kBlock == 0);
  Index chunk() const { return rank() < kSmallRank ? kBlock : kChunk; }
  /// Vectors of channels that a step reads at a time, and for how many queries at most (for_query_tiles).
  static constexpr int kTogether = simd::kRegisters >= 32 ? 4 : 2;
  static constexpr Index kMostQueries = 4;

  Index channels() const { return d_v_ + 1; }
  Index degrees() const { return problem_.kernel.degree() + 1; }
  Index recent() const { return static_cast<Index>(tokens_ % kBlock); }
  Index value_stride() const { return round_up(d_v_, simd::kLanes<Real>); }
  std::size_t at(Index u, Index size) const { return static_cast<std::size_t>(u * size); }
  /// The key head of state u, and how many query heads read it.
  Index key_head(Index u) const { return u * kv_heads_ / states_; }
  Index group() const { return states_ == 0 ? 1 : heads_ / states_; }

  RecurrentAttention(Index heads, Index kv_heads, Index d, Index d_v, const Options& options,
                     const detail::BoundedExp& bounded, double radius);

  static Options of_tokens(const Options& options);
  /// Of how many rows of gates state u has row u.
  static Index states_of(const Problem& problem, const Options& options);

  /// One worker's scratch of a step.
  struct StepScratch {
    Real* row;        // [d]
    Real* table;      // of the rotation
    Real* queries;    // [d, columns], turned and scaled, a column a query of the group
    Real* ancestors;  // [degree + 1, columns]
    Real* features;   // [kChain, columns]
    double* sums;     // [group, channels and padding]
    double* totals;   // [columns], the ones' of the state
    double* weights;  // [kMostQueries, kBlock], of recent tokens
    double* decays;   // [kBlock], what gates leave of those
    Real* ones;       // [kBlock], a block's weights
    Real* values;     // [kBlock / group, stride] where keys share vectors
    double* squares;  // [degree + 1, d_v + 1]
    double* sizes;    // [degree + 1]
    FeatureScratch<Real> features_of_keys;
  };
  /// Queries of a group, padded.
  Index columns() const { return round_up(group(), simd::kLanes<Real>); }
  Index padded_channels() const { return round_up(channels(), simd::kLanes<Real>); }
  StepScratch step_scratch(Workspace& workspace) const;

  /// Elements between the heads of the state's copy: rows may be read in whole vectors.
  Index rounded_stride() const { return rank() * channels() + padded_channels() - channels(); }
  CarriedState<Real> carried(Index u);
  /// A position beyond all that are turned before another block enters the state.
  Position farthest() const { return tokens_in_state() + 2 * kBlock; }

  /// visit(data, kept, count) for what makes the past of `self`, a recurrence: `kept` of `count` elements,
  /// the rest are slots of tokens to come.
  template <class Self, class Visit>
  static void for_each_part(Self& self, Visit&& visit) {
    const auto whole = [&](auto& x) { visit(x.data(), std::ssize(x), std::ssize(x)); };
    whole(self.state_);
    whole(self.errors_);
    whole(self.largest_value_);
    whole(self.longest_key_);
    whole(self.levels_);
    const Index kept = self.recent(), d = self.d_, d_v = self.d_v_, degrees = self.degrees();
    for (Index u = 0; u < self.states_; ++u) {
      visit(self.recent_keys_.data() + u * kBlock * d, kept * d, kBlock * d);
      for (Index c = 0; c < d; ++c) visit(self.recent_columns_.data() + (u * d + c) * kBlock, kept, kBlock);
      for (Index slot = 0; slot < kBlock; ++slot)
        visit(self.recent_values_.data() + (u * kBlock + slot) * self.value_stride(), slot < kept ? d_v : 0,
              d_v);
      visit(self.recent_gates_[static_cast<std::size_t>(u)].tokens(), kept, kBlock);
      visit(self.recent_sizes_.data() + u * (kBlock + 1) * degrees, (kept + 1) * degrees,
            (kBlock + 1) * degrees);
    }
  }
  /// The header of a state saved now, without its checksum.
  SavedStateHeader header() const noexcept;
  /// How the sums of a step over recent tokens are computed.
  KernelRounding step_rounding() const;

  /// Whether a row of gates is of a state, or of a key head.
  bool fits_states(const MatrixView<const float>& gates) const {
    return gates.rows == 0 || gates.rows == states_ || gates.rows == kv_heads_;
  }
  TokenGates gates_of(const Gates& gates, Index u, Index j) const {
    return {static_cast<float>(gates.gate(u, states_, j)),
            static_cast<float>(gates.input_gate(u, states_, j))};
  }
  /// A query and the longest key so far whose entry may be beyond the radius.
  struct Broken {
    Index head;
    Index token;
    double entry;
  };
  /// The first of n tokens, if there is one.
  std::optional<Broken> broken_promise(const StoredRows& q, const StoredRows& k, Index n) const;

  /// Token `slot` of the block, at position `position`, row j of k and v, joins the recent ones of state u;
  /// kv: its head of k and v.
  void append(Index u, Index kv, Index slot, Position position, const StoredRows& k, const StoredRows& v,
              Index j, const TokenGates& gates, const StepScratch& s);
  /// All kBlock recent tokens enter a state.
  void fold(Index u, const StepScratch& s);
  void step_state(Index u, const StoredRows& q, const StoredRows& k, const StoredRows& v,
                  const OutputRows& out, const Gates& gates, const StepScratch& s);
  void make_features(const MonomialSet& set, Index first, Index count, const StepScratch& s) const;
  void add_state(Index u, const StepScratch& s) const;
  void add_recent(Index u, Range seen, double level, const StepScratch& s) const;

  Index heads_, kv_heads_, d_, d_v_;
  Problem problem_;                      // of one token
  Index states_;                         // key heads, or query heads that are gated apart
  bool gated_;                           // whether any token had gates
  KernelRounding rounding_;              // of sums over recent tokens
  std::vector<LowRankUnit> units_ = {};  // one for each state, as all that follows
  std::vector<double> state_ = {};
  std::vector<Real> rounded_ = {};              // [states, rounded_stride], the state's copy for rows
  std::vector<double> errors_ = {};             // [states, 3, degree + 1]
  std::vector<double> largest_value_ = {};      // [states]
  std::vector<double> longest_key_ = {};        // [states], where there is a radius
  std::vector<double> levels_ = {};             // [states]: of the heaviest token in it, from its end on
  std::vector<Real> recent_keys_ = {};          // [states, kBlock, d], as they came
  std::vector<Real> recent_columns_ = {};       // [states, d, kBlock], turned
  std::vector<Real> recent_values_ = {};        // [states, kBlock, value_stride]
  std::vector<RecentGates> recent_gates_ = {};  // [states]
  // [states, kBlock + 1, degree + 1]: sums over the tokens before each of |k|^p, with gates times e^(their
  // level - the largest)
  std::vector<double> recent_sizes_ = {};
  std::vector<double> row_bounds_ = {};
  std::size_t scratch_bytes_ = 0;
  std::vector<std::byte> scratch_ = {};  // of each worker
  Position tokens_ = 0;
  Index bounded_rows_ = 0;
  double radius_ = std::numeric_limits<double>::infinity();  // of the entries
  double approximation_ = 0;                                 // of softmax, over max|V|
  double error_bound_ = std::numeric_limits<double>::infinity();
};

template <class Real>
RecurrentAttention<Real>::RecurrentAttention(Index heads, Index kv_heads, Index d, Index d_v,
                                             const Options& options)
    : heads_(heads),
      kv_heads_(kv_heads),
      d_(d),
      d_v_(d_v),
      problem_(Shapes{heads, kv_heads, 1, 1, d, d_v}, of_tokens(options)),
      states_(states_of(problem_, options)),
      gated_(problem_.gates.given() || options.log_gates.rows > 0),
      rounding_(step_rounding()) {
  if (problem_.kernel.is_softmax())
    detail::fail("a recurrence needs a polynomial options.kernel: softmax has no state of fixed size");
  const Mask mask = problem_.grid.mask();
  if (mask != Mask::causal())
    detail::fail("a recurrence is causal: options.mask allows the lags ", mask.first, " to ", mask.last);
  if (!options.query_positions.empty() || !options.key_positions.empty() || !problem_.turns_by_lag())
    detail::fail("a recurrence counts positions itself, one a token: options give ",
                 options.query_positions.size(), " query positions and ", options.key_positions.size(),
                 " key positions, and for sections ", options.query_section_positions.cols, " and ",
                 options.key_section_positions.cols);
  if (const std::string refusal = polynomial_refusal(problem_); !refusal.empty())
    detail::fail("no recurrence: ", refusal);
  const std::vector<int> limits = simplex_limits(d, problem_.kernel.degree());
  const Degrees terms = problem_.kernel.is_power() ? Degrees::highest : Degrees::all;
  if (const double rank = rank_of(limits, terms); rank > static_cast<double>(kMaxRank))
    detail::fail(rank_refusal(problem_.kernel.degree(), d, rank, d_v, sizeof(Real)));
  const auto monomials = std::make_shared<const MonomialSet>(limits, terms);
  const auto coefficients = problem_.kernel.coefficients();
  for (Index u = 0; heads > 0 && u < states_; ++u)
    units_.push_back({.heads = {u * group(), (u + 1) * group()},
                      .projection = Projection::none(d),
                      .coefficients = {coefficients.begin(), coefficients.end()},
                      .monomials = monomials,
                      .chunks = {}});
  state_.resize(at(states_, rank() * channels()));
  rounded_.resize(at(states_, rounded_stride()));
  errors_.resize(at(states_, 3 * degrees()));
  largest_value_.resize(at(states_, 1));
  longest_key_.resize(at(states_, 1));
  levels_.resize(at(states_, 1));
  recent_keys_.resize(at(states_, kBlock * d));
  recent_columns_.resize(at(states_, kBlock * d));
  recent_values_.resize(at(states_, kBlock * value_stride()));
  for (Index u = 0; u < states_; ++u) recent_gates_.emplace_back(kBlock, problem_.gates.slope(u));
  recent_sizes_.resize(at(states_, (kBlock + 1) * degrees()));
  row_bounds_.resize(at(heads, 1));
  scratch_bytes_ = Workspace::bytes_of([&](Workspace& workspace) { step_scratch(workspace); });
  scratch_.resize(static_cast<std::size_t>(problem_.executor.workers()) * scratch_bytes_);
}

template <class Real>
auto RecurrentAttention<Real>::step_scratch(Workspace& w) const -> StepScratch {
  const ValueLayout<Real> layout(d_v_);
  return {.row = w.take<Real>(round_up(d_, simd::kLanes<Real>)).data(),
          .table = w.take<Real>(problem_.rotation.row_size()).data(),
          .queries = w.take<Real>(d_ * columns()).data(),
          .ancestors = w.take<Real>(degrees() * columns()).data(),
          .features = w.take<Real>(kChain * columns()).data(),
          .sums = w.take<double>(group() * padded_channels()).data(),
          .totals = w.take<double>(columns()).data(),
          .weights = w.take<double>(kMostQueries * kBlock).data(),
          .decays = w.take<double>(kBlock).data(),
          .ones = w.take<Real>(kBlock).data(),
          .values = w.take<Real>(layout.group > 1 ? kBlock / layout.group * layout.stride : 0).data(),
          .squares = w.take<double>(degrees() * channels()).data(),
          .sizes = w.take<double>(degrees()).data(),
          .features_of_keys = {d_, d_, degrees() - 1, d_v_, w}};
}

template <class Real>
CarriedState<Real> RecurrentAttention<Real>::carried(Index u) {
  return {.state = state_.data() + u * rank() * channels(),
          .rounded = rounded_.data() + u * rounded_stride(),
          .errors = errors_.data() + u * 3 * degrees(),
          .largest_value = largest_value_.data() + u,
          .level = levels_.data() + u};
}

/// The options of each token, whose gates come with it. They give no key ranges.
template <class Real>
Options RecurrentAttention<Real>::of_tokens(const Options& options) {
  if (options.key_ranges.given())
    detail::fail("a recurrence sees all tokens before: options give ", options.key_ranges.ranges.size(),
                 " key_ranges");
  if (options.log_gates.cols > 0 || options.log_input_gates.rows > 0)
    detail::fail("a recurrence's gates come with its tokens: options.log_gates has ", options.log_gates.cols,
                 " columns and log_input_gates ", options.log_input_gates.rows,
                 " rows; its rows alone may say which heads have gates");
  Options of = options;
  of.log_gates = {};
  return of;
}

template <class Real>
Index RecurrentAttention<Real>::states_of(const Problem& problem, const Options& options) {
  const Shapes& s = problem.shapes;
  const Index rows = options.log_gates.rows;
  if (rows != 0 && rows != s.kv_heads && rows != s.heads)
    detail::fail("log_gates has ", rows, " rows, gates are of kv_heads = ", s.kv_heads,
                 " or heads = ", s.heads);
  return std::max({s.kv_heads, rows, problem.gates.rows(s.heads, s.kv_heads)});
}

/// Logits, weights and sums are of double; what is left is the rounding of rows.
template <class Real>
KernelRounding RecurrentAttention<Real>::step_rounding() const {
  constexpr double kDouble = kUnitRoundoff<double>;
  return {problem_.kernel,
          {.entry = row_rounding<Real>(problem_, farthest()) + static_cast<double>(d_ + 2) * kDouble,
           .unit = kDouble,
           .sums = 2 * static_cast<double>(kBlock + 4) * kDouble,
           .smallest = std::numeric_limits<double>::min()}};
}

template <class Real>
auto RecurrentAttention<Real>::broken_promise(const StoredRows& q, const StoredRows& k, Index n) const
    -> std::optional<Broken> {
  if (radius_ == std::numeric_limits<double>::infinity()) return {};
  // With what the lengths' own rounding may hide.
  const double outward = query_factor(problem_) * (1 + static_cast<double>(d_ + 8) * 0x1p-52);
  for (Index u = 0; u < states_; ++u) {
    double longest = longest_key_[at(u, 1)];
    for (Index i = 0; i < n; ++i) {
      longest = or_larger(longest, row_length<Real>(k.head(key_head(u)), i, d_));
      for (Index h = u * group(); h < (u + 1) * group(); ++h)
        if (const double entry = outward * row_length<Real>(q.head(h), i, d_) * longest; !(entry <= radius_))
          return Broken{h, i, entry};
    }
  }
  return {};
}

template <class Real>
void RecurrentAttention<Real>::prefill_rows(const StoredRows& q, const StoredRows& k, const StoredRows& v,
                                            const OutputRows& out, const Gates& gates) {
  const Shapes shapes = shapes_of(q, k, v);
  const Index n = shapes.n_q, before = recent();
  if (shapes != Shapes{heads_, kv_heads_, n, n, d_, d_v_})
    detail::fail("prefill: q, k and v are of ", shapes.heads, " and ", shapes.kv_heads, " heads, ",
                 shapes.n_q, " and ", shapes.n_k, " tokens, d ", shapes.d, " and d_v ", shapes.d_v,
                 "; this recurrence has ", heads_, " and ", kv_heads_, " heads, d ", d_, " and d_v ", d_v_);
  require_output(shapes, out);
  gates.require_shape(heads_, kv_heads_, n);
  for (const MatrixView<const float>& x : {gates.log, gates.log_input})
    if (!fits_states(x))
      detail::fail("prefill: gates are of ", x.rows, " heads, this recurrence has ", states_,
                   " states: options.log_gates with ", x.rows, " rows gives each head its own");
  gates.require_values();
  if (const auto broken = broken_promise(q, k, n))
    detail::fail("prefill: an entry of head ", broken->head, ", token ", tokens_ + broken->token,
                 ", may be as large as ", broken->entry, ", beyond the radius ", radius_);
  gated_ = gated_ || gates.given();

  // The recent tokens come first, so that blocks begin where they do in steps.
  const Index n_k = before + n;
  std::vector<Position> positions(static_cast<std::size_t>(n_k));
  for (Index j = 0; j < n_k; ++j) positions[static_cast<std::size_t>(j)] = tokens_ - before + j;
  std::vector<float> log_gates(gated_ ? at(states_, n_k) : 0), log_input_gates(log_gates.size());
  const auto each_gate = [&](Index u, Index j) {
    return j < before ? recent_gates_[static_cast<std::size_t>(u)].tokens()[j]
                      : gates_of(gates, u, j - before);
  };
  for (Index u = 0; gated_ && u < states_; ++u)
    for (Index j = 0; j < n_k; ++j) {
      const auto [log, log_input] = each_gate(u, j);
      log_gates[at(u, n_k) + static_cast<std::size_t>(j)] = log;
      log_input_gates[at(u, n_k) + static_cast<std::size_t>(j)] = log_input;
    }
  const Index gate_rows = gated_ ? states_ : 0;
  const Problem problem = problem_.with(n, n_k,
                                        {.queries = std::span(positions).last(static_cast<std::size_t>(n)),
                                         .keys = positions,
                                         .log_gates = {log_gates.data(), gate_rows, n_k},
                                         .log_input_gates = {log_input_gates.data(), gate_rows, n_k}});
  const auto keys = std::make_unique_for_overwrite<Real[]>(at(kv_heads_, n_k * d_));
  const auto values = std::make_unique_for_overwrite<Real[]>(at(kv_heads_, n_k * d_v_));
  for (Index kv = 0; kv < kv_heads_; ++kv)
    for (Index j = 0; j < n_k; ++j) {
      const Index u = kv * states_ / kv_heads_;  // any of its states
      Real* key = keys.get() + (kv * n_k + j) * d_;
      Real* value = values.get() + (kv * n_k + j) * d_v_;
      if (j < before) {
        std::copy_n(recent_keys_.data() + (u * kBlock + j) * d_, d_, key);
        std::copy_n(recent_values_.data() + (u * kBlock + j) * value_stride(), d_v_, value);
      } else {
        k.head(kv).read(j - before, d_, key);
        v.head(kv).read(j - before, d_v_, value);
      }
    }
  const StoredRows all_keys = contiguous(keys.get(), kv_heads_, n_k, d_),
                   all_values = contiguous(values.get(), kv_heads_, n_k, d_v_);

  std::vector<FarPairs> chunks;
  for (Index i = 0; i < n;) {
    const Index end = std::min(n, round_down(before + i, chunk()) + chunk() - before);
    chunks.push_back({{i, end}, round_down(before + i, kBlock)});
    i = end;
  }
  std::vector<CarriedState<Real>> states;
  for (Index u = 0; u < std::ssize(units_); ++u) {
    LowRankUnit& unit = units_[static_cast<std::size_t>(u)];
    unit.chunks = chunks;
    unit.entry_error = row_rounding<Real>(problem_, farthest() + n);
    states.push_back(carried(u));
  }
  const auto parts = [&](Workspace& workspace, auto&& use) {
    PackedKeys<Real> packed(problem, workspace);
    ExactAttention<Real> exact(problem, packed, workspace);
    PolynomialAttention<Real> polynomial(problem, units_, workspace, states, tokens_ >= kBlock);
    KernelBounds<Real> bounds(problem, workspace);
    use(packed, exact, polynomial, bounds);
  };
  const std::size_t bytes =
      Workspace::bytes_of([&](Workspace& workspace) { parts(workspace, [](auto&...) {}); });
  const auto memory = std::make_unique_for_overwrite<std::byte[]>(bytes);
  row_bounds_.resize(std::max(row_bounds_.size(), at(heads_, n)));
  Workspace workspace(std::span(memory.get(), bytes));
  parts(workspace, [&](auto& packed, auto& exact, auto& polynomial, auto& bounds) {
    packed.pack(problem, all_keys, all_values);
    exact.prepare(problem);
    bounds.measure(problem, all_keys, all_values);
    for (Index u = 0; u < states_; ++u) bounds.raise_largest_value(key_head(u), largest_value_[at(u, 1)]);
    polynomial.run(problem, packed, exact, q, out, nullptr, {&bounds, row_bounds_.data()});
    for (Index u = 0; u < states_; ++u) largest_value_[at(u, 1)] = bounds.largest_value(key_head(u));
  });
  for (Index row = 0; row < heads_ * n; ++row) row_bounds_[at(row, 1)] += approximation_;
  for (Index u = 0; u < states_ && radius_ < std::numeric_limits<double>::infinity(); ++u)
    for (Index j = 0; j < n; ++j)
      longest_key_[at(u, 1)] = std::max(longest_key_[at(u, 1)], row_length<Real>(k.head(key_head(u)), j, d_));
  tokens_ += n;
  bounded_rows_ = n;
  rounding_ = step_rounding();
  // What has filled no block is kept.
  Workspace share(std::span<std::byte>(scratch_).first(scratch_bytes_));
  const StepScratch s = step_scratch(share);
  const Index first = round_down(n_k, kBlock);
  for (Index u = 0; u < states_; ++u)
    for (Index j = std::max(first, before); j < n_k; ++j)
      append(u, key_head(u), j - first, positions[static_cast<std::size_t>(j)], all_keys, all_values, j,
             each_gate(u, j), s);
}

template <class Real>
SavedStateHeader RecurrentAttention<Real>::header() const noexcept {
  const auto word = [](auto x) { return static_cast<std::uint64_t>(x); };
  return {.bytes = word(state_bytes()),
          .real_bytes = sizeof(Real),
          .heads = word(heads_),
          .kv_heads = word(kv_heads_),
          .d = word(d_),
          .d_v = word(d_v_),
          .rank = word(rank()),
          .block = word(kBlock),
          .kernel = fingerprint(problem_.kernel.coefficients()),
          .rope = fingerprint(problem_.rotation.frequencies()),
          .scale = std::bit_cast<std::uint64_t>(problem_.scale),
          .states = word(states_),
          .normaliser = fingerprint(problem_.normaliser, problem_.gates.slopes),
          .radius = std::bit_cast<std::uint64_t>(radius_),
          .gated = gated_,
          .tokens = word(tokens_)};
}

template <class Real>
RunStatus RecurrentAttention<Real>::save(std::span<std::byte> to) const noexcept {
  const SavedStateHeader now = header();
  if (to.size() < now.bytes) return RunStatus::workspace_too_small;
  StateWriter writer(to.first(now.bytes));
  for_each_part(*this, [&](auto* data, Index kept, Index count) { writer.put(data, kept, count); });
  writer.finish(now);
  return RunStatus::ok;
}

template <class Real>
void RecurrentAttention<Real>::load(std::span<const std::byte> from) {
  StateReader reader(from, header());
  tokens_ = static_cast<Position>(reader.header().tokens);
  for_each_part(*this, [&](auto* data, Index, Index count) { reader.get(data, count); });
  gated_ = reader.header().gated != 0;
  for (Index u = 0; u < states_; ++u) {
    for (Index e = 0; e < rank() * channels(); ++e)
      rounded_[at(u, rounded_stride()) + static_cast<std::size_t>(e)] =
          static_cast<Real>(state_[at(u, rank() * channels()) + static_cast<std::size_t>(e)]);
    RecentGates& gates = recent_gates_[static_cast<std::size_t>(u)];
    for (Index slot = 0; slot < recent(); ++slot) gates.add(slot, gates.tokens()[slot]);
  }
  bounded_rows_ = 0;
  rounding_ = step_rounding();
}

}  // namespace fastrope::inline FASTROPE_TARGET

#include "fastrope/polynomial/recurrent_step.hpp"  // IWYU pragma: export
#include "fastrope/polynomial/recurrent_sums.hpp"  // IWYU pragma: export
