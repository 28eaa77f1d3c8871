// Recurrent attention: causal attention with a polynomial kernel, whose state has a fixed size.
//
//     A_ij = P(x_ij) for j <= i,   state [kv_heads, rank, d_v + 1] = sum_j c_alpha k_j^alpha [v_j, 1]
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
#include "fastrope/polynomial/rounding.hpp"
#include "fastrope/polynomial/saved_state.hpp"
#include "fastrope/polynomial/state.hpp"
#include "fastrope/problem/options.hpp"
#include "fastrope/problem/problem.hpp"
#include "fastrope/problem/run_status.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// One sequence's attention with options.kernel, token after token, with arithmetic in Real; the state and
/// sums over recent tokens are in double. A copy is another sequence with the same past, and shares nothing
/// that either changes: what one takes afterwards the other does not see.
template <class Real>
class RecurrentAttention {
 public:
  /// For q of `heads` and k, v of `kv_heads` heads. options: a polynomial kernel; causal mask; rope and scale
  /// as elsewhere; positions count tokens from 0. Throws Error, naming the values, where options do not allow
  /// a recurrence and where the rank exceeds kMaxRank.
  RecurrentAttention(Index heads, Index kv_heads, Index d, Index d_v, const Options& options);

  /// Tokens so far.
  Position tokens() const { return tokens_; }
  /// Those of them that are in the state, the first ones: a multiple of kKeyBlock<Real>. The rest are kept
  /// beside it.
  Position tokens_in_state() const { return tokens_ - recent(); }
  Index rank() const { return units_.empty() ? 0 : units_.front().monomials->rank(); }
  /// [kv_heads, rank, d_v + 1]: what is kept of the tokens in the state, the term alpha as in MonomialSet.
  std::span<const double> state() const { return state_; }
  /// [heads, tokens of the last prefill or step]: |out - exact| <= row_bounds()(h, i) max|V|, V all values so
  /// far of head h's key head, rounding to out's type included; may be infinite. Valid until the next call.
  MatrixView<const double> row_bounds() const {
    return {row_bounds_.data(), heads_, bounded_rows_, bounded_rows_};
  }

  /// Takes the next n tokens: q [heads, n, d], k [kv_heads, n, d], v [kv_heads, n, d_v]; out [heads, n, d_v]
  /// is what each attends to among all tokens so far. Allocates a workspace. Throws Error for tensors that
  /// clash; then nothing has changed. An exception of the executor leaves the state undefined. Cost: 4 n rank
  /// (d_v + 2) flops a head.
  template <TensorLike Q, RowsLike K, RowsLike V, TensorLike Out>
  void prefill(const Q& q, const K& k, const V& v, Out&& out) {
    prefill_rows(as_tensor(q), as_rows(k), as_rows(v), as_tensor(out));
  }

  /// The same for one token, n = 1. Allocates nothing and throws nothing; after RunStatus::executor_failed
  /// the token may be in the states of some heads. With rope, position_out_of_range once tokens() exceeds
  /// RopeFrequencies::max_position(). Cost: 2 rank (d_v + 2) flops a query head for what it reads, as many a
  /// key head, in blocks, for what it adds, and those of up to kKeyBlock recent tokens.
  template <TensorLike Q, RowsLike K, RowsLike V, TensorLike Out>
  RunStatus step(const Q& q, const K& k, const V& v, Out&& out) noexcept {
    return step_rows(as_tensor(q), as_rows(k), as_rows(v), as_tensor(out));
  }

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
  /// recurrence of the same heads, sizes, arithmetic, kernel, scale and rope; then nothing has changed. Of
  /// other vector lengths it may be.
  void load(std::span<const std::byte> from);

 private:
  static constexpr Index kBlock = kKeyBlock<Real>;
  /// Rows that a prompt is taken in at a time: their pairs are computed as such, so few; the state is read
  /// and written for each chunk, so not too few. Whole blocks.
  static constexpr Index kChunk = 768;
  static_assert(kChunk % kBlock == 0);
  /// Vectors of channels that a step reads at a time.
  static constexpr Index kTogether = 4;

  Index channels() const { return d_v_ + 1; }
  Index degrees() const { return problem_.kernel.degree() + 1; }
  Index recent() const { return static_cast<Index>(tokens_ % kBlock); }
  Index value_stride() const { return round_up(d_v_, simd::kLanes<Real>); }
  std::size_t at(Index kv, Index size) const { return static_cast<std::size_t>(kv * size); }

  static const Options& without_ranges(const Options& options);

  /// One worker's scratch of a step.
  struct StepScratch {
    Real* row;        // [d]
    Real* table;      // of the rotation
    Real* queries;    // [d, columns], turned and scaled, a column a query of the group
    Real* ancestors;  // [degree + 1, columns]
    Real* features;   // [kChain, columns]
    double* sums;     // [group, channels and padding]
    double* weights;  // [kBlock]
    Real* ones;       // [kBlock], a block's weights
    Real* values;     // [kBlock / group, stride] where keys share vectors
    double* squares;  // [degree + 1, d_v + 1]
    double* sizes;    // [degree + 1]
    FeatureScratch<Real> features_of_keys;
  };
  /// Queries of a group, padded.
  Index columns() const { return round_up(problem_.group(), simd::kLanes<Real>); }
  Index padded_channels() const { return round_up(channels(), kTogether * simd::kLanes<Real>); }
  StepScratch step_scratch(Workspace& workspace) const;

  /// Elements between the heads of the state's copy: rows may be read in whole vectors.
  Index rounded_stride() const { return rank() * channels() + padded_channels() - channels(); }
  CarriedState<Real> carried(Index kv);
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
    const Index kept = self.recent(), d = self.d_, d_v = self.d_v_, degrees = self.degrees();
    for (Index kv = 0; kv < self.kv_heads_; ++kv) {
      visit(self.recent_keys_.data() + kv * kBlock * d, kept * d, kBlock * d);
      for (Index c = 0; c < d; ++c) visit(self.recent_columns_.data() + (kv * d + c) * kBlock, kept, kBlock);
      for (Index slot = 0; slot < kBlock; ++slot)
        visit(self.recent_values_.data() + (kv * kBlock + slot) * self.value_stride(), slot < kept ? d_v : 0,
              d_v);
      visit(self.recent_sizes_.data() + kv * (kBlock + 1) * degrees, (kept + 1) * degrees,
            (kBlock + 1) * degrees);
    }
  }
  /// The header of a state saved now, without its checksum.
  SavedStateHeader header() const noexcept;
  /// How the sums of a step over recent tokens are computed.
  KernelRounding step_rounding() const;

  void prefill_rows(const StoredRows& q, const StoredRows& k, const StoredRows& v, const OutputRows& out);
  RunStatus step_rows(const StoredRows& q, const StoredRows& k, const StoredRows& v,
                      const OutputRows& out) noexcept;

  /// Token `slot` of the block, at position `position`, row j of k and v, joins the recent ones.
  void append(Index kv, Index slot, Position position, const StoredRows& k, const StoredRows& v, Index j,
              const StepScratch& s);
  /// All kBlock recent tokens of a head enter its state.
  void fold(Index kv, const StepScratch& s);
  void step_head(Index kv, const StoredRows& q, const StoredRows& k, const StoredRows& v,
                 const OutputRows& out, const StepScratch& s);
  void add_state(Index kv, const StepScratch& s) const;
  void add_recent(Index kv, Index h, Index count, const StepScratch& s) const;

  Index heads_, kv_heads_, d_, d_v_;
  Problem problem_;                      // of one token
  KernelRounding rounding_;              // of sums over recent tokens
  std::vector<LowRankUnit> units_ = {};  // one for each key head
  std::vector<double> state_ = {};
  std::vector<Real> rounded_ = {};          // [kv_heads, rounded_stride], the state's copy for rows
  std::vector<double> errors_ = {};         // [kv_heads, 3, degree + 1]
  std::vector<double> largest_value_ = {};  // [kv_heads]
  std::vector<Real> recent_keys_ = {};      // [kv_heads, kBlock, d], as they came
  std::vector<Real> recent_columns_ = {};   // [kv_heads, d, kBlock], turned
  std::vector<Real> recent_values_ = {};    // [kv_heads, kBlock, value_stride]
  std::vector<double> recent_sizes_ =
      {};  // [kv_heads, kBlock + 1, degree + 1]: of the tokens before each, |k|^p
  std::vector<double> row_bounds_ = {};
  std::size_t scratch_bytes_ = 0;
  std::vector<std::byte> scratch_ = {};  // of each worker
  Position tokens_ = 0;
  Index bounded_rows_ = 0;
};

template <class Real>
RecurrentAttention<Real>::RecurrentAttention(Index heads, Index kv_heads, Index d, Index d_v,
                                             const Options& options)
    : heads_(heads),
      kv_heads_(kv_heads),
      d_(d),
      d_v_(d_v),
      problem_(Shapes{heads, kv_heads, 1, 1, d, d_v}, without_ranges(options)),
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
  if (const double rank = rank_of(limits); rank > static_cast<double>(kMaxRank))
    detail::fail(rank_refusal(problem_.kernel.degree(), d, rank, d_v, sizeof(Real)));
  const auto monomials = std::make_shared<const MonomialSet>(limits);
  const auto coefficients = problem_.kernel.coefficients();
  for (Index kv = 0; heads > 0 && kv < kv_heads; ++kv)
    units_.push_back({.heads = {kv * problem_.group(), (kv + 1) * problem_.group()},
                      .projection = Projection::identity(d, 1),
                      .coefficients = {coefficients.begin(), coefficients.end()},
                      .monomials = monomials,
                      .chunks = {}});
  state_.resize(at(kv_heads, rank() * channels()));
  rounded_.resize(at(kv_heads, rounded_stride()));
  errors_.resize(at(kv_heads, 3 * degrees()));
  largest_value_.resize(at(kv_heads, 1));
  recent_keys_.resize(at(kv_heads, kBlock * d));
  recent_columns_.resize(at(kv_heads, kBlock * d));
  recent_values_.resize(at(kv_heads, kBlock * value_stride()));
  recent_sizes_.resize(at(kv_heads, (kBlock + 1) * degrees()));
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
          .sums = w.take<double>(problem_.group() * padded_channels()).data(),
          .weights = w.take<double>(kBlock).data(),
          .ones = w.take<Real>(kBlock).data(),
          .values = w.take<Real>(layout.group > 1 ? kBlock / layout.group * layout.stride : 0).data(),
          .squares = w.take<double>(degrees() * channels()).data(),
          .sizes = w.take<double>(degrees()).data(),
          .features_of_keys = {d_, d_, degrees() - 1, d_v_, w}};
}

template <class Real>
CarriedState<Real> RecurrentAttention<Real>::carried(Index kv) {
  return {.state = state_.data() + kv * rank() * channels(),
          .rounded = rounded_.data() + kv * rounded_stride(),
          .errors = errors_.data() + kv * 3 * degrees(),
          .largest_value = largest_value_.data() + kv};
}

/// The options themselves, which give no key ranges.
template <class Real>
const Options& RecurrentAttention<Real>::without_ranges(const Options& options) {
  if (options.key_ranges.given())
    detail::fail("a recurrence sees all tokens before: options give ", options.key_ranges.ranges.size(),
                 " key_ranges");
  return options;
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
void RecurrentAttention<Real>::prefill_rows(const StoredRows& q, const StoredRows& k, const StoredRows& v,
                                            const OutputRows& out) {
  const Shapes shapes = shapes_of(q, k, v);
  const Index n = shapes.n_q, before = recent();
  if (shapes != Shapes{heads_, kv_heads_, n, n, d_, d_v_})
    detail::fail("prefill: q, k and v are of ", shapes.heads, " and ", shapes.kv_heads, " heads, ",
                 shapes.n_q, " and ", shapes.n_k, " tokens, d ", shapes.d, " and d_v ", shapes.d_v,
                 "; this recurrence has ", heads_, " and ", kv_heads_, " heads, d ", d_, " and d_v ", d_v_);
  require_output(shapes, out);

  // The recent tokens come first, so that blocks begin where they do in steps.
  const Index n_k = before + n;
  std::vector<Position> positions(static_cast<std::size_t>(n_k));
  for (Index j = 0; j < n_k; ++j) positions[static_cast<std::size_t>(j)] = tokens_ - before + j;
  const Problem problem =
      problem_.with(n, n_k, {std::span(positions).last(static_cast<std::size_t>(n)), positions});
  std::vector<Real> keys(at(kv_heads_, n_k * d_)), values(at(kv_heads_, n_k * d_v_));
  for (Index kv = 0; kv < kv_heads_; ++kv)
    for (Index j = 0; j < n_k; ++j) {
      Real* key = keys.data() + (kv * n_k + j) * d_;
      Real* value = values.data() + (kv * n_k + j) * d_v_;
      if (j < before) {
        std::copy_n(recent_keys_.data() + (kv * kBlock + j) * d_, d_, key);
        std::copy_n(recent_values_.data() + (kv * kBlock + j) * value_stride(), d_v_, value);
      } else {
        k.head(kv).read(j - before, d_, key);
        v.head(kv).read(j - before, d_v_, value);
      }
    }
  const StoredRows all_keys = contiguous(keys.data(), kv_heads_, n_k, d_),
                   all_values = contiguous(values.data(), kv_heads_, n_k, d_v_);

  std::vector<FarPairs> chunks;
  for (Index i = 0; i < n;) {
    const Index end = std::min(n, round_down(before + i, kChunk) + kChunk - before);
    chunks.push_back({{i, end}, round_down(before + i, kBlock)});
    i = end;
  }
  std::vector<CarriedState<Real>> states;
  for (Index kv = 0; kv < std::ssize(units_); ++kv) {
    LowRankUnit& unit = units_[static_cast<std::size_t>(kv)];
    unit.chunks = chunks;
    unit.entry_error = row_rounding<Real>(problem_, farthest() + n);
    states.push_back(carried(kv));
  }
  const auto parts = [&](Workspace& workspace, auto&& use) {
    PackedKeys<Real> packed(problem, workspace);
    ExactAttention<Real> exact(problem, packed, workspace);
    PolynomialAttention<Real> polynomial(problem, units_, workspace, states, tokens_ >= kBlock);
    KernelBounds<Real> bounds(problem, workspace);
    use(packed, exact, polynomial, bounds);
  };
  std::vector<std::byte> memory(
      Workspace::bytes_of([&](Workspace& workspace) { parts(workspace, [](auto&...) {}); }));
  row_bounds_.resize(std::max(row_bounds_.size(), at(heads_, n)));
  Workspace workspace(memory);
  parts(workspace, [&](auto& packed, auto& exact, auto& polynomial, auto& bounds) {
    packed.pack(problem, all_keys, all_values);
    exact.prepare(problem);
    bounds.measure(problem, all_keys, all_values);
    for (Index kv = 0; kv < kv_heads_; ++kv) bounds.raise_largest_value(kv, largest_value_[at(kv, 1)]);
    polynomial.run(problem, packed, exact, q, out, nullptr, {&bounds, row_bounds_.data()});
    for (Index kv = 0; kv < kv_heads_; ++kv) largest_value_[at(kv, 1)] = bounds.largest_value(kv);
  });
  tokens_ += n;
  bounded_rows_ = n;
  rounding_ = step_rounding();
  // What has filled no block is kept.
  Workspace share(std::span<std::byte>(scratch_).first(scratch_bytes_));
  const StepScratch s = step_scratch(share);
  const Index first = round_down(n_k, kBlock);
  for (Index kv = 0; kv < kv_heads_; ++kv)
    for (Index j = std::max(first, before); j < n_k; ++j)
      append(kv, j - first, positions[static_cast<std::size_t>(j)], all_keys, all_values, j, s);
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
  for (Index kv = 0; kv < kv_heads_; ++kv)
    for (Index e = 0; e < rank() * channels(); ++e)
      rounded_[at(kv, rounded_stride()) + static_cast<std::size_t>(e)] =
          static_cast<Real>(state_[at(kv, rank() * channels()) + static_cast<std::size_t>(e)]);
  bounded_rows_ = 0;
  rounding_ = step_rounding();
}

template <class Real>
RunStatus RecurrentAttention<Real>::step_rows(const StoredRows& q, const StoredRows& k, const StoredRows& v,
                                              const OutputRows& out) noexcept {
  if (!fits(problem_.shapes, q, k, v, out)) return RunStatus::shape_mismatch;
  if (problem_.rotates() && tokens_ > problem_.rotation.frequencies().max_position())
    return RunStatus::position_out_of_range;
  bounded_rows_ = 1;
  if (recent() == 0) rounding_ = step_rounding();
  try {
    problem_.executor.parallel_for(static_cast<Index>(units_.size()), [&](Index kv, Index worker) {
      Workspace share(std::span<std::byte>(scratch_).subspan(
          static_cast<std::size_t>(worker) * scratch_bytes_, scratch_bytes_));
      step_head(kv, q, k, v, out, step_scratch(share));
    });
  } catch (...) {
    return RunStatus::executor_failed;
  }
  ++tokens_;
  return RunStatus::ok;
}

template <class Real>
void RecurrentAttention<Real>::append(Index kv, Index slot, Position position, const StoredRows& k,
                                      const StoredRows& v, Index j, const StepScratch& s) {
  const StoredHead key = k.head(kv), value = v.head(kv);
  Real* raw = recent_keys_.data() + (kv * kBlock + slot) * d_;
  Real* column = recent_columns_.data() + kv * kBlock * d_ + slot;
  Real* values = recent_values_.data() + (kv * kBlock + slot) * value_stride();
  double* sizes = recent_sizes_.data() + (kv * (kBlock + 1) + slot) * degrees();
  key.read(j, d_, raw);
  std::copy_n(raw, d_, s.row);
  problem_.rotation.fill(
      {0, 1}, [&](Index, Index) { return position; }, s.table);
  problem_.rotation.apply(s.table, s.row);
  for (Index c = 0; c < d_; ++c) column[c * kBlock] = s.row[c];
  value.read(j, d_v_, values);
  double power = 1, &largest = largest_value_[at(kv, 1)];
  const double length = row_length<Real>(key, j, d_);
  for (Index p = 0; p < degrees(); ++p, power *= length)
    sizes[degrees() + p] = (slot > 0 ? sizes[p] : 0) + power;
  largest = or_larger(largest, value, j, d_v_);
  if (std::isnan(largest)) largest = std::numeric_limits<double>::infinity();
}

template <class Real>
void RecurrentAttention<Real>::fold(Index kv, const StepScratch& s) {
  const LowRankUnit& unit = units_[static_cast<std::size_t>(kv)];
  const CarriedState<Real> to = carried(kv);
  const MonomialSet& set = *unit.monomials;
  const ValueLayout<Real> layout(d_v_);
  Real* y = recent_columns_.data() + kv * kBlock * d_;
  const Real* values = recent_values_.data() + kv * kBlock * value_stride();
  std::fill_n(s.ones, kBlock, Real{1});
  if (layout.group > 1) {
    std::fill_n(s.values, kBlock / layout.group * layout.stride, Real{0});
    for (Index j = 0; j < kBlock; ++j)
      for (Index c = 0; c < d_v_; ++c)
        s.values[j / layout.group * layout.stride + c * layout.group + j % layout.group] =
            values[j * value_stride() + c];
  }
  const KeyBlocks<Real> keys{.count = kBlock,
                             .variables = d_,
                             .d_v = d_v_,
                             .layout = layout,
                             .y = y,
                             .weight = s.ones,
                             .values = layout.group > 1 ? s.values : values};
  const std::span<const double> coefficients = unit.coefficients;
  add_keys(
      set, coefficients, keys, {0, 1}, {0, set.rank()}, s.features_of_keys, [](Index) { return 1.0; },
      to.state);
  round_state(set, channels(), {0, set.rank()}, to.state, to.rounded, s.squares);

  double *errors = to.errors, *held = errors + degrees(), *spill = held + degrees();
  key_sizes(set.degree(), d_, y, s.ones, s.sizes);
  for (Index p = 0; p < degrees(); ++p) {
    held[p] += s.sizes[p];
    spill[p] += 6 * kUnitRoundoff<double> * std::abs(coefficients[static_cast<std::size_t>(p)]) * held[p];
  }
  state_errors<Real>(coefficients, set.rank(), channels(), *to.largest_value,
                     row_rounding<Real>(problem_, farthest()), 0, held, s.squares, spill, errors);
}

/// s.sums = the queries' sums over the state: chains of kChain terms in Real, added in double.
template <class Real>
void RecurrentAttention<Real>::add_state(Index kv, const StepScratch& s) const {
  using namespace simd;
  constexpr Index kStep = kTogether * kLanes<Real>;
  const Index group = problem_.group(), width = columns(), padded = padded_channels();
  const double* constant = state_.data() + kv * rank() * channels();
  for (Index h = 0; h < group; ++h) std::copy_n(constant, channels(), s.sums + h * padded);
  std::fill_n(s.ancestors, width, Real{1});
  const std::span<const Monomial> terms = units_[static_cast<std::size_t>(kv)].monomials->terms();
  for (Index first = 1; first < rank(); first += kChain) {
    const Index count = std::min(kChain, rank() - first);
    for (Index t = 0; t < count; ++t) {
      const Monomial& term = terms[static_cast<std::size_t>(first + t)];
      Real* feature = s.ancestors + term.degree * width;
      for (Index i = 0; i < width; ++i)
        feature[i] = feature[i - width] * s.queries[term.variable * width + i];
      std::copy_n(feature, width, s.features + t * width);
    }
    const Real* rows = rounded_.data() + kv * rounded_stride() + first * channels();
    for (Index h = 0; h < group; ++h)
      for (Index c = 0; c < padded; c += kStep) {
        Vec<Real> sum[kTogether];
        for (auto& x : sum) x = zero<Real>();
        for (Index t = 0; t < count; ++t) {
          const Vec<Real> feature = set(s.features[t * width + h]);
          for (Index m = 0; m < kTogether; ++m)
            sum[m] = fma(feature, simd::load(rows + t * channels() + c + m * kLanes<Real>), sum[m]);
        }
        Real part[kStep];
        for (Index m = 0; m < kTogether; ++m) store<Real>(sum[m], part + m * kLanes<Real>);
        for (Index m = 0; m < kStep; ++m) s.sums[h * padded + c + m] += static_cast<double>(part[m]);
      }
  }
}

/// s.sums of query h of the group += those over the first `count` recent tokens, in double.
template <class Real>
void RecurrentAttention<Real>::add_recent(Index kv, Index h, Index count, const StepScratch& s) const {
  using namespace simd;
  constexpr Index kStep = kTogether * kLanes<double>;
  static_assert(kBlock % kStep == 0);
  const Real* keys = recent_columns_.data() + kv * kBlock * d_;
  for (Index j = 0; j < count; j += kStep) {
    Vec<double> x[kTogether];
    for (auto& sum : x) sum = zero<double>();
    for (Index c = 0; c < d_; ++c) {
      const Vec<double> query = set(static_cast<double>(s.queries[c * columns() + h]));
      for (Index m = 0; m < kTogether; ++m)
        x[m] = fma(query, load_as<double>(keys + c * kBlock + j + m * kLanes<double>), x[m]);
    }
    for (Index m = 0; m < kTogether; ++m) store<double>(x[m], s.weights + j + m * kLanes<double>);
  }
  const Real* values = recent_values_.data() + kv * kBlock * value_stride();
  double* sums = s.sums + h * padded_channels();
  double total = 0;
  for (Index j = 0; j < count; ++j, values += value_stride()) {
    const double weight = problem_.kernel(s.weights[j]);
    total += weight;
    const Vec<double> w = set(weight);
    for (Index c = 0; c < value_stride(); c += kLanes<double>)
      store<double>(fma(w, load_as<double>(values + c), simd::load(sums + c)), sums + c);
  }
  sums[d_v_] += total;
}

template <class Real>
void RecurrentAttention<Real>::step_head(Index kv, const StoredRows& q, const StoredRows& k,
                                         const StoredRows& v, const OutputRows& out, const StepScratch& s) {
  const Index group = problem_.group(), width = columns(), padded = padded_channels(), count = recent() + 1;
  append(kv, recent(), tokens_, k, v, 0, s);
  std::fill_n(s.queries, d_ * width, Real{0});
  for (Index h = 0; h < group; ++h) {
    q.head(kv * group + h).read(0, d_, s.row);
    problem_.rotation.apply(s.table, s.row);
    for (Index c = 0; c < d_; ++c) s.queries[c * width + h] = s.row[c] * static_cast<Real>(problem_.scale);
  }
  const bool far = tokens_in_state() > 0;
  std::fill_n(s.sums, group * padded, 0.0);
  if (far) add_state(kv, s);

  const LowRankUnit& unit = units_[static_cast<std::size_t>(kv)];
  const CarriedState<Real> state = carried(kv);
  const double* sizes = recent_sizes_.data() + (kv * (kBlock + 1) + count) * degrees();
  const double largest_value = *state.largest_value;
  for (Index h = 0; h < group; ++h) {
    add_recent(kv, h, count, s);
    const double* sums = s.sums + h * padded;
    const double sum = sums[d_v_];
    const double inverse =
        std::abs(sum) < static_cast<double>(std::numeric_limits<Real>::min()) ? 0 : 1 / sum;
    double largest = 0;
    for (Index c = 0; c < d_v_; ++c) largest = or_larger(largest, std::abs(sums[c] * inverse));
    out.write<Real>(kv * group + h, 0, sums, inverse, d_v_);
    const StoredHead q_head = q.head(kv * group + h);
    const double query = query_factor(problem_) * row_length<Real>(q_head, 0, d_);
    double error = 0;
    if (far) {
      const double norm = query * (1 + rounding_.entry());  // of the rounded row
      for (Index p = degrees() - 1; p >= 0; --p) error = error * norm + state.errors[p];
      error +=
          underflow_error<Real>(unit.coefficients, rank(), d_, largest_value, state.errors + degrees(), norm);
    }
    error += rounding_.error(query, sizes, largest_value, error, sum);
    row_bounds_[at(kv * group + h, 1)] = row_bound<Real>(error, sum, largest, largest_value, *out.type);
  }
  if (count == kBlock) fold(kv, s);
}

}  // namespace fastrope::inline FASTROPE_TARGET
