// Problem: one call, checked and resolved. Every path computes from this and never looks at Options.
#pragma once

#include <algorithm>
#include <cmath>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "fastrope/core/error.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/row_overlap.hpp"
#include "fastrope/core/shared_array.hpp"
#include "fastrope/core/stored_rows.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/tensor_view.hpp"
#include "fastrope/core/workspace.hpp"
#include "fastrope/position/lag_grid.hpp"
#include "fastrope/position/rotation.hpp"
#include "fastrope/position/section_positions.hpp"
#include "fastrope/problem/dense_rows.hpp"
#include "fastrope/problem/gates.hpp"
#include "fastrope/problem/options.hpp"
#include "fastrope/problem/shapes.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// A valid request with every default filled in.
struct Problem {
  Shapes shapes;
  LagGrid grid;
  Rotation rotation;   ///< of no pairs where q and k are used as they are
  Index sections = 0;  ///< of the rope, for which positions may be given
  SectionPositions query_sections, key_sections;
  LagBias bias;  ///< none with a polynomial kernel
  Gates gates;
  std::optional<RelativeWeights> weights;
  double scale = 1;
  Kernel kernel;
  Normaliser normaliser;
  double softcap = 0;
  SharedArray<double> sinks;  ///< [heads] or empty
  DenseRows dense_bias;
  TensorView<const bool> dense_mask;
  Executor executor;

  /// Throws Error, naming the values, for shapes and options that clash.
  Problem(const Shapes& shapes, const Options& options);

  /// The same request for a sequence of other lengths, positions, key ranges and gates; dense bias and mask,
  /// where there are any, are the caller's to replace. Throws Error, naming the values, for positions and
  /// ranges that clash and lags that the bias or weights lack.
  Problem with(Index n_q, Index n_k, const SequenceOptions& own) const;
  /// Lets runs read positions and key ranges from the caller's memory, as they are then, in the place of
  /// those that were checked, and so many of them as there are queries and keys. own: as the problem was made
  /// with, but for dense bias and mask, with which nothing changes.
  void read_when_run(const SequenceOptions& own);
  /// Whether runs read them.
  bool reads_places() const { return reads_places_ && !is_dense(); }
  /// Whether sized() may be asked for: nothing was given for each pair, nor for each query or key unless it
  /// is read when run.
  bool takes_any_sizes() const { return (default_places_ || reads_places_) && !is_dense(); }
  /// The shapes of a run of so many queries and keys: its own, but for the sizes where any are taken, those
  /// beyond its own cut.
  Shapes sized_shapes(Index n_q, Index n_k) const {
    Shapes s = shapes;
    if (!takes_any_sizes()) return s;
    s.n_q = std::clamp<Index>(n_q, 0, s.n_q);
    s.n_k = std::clamp<Index>(n_k, 0, s.n_k);
    return s;
  }
  /// The same request for fewer queries and keys, 0 <= n_q <= shapes.n_q and 0 <= n_k <= shapes.n_k, at their
  /// default positions, whose lags are among those that were checked; or at those that are read, in the
  /// workspace, which must outlive it. Allocates nothing. Requires takes_any_sizes(). Throws Error for what
  /// was read as the constructor does.
  Problem sized(Index n_q, Index n_k, Workspace& workspace) const;
  /// Takes what that takes.
  void take_places(Index n_q, Index n_k, Workspace& workspace) const {
    if (reads_places()) LagGrid::take(n_q, n_k, given_places(), workspace);
  }
  /// What that takes at most.
  std::size_t places_bytes() const {
    return Workspace::bytes_of([&](Workspace& w) { take_places(shapes.n_q, shapes.n_k, w); });
  }
  /// The same at default positions, or where positions are read, at such as take the most memory to run.
  Problem widest(Index n_q, Index n_k) const;
  /// Replaces dense bias and mask. Throws Error, naming the values, where they clash with the rest.
  void set_dense(const DenseBias& of_pairs, const TensorView<const bool>& mask);

  /// The key/value head that query head h reads.
  Index kv_head(Index h) const { return h / group(); }
  /// Query heads of each key/value head.
  Index group() const { return shapes.kv_heads == 0 ? 1 : shapes.heads / shapes.kv_heads; }
  /// Whether scores depend on more than content and lag.
  bool is_dense() const { return dense_bias.data != nullptr || dense_mask.data != nullptr; }
  bool rotates() const { return rotation.pairs() > 0; }

  /// What a section's pairs of query i, and of the j-th key in ascending order, turn by.
  Position query_turn(Index i, Index section) const {
    return query_sections.empty() ? grid.query_position(i) : query_sections(section, i);
  }
  Position key_turn(Index j, Index section) const {
    return key_sections.empty() ? grid.key_position(j) : key_sections(section, grid.source(j));
  }
  /// Whether all sections turn by the token's position, so that a logit depends on one lag.
  bool turns_by_lag() const { return query_sections.empty() && key_sections.empty(); }
  /// max |position| that a row is turned by; 0 where none is.
  Position farthest_turn() const;

 private:
  bool default_places_ = false;  // no positions or key ranges were given
  bool reads_places_ = false;    // those in places_
  SequenceOptions places_ = {};

  Problem of_sizes(Index n_q, Index n_k, LagGrid of_run) const {
    Problem other = *this;
    other.shapes.n_q = n_q;
    other.shapes.n_k = n_k;
    other.grid = std::move(of_run);
    return other;
  }
  GivenPlaces given_places() const {
    return {places_.queries, places_.keys, places_.key_ranges, shapes.heads};
  }
  void require_dense() const;
  void require_positions() const;
  void require_lags() const;
  void require_no_exponent() const;
  void require_gates() const;
};

/// The problem of a run of a plan for another: itself, not copied, or one of fewer queries and keys.
/// Allocates nothing. The other must outlive it.
class SizedProblem {
 public:
  /// Requires problem.sized(n_q, n_k) or its own sizes. The workspace must outlive it.
  SizedProblem(const Problem& problem, Index n_q, Index n_k, Workspace& workspace) : whole_(&problem) {
    if (n_q != problem.shapes.n_q || n_k != problem.shapes.n_k || problem.reads_places())
      sized_.emplace(problem.sized(n_q, n_k, workspace));
  }

  const Problem& get() const { return sized_ ? *sized_ : *whole_; }

 private:
  const Problem* whole_;
  std::optional<Problem> sized_ = {};
};

namespace detail {

/// Throws Error where a size is negative, or the elements of a tensor are more than any memory holds: counts
/// of elements, bytes and scratch are products of these, and must not overflow.
inline void require_size(const char* name, Index heads, Index rows, Index cols) {
  constexpr Index kMost = Index{1} << 48;
  if (heads < 0 || rows < 0 || cols < 0)
    fail(name, " has a negative size: [", heads, ", ", rows, ", ", cols, "]");
  if (std::max({heads, rows, cols, saturating_product(heads, saturating_product(rows, cols))}) > kMost)
    fail(name, " is [", heads, ", ", rows, ", ", cols,
         "], more than the 2^48 elements that a tensor may have");
}

/// s itself, once that holds for all tensors.
inline const Shapes& require_sizes(const Shapes& s) {
  require_size("q", s.heads, s.n_q, s.d);
  require_size("k", s.kv_heads, s.n_k, s.d);
  require_size("v", s.kv_heads, s.n_k, s.d_v);
  require_size("out", s.heads, s.n_q, s.d_v);
  return s;
}

}  // namespace detail

/// The shapes of one call's tensors. Throws Error, naming the values, where they clash or a pointer is null.
inline Shapes shapes_of(const StoredRows& q, const StoredRows& k, const StoredRows& v) {
  const auto check = [](const char* name, const StoredRows& t) {
    detail::require_size(name, t.heads, t.rows, t.cols);
    if (t.data == nullptr && t.heads * t.rows * t.cols != 0)
      detail::fail(name, " is a null pointer with size [", t.heads, ", ", t.rows, ", ", t.cols, "]");
    t.require_pages(name);
    t.require_blocks(name);
    t.require_scales(name);
  };
  check("q", q);
  check("k", k);
  check("v", v);
  if (k.cols != q.cols) detail::fail("k has d = ", k.cols, " columns, q has d = ", q.cols);
  if (v.rows != k.rows) detail::fail("v has n_k = ", v.rows, " rows, k has n_k = ", k.rows);
  if (v.heads != k.heads) detail::fail("v has ", v.heads, " heads, k has ", k.heads);
  return {q.heads, k.heads, q.rows, k.rows, q.cols, v.cols};
}

/// Throws Error unless out is [heads, n_q, d_v], not null, and no two of its rows share memory.
template <class Out>
void require_output(const Shapes& s, const Out& out) {
  if (out.heads != s.heads || out.rows != s.n_q || out.cols != s.d_v)
    detail::fail("out is [", out.heads, ", ", out.rows, ", ", out.cols, "], the result is [heads = ", s.heads,
                 ", n_q = ", s.n_q, ", d_v = ", s.d_v, "]");
  if (s.empty()) return;
  if (out.data == nullptr)
    detail::fail("out is a null pointer with size [", s.heads, ", ", s.n_q, ", ", s.d_v, "]");
  detail::require_separate_rows("out", out);
}

/// Throws Error unless lse is [heads, n_q], not null, and no two of its rows share memory.
template <class Real>
void require_lse(const Shapes& s, const MatrixView<Real>& lse) {
  if (lse.rows != s.heads || lse.cols != s.n_q || (lse.data == nullptr && lse.rows * lse.cols != 0))
    detail::fail("lse is [", lse.rows, ", ", lse.cols, lse.data == nullptr ? "] and null" : "]",
                 ", the result is [heads = ", s.heads, ", n_q = ", s.n_q, "]");
  detail::require_separate_rows("lse", lse);
}

/// Whether these are the tensors of a call of shapes s. lse may be without data: it is not wanted then.
template <class Out, class Real = double>
bool fits(const Shapes& s, const StoredRows& q, const StoredRows& k, const StoredRows& v, const Out& out,
          const MatrixView<Real>& lse = {}) noexcept {
  try {
    require_output(s, out);
    if (lse.data != nullptr) require_lse(s, lse);
    return shapes_of(q, k, v) == s;
  } catch (...) {
    return false;
  }
}

namespace detail {

/// Whether the bias is what a polynomial kernel takes as gates.
inline bool is_gate(const Options& options) {
  return !options.kernel.is_softmax() && !options.bias.empty() && !options.bias.is_table();
}
inline LagBias bias_of(const Options& options) { return is_gate(options) ? LagBias::none() : options.bias; }
inline Gates gates_of(const Options& options) {
  return {options.log_gates, options.log_input_gates,
          is_gate(options) ? options.bias.shared_slopes() : SharedArray<double>()};
}

inline Rotation resolve_rotation(const Shapes& s, const Options& options) {
  if (!options.rope) return Rotation{};
  RopeFrequencies frequencies = rope_frequencies(*options.rope, s.d);
  return options.rope_already_applied ? Rotation{} : Rotation{std::move(frequencies)};
}

}  // namespace detail

inline Problem::Problem(const Shapes& s, const Options& options)
    : shapes(detail::require_sizes(s)),
      grid(s.n_q, s.n_k, options.query_positions, options.key_positions, options.mask, options.key_ranges,
           s.heads),
      rotation(detail::resolve_rotation(s, options)),
      sections(options.rope ? std::ssize(options.rope->sections) : 0),
      query_sections("query_section_positions", options.query_section_positions, sections, s.n_q),
      key_sections("key_section_positions", options.key_section_positions, sections, s.n_k),
      bias(detail::bias_of(options)),
      gates(detail::gates_of(options)),
      weights(options.weights),
      scale(options.scale.value_or(s.d > 0 ? 1 / std::sqrt(static_cast<double>(s.d)) : 1)),
      kernel(options.kernel),
      normaliser(options.normaliser),
      softcap(options.softcap),
      sinks(std::vector<double>(options.sinks.begin(), options.sinks.end())),
      dense_bias(options.dense_bias),
      dense_mask(options.dense_mask),
      executor(options.executor) {
  if (s.heads > 0 && (s.kv_heads == 0 || s.heads % s.kv_heads != 0))
    detail::fail("q has ", s.heads, " heads, which is not a multiple of k's ", s.kv_heads);
  // In float, factors beyond this leave no room for what they multiply.
  constexpr double kLargest = 1e30;
  if (!(std::abs(scale) <= kLargest)) detail::fail("scale must be within +-", kLargest, ", got ", scale);
  if (!(softcap >= 0) || !(softcap <= kLargest) || (softcap > 0 && std::abs(scale) / softcap > kLargest))
    detail::fail("softcap must be 0 or from |scale| / ", kLargest, " to ", kLargest, ", got ", softcap,
                 " with scale ", scale);
  if (weights && options.rope)
    detail::fail(
        "options.weights and options.rope are both set: RelativeWeights::rope() writes rope as weights");
  if (!sinks.empty() && static_cast<Index>(sinks.size()) != s.heads)
    detail::fail("sinks has ", sinks.size(), " entries for ", s.heads, " query heads");
  for (double sink : sinks)
    if (std::isnan(sink) || sink == INFINITY)
      detail::fail("a sink's logit must be below infinity, got ", sink);
  require_dense();
  if (!kernel.is_softmax()) require_no_exponent();
  require_gates();
  require_positions();
  require_lags();
  default_places_ = options.query_positions.empty() && options.key_positions.empty() && turns_by_lag() &&
                    !options.key_ranges.given();
}

inline void Problem::require_dense() const {
  const auto require = [&s = shapes](const char* name, const auto& dense) {
    if (dense.data == nullptr && dense.heads != 0 && dense.rows != 0 && dense.cols != 0)
      detail::fail(name, " is a null pointer with size [", dense.heads, ", ", dense.rows, ", ", dense.cols,
                   "]: without one, it has none");
    if (dense.data != nullptr && (dense.heads != s.heads || dense.rows != s.n_q || dense.cols != s.n_k))
      detail::fail(name, " is [", dense.heads, ", ", dense.rows, ", ", dense.cols, "], the call is [",
                   s.heads, ", ", s.n_q, ", ", s.n_k, "] (repeat rows or heads by a stride of 0)");
  };
  require("dense_bias", dense_bias);
  require("dense_mask", dense_mask);
}

inline Position Problem::farthest_turn() const {
  if (!rotates()) return 0;
  const Position of_sections = std::max(query_sections.farthest(), key_sections.farthest());
  // The tokens' own, unless no row turns by them.
  return query_sections.empty() || key_sections.empty() ? std::max(of_sections, grid.farthest_position())
                                                        : of_sections;
}

inline void Problem::require_positions() const {
  if (!rotates()) return;
  const Position farthest = farthest_turn(), most = rotation.frequencies().max_position();
  if (farthest > most)
    detail::fail("rope: a query or a key is ", farthest, " positions from 0, phases are held up to ", most,
                 " for angles of ", rotation.frequencies().largest_theta(), " a position");
}

inline void Problem::require_lags() const {
  if (bias.empty() && !weights) return;
  const LagGrid::Lags lags = grid.allowed_lags();
  bias.require_covers(shapes.heads, lags.first, lags.last);
  if (weights) weights->require_covers(shapes.d, lags.first, lags.last);
}

inline void Problem::require_no_exponent() const {
  const auto refuse = [&](bool given, const auto&... option) {
    if (given)
      detail::fail(option..., " changes an exponent, and options.kernel, a polynomial of degree ",
                   kernel.degree(), ", has none");
  };
  refuse(softcap > 0, "softcap ", softcap);
  refuse(!sinks.empty(), "sinks of ", sinks.size(), " entries");
  refuse(!bias.empty(), "a lag bias that is not ALiBi");
  refuse(dense_bias.data != nullptr, "dense_bias [", dense_bias.heads, ", ", dense_bias.rows, ", ",
         dense_bias.cols, "]");
}

inline void Problem::require_gates() const {
  if (kernel.is_softmax() && !normaliser.is_plain_sum())
    detail::fail("softmax divides by the sum of its weights alone: options.normaliser, of constant ",
                 normaliser.constant(), ", is for polynomial kernels (a sink adds to softmax's sum)");
  if (!gates.given()) return;
  gates.require_shape(shapes.heads, shapes.kv_heads, shapes.n_k);
  if (const std::size_t slopes = gates.slopes.size(); slopes > 1 && std::ssize(gates.slopes) != shapes.heads)
    detail::fail("the lag bias is for ", slopes, " heads, q has ", shapes.heads);
  for (const double slope : gates.slopes)
    if (slope < 0)
      detail::fail("ALiBi is a constant gate with a polynomial kernel: its slopes are at least 0, got ",
                   slope);
  if (grid.mask().first < 0)
    detail::fail("gates are between a query and the keys before it: options.mask allows the lags ",
                 grid.mask().first, " to ", grid.mask().last, ", not only those >= 0 (Mask::causal())");
  if (grid.has_ranges())
    detail::fail("gates do not go with key_ranges: a gate of -infinity lets a document begin");
  if (is_dense()) detail::fail("gates do not go with dense_bias and dense_mask");
  if (!bias.empty()) detail::fail("gates do not go with a lag bias: a constant gate is ALiBi");
}

inline void Problem::read_when_run(const SequenceOptions& own) {
  places_ = own;
  reads_places_ = !default_places_;
}

inline Problem Problem::sized(Index n_q, Index n_k, Workspace& workspace) const {
  if (!reads_places()) return of_sizes(n_q, n_k, LagGrid(n_q, n_k, {}, {}, grid.mask()));
  const auto first_of = [](MatrixView<const Position> given, Index n) {
    return MatrixView<const Position>(given.data, given.rows, given.data == nullptr ? 0 : n,
                                      given.row_stride);
  };
  Problem run = of_sizes(n_q, n_k, LagGrid(n_q, n_k, given_places(), shapes.n_q, grid.mask(), workspace));
  run.query_sections = SectionPositions::view_of("query_section_positions",
                                                 first_of(places_.query_sections, n_q), sections, n_q);
  run.key_sections =
      SectionPositions::view_of("key_section_positions", first_of(places_.key_sections, n_k), sections, n_k);
  run.require_positions();
  run.require_lags();
  return run;
}

inline Problem Problem::widest(Index n_q, Index n_k) const {
  if (!reads_places()) return of_sizes(n_q, n_k, LagGrid(n_q, n_k, {}, {}, grid.mask()));
  const bool default_positions = places_.queries.empty() && places_.keys.empty();
  return of_sizes(n_q, n_k,
                  default_positions ? LagGrid(n_q, n_k, {}, {}, Mask::full()) : LagGrid::widest(n_q, n_k));
}

inline Problem Problem::with(Index n_q, Index n_k, const SequenceOptions& own) const {
  Problem other = *this;
  other.shapes.n_q = n_q;
  other.shapes.n_k = n_k;
  detail::require_sizes(other.shapes);
  other.grid = LagGrid(n_q, n_k, own.queries, own.keys, grid.mask(), own.key_ranges, shapes.heads);
  other.gates.log = own.log_gates;
  other.gates.log_input = own.log_input_gates;
  other.require_gates();
  other.query_sections = {"query_sections", own.query_sections, sections, n_q};
  other.key_sections = {"key_sections", own.key_sections, sections, n_k};
  other.require_positions();
  other.require_lags();
  other.default_places_ =
      own.queries.empty() && own.keys.empty() && other.turns_by_lag() && !own.key_ranges.given();
  other.reads_places_ = false;
  return other;
}

inline void Problem::set_dense(const DenseBias& of_pairs, const TensorView<const bool>& mask) {
  dense_bias = of_pairs;
  dense_mask = mask;
  require_dense();
  if (!kernel.is_softmax()) require_no_exponent();
  require_gates();
}

}  // namespace fastrope::inline FASTROPE_TARGET
