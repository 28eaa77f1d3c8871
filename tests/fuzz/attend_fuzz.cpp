// Any bytes make a call of attend(): shapes, strides, options and values, with subnormal, huge and non-finite
// ones among them. It is refused with an Error, or every output is as far from the double-precision reference
// as the report promises, and the report keeps to the tolerance. Plans and batches of larger capacity give
// the exact path's bits, and its sums.
//
// libFuzzer's interface; replay.cpp runs it where there is no libFuzzer.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fastrope/fastrope.hpp>
#include <limits>
#include <span>
#include <sstream>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "bytes.hpp"
#include "support/attention_case.hpp"
#include "support/executors.hpp"
#include "support/instances.hpp"
#include "support/scaled_cache.hpp"
#include "support/stored_cache.hpp"

namespace {

using namespace fastrope;
using namespace fastrope_test;

Rope rope_from(Bytes& bytes, Index d) {
  Rope rope{.base = bytes.number({10000.0, 500000.0, 2.0}),
            .pairing = bytes.one_in(2) ? RopePairing::half_split : RopePairing::interleaved};
  if (bytes.one_in(3)) rope.rotary_dim = bytes.integer(-1, d + 1);
  const double factor = bytes.number({1.0, 2.0, 8.0});
  switch (bytes.integer(0, 7)) {
    case 0:
      rope.scaling = LinearScaling{factor};
      break;
    case 1:
      rope.scaling = NtkScaling{factor};
      break;
    case 2:
      rope.scaling = YarnScaling{.factor = factor, .original_context = bytes.number({4096.0, 64.0})};
      break;
    case 3:
      rope.scaling = Llama3Scaling{.factor = factor, .original_context = bytes.number({8192.0, 64.0})};
      break;
    case 4:
      rope.scaling = FactorScaling{
          std::vector<double>(static_cast<std::size_t>(bytes.integer(0, d / 2 + 1)), factor), factor};
      break;
    default:
      break;
  }
  return rope;
}

/// Returns a bound on its size.
double add_bias(Bytes& bytes, AttentionCase& c) {
  double largest = 0;
  const auto number = [&](std::initializer_list<double> likely) {
    const double x = bytes.number(likely);
    largest = std::max(largest, std::isnan(x) ? INFINITY : std::abs(x));
    return x;
  };
  const Index heads = c.shapes.heads;
  switch (bytes.integer(0, 5)) {
    case 0: {
      std::vector<double> slopes;
      for (Index h = 0; h < (bytes.one_in(2) ? 1 : heads); ++h)
        slopes.push_back(number({0.0, 0.5, 0.01, -0.1}));
      c.bias = alibi_formula(slopes);
      c.base.bias = LagBias::alibi(slopes);
      return 2000 * largest;
    }
    case 1: {
      const Index lags = bytes.integer(1, 200), first = bytes.integer(-150, 20);
      std::vector<double> values;
      for (Index m = 0; m < lags; ++m) values.push_back(number({0.0, 0.3, -0.7, 1.5}));
      c.bias = [values, first](Index, Position lag) {
        return values.at(static_cast<std::size_t>(lag - first));
      };
      c.base.bias = LagBias::table(values, 1, first);
      return largest;
    }
    default:
      return 0;
  }
}

void add_positions(Bytes& bytes, std::vector<Position>& positions, Index n) {
  if (!bytes.one_in(6)) return;
  Position p = bytes.integer(-3, 90);
  const Index step = bytes.integer(-1, 2);
  for (Index i = 0; i < n + (bytes.one_in(8) ? 1 : 0); ++i, p += step) positions.push_back(p);
  if (bytes.one_in(3) && n > 1) std::swap(positions.front(), positions[1]);
}

/// What else a rope may have. Read last: the inputs in the corpus are of a time before it.
void extend_rope(Bytes& bytes, AttentionCase& c) {
  if (!c.base.rope) return;
  Rope& rope = *c.base.rope;
  if (bytes.one_in(4)) rope.rotary_begin = bytes.integer(-1, c.shapes.d + 1);
  if (auto* yarn = std::get_if<YarnScaling>(&rope.scaling)) yarn->truncate = !bytes.one_in(2);
  if (auto* table = std::get_if<FactorScaling>(&rope.scaling))
    for (double& factor : table->factors)
      if (bytes.one_in(4)) factor = INFINITY;
  if (!bytes.one_in(3)) return;
  const Index columns = rope.rotary_dim == 0 ? c.shapes.d - rope.rotary_begin : rope.rotary_dim;
  const Index pairs = std::max<Index>(0, columns / 2), count = bytes.integer(1, 3);
  rope.sections.assign(static_cast<std::size_t>(count), pairs / count);
  rope.sections.front() += pairs % count + (bytes.one_in(9) ? 1 : 0);
  if (bytes.one_in(2)) rope.section_order = SectionOrder::interleaved;
  const auto add = [&](std::vector<Position>& positions, Index n) {
    if (bytes.one_in(3)) return;
    const Position first = bytes.integer(-9, 90);
    for (Index i = 0; i < count * n; ++i) positions.push_back(first + i % 11 - i / 5);
    if (bytes.one_in(9)) positions.resize(positions.size() / 2);
  };
  add(c.query_section_positions, c.shapes.n_q);
  add(c.key_section_positions, c.shapes.n_k);
}

constexpr double kMostInputGate = 2;

struct FuzzCase : AttentionCase {
  double bias_size = 0;  ///< bounds |bias|
};

Mask lags_between(Position a, Position b) { return Mask::lags(std::min(a, b), std::max(a, b)); }

Index size_from(Bytes& bytes, Index unit, Index most) {
  return unit == 1 ? bytes.integer(0, most) : unit * bytes.integer(0, 2);
}

/// d and d_v: multiples of so many.
FuzzCase case_from(Bytes& bytes, Index d_unit, Index d_v_unit) {
  const Index kv_heads = bytes.integer(1, 2);
  const Index n = bytes.one_of<Index>({0, 1, 7, 40, 40, 130, 130, 700});
  FuzzCase c;
  c.shapes = {kv_heads * bytes.integer(1, 2), kv_heads,
              bytes.one_in(3) ? n / 3 : n,    n,
              size_from(bytes, d_unit, 12),   size_from(bytes, d_v_unit, 20)};
  c.base.mask = bytes.one_of<Mask>({Mask::full(), Mask::causal(), Mask::sliding_window(bytes.integer(1, 90)),
                                    lags_between(bytes.integer(-9, 9), bytes.integer(-9, 60))});
  if (!bytes.one_in(3)) c.base.rope = rope_from(bytes, c.shapes.d);
  c.base.rope_already_applied = bytes.one_in(12);
  c.bias_size = add_bias(bytes, c);
  if (bytes.one_in(3)) c.base.scale = bytes.number({1.0, 0.1, 0.0, -0.3, 30.0});
  if (bytes.one_in(8)) c.base.softcap = bytes.number({5.0, 50.0});
  if (bytes.one_in(8))
    for (Index h = 0; h < c.shapes.heads; ++h)
      c.sinks.push_back(static_cast<float>(bytes.number({0.0, -2.0, 9.0})));
  if (bytes.one_in(6))
    c.base.kernel = bytes.one_of<Kernel>({Kernel::taylor(2), Kernel::power(2), Kernel::taylor(4)});
  if (bytes.one_in(8)) {
    c.dense.resize(static_cast<std::size_t>(c.shapes.n_k));
    for (float& x : c.dense)
      x = bytes.one_of<float>({0.0f, 1.0f, -3.0f, -std::numeric_limits<float>::infinity()});
  }
  add_positions(bytes, c.query_positions, c.shapes.n_q);
  add_positions(bytes, c.key_positions, c.shapes.n_k);
  c.base.tolerance = bytes.number({0.0, 1e-1, 1e-2, 1e-3, 1e-4});
  c.base.path =
      bytes.one_of<Path>({Path::automatic, Path::automatic, Path::exact, Path::polynomial, Path::toeplitz});
  c.base.verify = bytes.integer(0, 3);
  if (bytes.one_in(3)) c.base.executor = threads(3);
  return c;
}

/// Rows of some length, a few elements replaced by what floats can be.
template <class T>
Tensor<T> rows_from(Bytes& bytes, Index heads, Index rows, Index cols) {
  const double length = bytes.one_of<double>({0.5, 1.0, 0.1, 3.0, 1e-3, 0.0});
  const double offset = bytes.one_of<double>({0.0, 0.0, 1.0});
  Inputs random(static_cast<std::uint64_t>(bytes.next()));
  const Index gap = bytes.integer(0, 2);  // between rows
  Tensor<T> x(heads, rows, cols, rows * (cols + gap), cols + gap);
  x.values.assign(static_cast<std::size_t>(heads * rows * (cols + gap)), static_cast<T>(NAN));
  const double each = length / std::sqrt(std::max<double>(1, static_cast<double>(cols)));
  for (Index h = 0; h < heads; ++h)
    for (Index i = 0; i < rows; ++i)
      for (Index c = 0; c < cols; ++c) x(h, i, c) = static_cast<T>(offset * each + each * random.normal());
  if (!bytes.one_in(4) || heads * rows * cols == 0) return x;
  for (Index count = bytes.integer(1, 4); count > 0; --count) {
    const double special = bytes.one_of<double>(
        {1e-40, -1e-42, 5e-324, 1e19, -3e38, 1e300, INFINITY, -INFINITY, NAN, 0.0, -0.0, 1e4});
    x(bytes.integer(0, heads - 1), bytes.integer(0, rows - 1), bytes.integer(0, cols - 1)) =
        static_cast<T>(static_cast<float>(special));
  }
  return x;
}

/// Keys or values of type T, and the numbers that they are.
template <class T>
struct Rows {
  Tensor<T> numbers;
  TensorView<const T> view() const { return numbers.view(); }

  Rows(Bytes& bytes, Index heads, Index rows, Index cols) : numbers(rows_from<T>(bytes, heads, rows, cols)) {}
};
template <class T>
requires(!Element<T>) struct Rows<T> {
  StoredCache<T> cache;
  Tensor<float> numbers;
  TensorView<const T> view() const { return cache.view(); }

  Rows(Bytes& bytes, Index heads, Index rows, Index cols) {
    Tensor<float> x =
        converted<float>(TensorView<const float>(rows_from<float>(bytes, heads, rows, cols).view()));
    // What is not finite is a scale, of blocks.
    std::vector<std::pair<std::size_t, float>> scales;
    for (std::size_t i = 0; i < x.values.size() && kElementsOf < T >> 1; ++i)
      if (!std::isfinite(x.values[i])) {
        scales.emplace_back(i / kElementsOf<T>, x.values[i]);
        x.values[i] = 0;
      }
    cache = StoredCache<T>(x);
    if constexpr (kElementsOf < T >> 1)
      for (const auto& [block, scale] : scales) cache.values[block].scale = scale;
    numbers = cache.numbers();
  }
};

/// Integers of 8 bits with scales of rows, columns or both.
struct ScaledIntegers {};
template <>
struct Rows<ScaledIntegers> {
  ScaledCache cache;
  Tensor<float> numbers;
  auto view() const { return cache.view(); }

  Rows(Bytes& bytes, Index heads, Index rows, Index cols)
      : cache(Tensor<float>(heads, rows, cols), true, false) {
    Tensor<float> x =
        converted<float>(TensorView<const float>(rows_from<float>(bytes, heads, rows, cols).view()));
    std::vector<float> scales(static_cast<std::size_t>(heads * rows), 1.0F);
    bool special = false;
    for (std::size_t i = 0; i < x.values.size(); ++i)
      if (!std::isfinite(x.values[i])) {
        scales[i / static_cast<std::size_t>(cols)] = std::exchange(x.values[i], 0.0F);
        special = true;
      }
    const bool of_columns = bytes.one_in(3), of_rows = !of_columns || special || bytes.one_in(2);
    cache = ScaledCache(x, of_rows, of_columns);
    for (std::size_t i = 0; i < scales.size() && special; ++i) cache.row_scales[i] *= scales[i];
    numbers = cache.numbers();
  }
};

[[noreturn]] void fail(const AttentionCase& c, const std::string& what) {
  std::ostringstream text;
  const Options& o = c.base;
  text << what << "\n  " << c << ", tolerance " << o.tolerance << ", path " << o.path << ", rope "
       << (o.rope ? o.rope->base : 0) << " of scaling " << (o.rope ? o.rope->scaling.index() : 0)
       << " on columns " << (o.rope ? o.rope->rotary_dim : 0) << ", applied " << o.rope_already_applied
       << ", bias " << !o.bias.empty() << ", scale " << o.scale.value_or(NAN) << ", softcap " << o.softcap
       << ", sinks " << c.sinks.size() << ", dense " << c.dense.size() << ", positions "
       << c.query_positions.size() << " and " << c.key_positions.size() << ", of "
       << (o.rope ? o.rope->sections.size() : 0) << " sections " << c.query_section_positions.size()
       << " and " << c.key_section_positions.size() << ", ranges of " << c.ranges.per_row << " a row:";
  for (const Range range : c.ranges.ranges) text << " [" << range.begin << ", " << range.end << ")";
  if (o.rope)
    for (const ReferenceFrequencies f = reference_frequencies(*o.rope, c.shapes.d);
         const double theta : f.theta)
      text << ", theta " << theta << " gain " << f.gain;
  for (const float sink : c.sinks) text << ", sink " << sink;
  text << ", gates " << c.log_gates.size() << " and " << c.log_input_gates.size() << ", normaliser "
       << static_cast<int>(o.normaliser.kind()) << " of " << o.normaliser.constant();
  std::fprintf(stderr, "%s\n", text.str().c_str());
  std::abort();
}

/// [heads][rows]: |x_i|_2; infinity where an element is not finite.
template <class T>
std::vector<std::vector<double>> row_norms(const Tensor<T>& x) {
  std::vector<std::vector<double>> norms(static_cast<std::size_t>(x.heads));
  for (Index h = 0; h < x.heads; ++h)
    for (Index i = 0; i < x.rows; ++i) {
      double square = 0;
      for (Index c = 0; c < x.cols; ++c)
        square += static_cast<double>(x(h, i, c)) * static_cast<double>(x(h, i, c));
      norms[static_cast<std::size_t>(h)].push_back(std::isnan(square) ? INFINITY : std::sqrt(square));
    }
  return norms;
}

/// Rows of this length or more may overflow on the way, so that nothing is promised of what sees them.
constexpr double kWild = 1e18;

double largest_tame(const std::vector<std::vector<double>>& norms) {
  double largest = 0;
  for (const auto& head : norms)
    for (const double norm : head)
      if (norm < kWild) largest = std::max(largest, norm);
  return largest;
}

/// The largest sum of |scale q_c k_c| over the pairs, which rounding of logits is in proportion to.
template <class T>
double entry_size(const AttentionCase& c, double queries, double keys) {
  double gain = 1, turn = 0;  // turn: radians a position
  if (c.base.rope) {
    const ReferenceFrequencies f = reference_frequencies(*c.base.rope, c.shapes.d);
    gain = std::abs(f.gain);
    for (const double theta : f.theta) turn = std::max(turn, std::abs(theta));
  }
  const double scale =
      c.base.scale.value_or(1 / std::sqrt(std::max<double>(1, static_cast<double>(c.shapes.d))));
  // An angle is off by its own rounding, in double.
  constexpr double kFarthest = 2000;
  const double phases = turn * kFarthest * 1e-16 / std::numeric_limits<ArithmeticOf<T>>::epsilon();
  return std::abs(scale) * queries * keys * gain * gain * (1 + phases);
}

/// Whether a query attends to a key that is wild.
bool sees_wild(const AttentionCase& c, Index i, const std::vector<double>& keys) {
  const auto at = [](const std::vector<Position>& positions, Index m, Position otherwise) {
    return positions.empty() ? otherwise : positions[static_cast<std::size_t>(m)];
  };
  for (Index j = 0; j < std::ssize(keys); ++j)
    if (!(keys[static_cast<std::size_t>(j)] < kWild) &&
        c.base.mask.allows(at(c.query_positions, i, c.shapes.n_k - c.shapes.n_q + i) -
                           at(c.key_positions, j, j)))
      return true;
  return false;
}

/// How far rounding may move a row's output, over max|V|; infinity where it may do anything. `rounding` is
/// that of logits of this size, `sum` that of the weights, of which N is at least as large, or 1.
double polynomial_rounding(const AttentionCase& c, double size, double rounding, double sum) {
  const Kernel& kernel = c.base.kernel;
  const double total = c.base.normaliser.kind() == Normaliser::Kind::none ? 1 : sum;
  double largest = 0, power = 1;  // sum |c_p| (p + 1) max(size, 1)^p
  for (std::size_t p = 0; p < kernel.coefficients().size(); ++p, power *= std::max(size, 1.0))
    largest += std::abs(kernel.coefficients()[p]) * static_cast<double>(p + 1) * power;
  const double gate = c.log_input_gates.empty() ? 1 : std::exp(kMostInputGate);
  const double moved = static_cast<double>(c.shapes.n_k) * largest * gate * rounding;
  return moved < total / 4 ? 4 * moved / total : INFINITY;
}

/// Ranges of keys for each row, of all heads or of each, now and then not as they must be.
void add_ranges(Bytes& bytes, AttentionCase& c) {
  const Index rows = c.shapes.n_q * (bytes.one_in(3) ? c.shapes.heads : 1), n_k = c.shapes.n_k;
  const Index m = bytes.integer(1, 3);
  const bool any = bytes.one_in(8);
  c.ranges.per_row = m;
  for (Index row = 0; row < rows; ++row) {
    Index begin = 0;
    for (Index r = 0; r < m; ++r) {
      begin = any ? bytes.integer(-1, n_k) : bytes.integer(begin, n_k);
      const Index end = any ? bytes.integer(-1, n_k + 1) : bytes.integer(begin, n_k);
      c.ranges.ranges.push_back({begin, end});
      begin = std::max(begin, end);
    }
  }
}

/// Gates of key heads or of query heads, now and then not as they must be, and what a kernel's rows are
/// divided by. Read last: the inputs in the corpus are of a time before it.
void add_gates(Bytes& bytes, FuzzCase& c) {
  if (!c.base.kernel.is_softmax())
    c.base.normaliser = bytes.one_of<Normaliser>(
        {Normaliser::row_sum(), Normaliser::row_sum(1e-3), Normaliser::at_least(1), Normaliser::none()});
  const Index rows = bytes.one_in(2) ? c.shapes.heads : c.shapes.kv_heads;
  const auto fill = [&](std::vector<float>& gates, std::initializer_list<double> likely) {
    for (Index i = 0; i < rows * c.shapes.n_k; ++i) gates.push_back(static_cast<float>(bytes.one_of(likely)));
    if (bytes.one_in(9) && !gates.empty())
      gates.back() = static_cast<float>(bytes.number({NAN, 0.5, INFINITY}));
  };
  fill(c.log_gates, {0.0, -0.01, -0.5, -3.0, -0.01, -1e-4, 0.0, -INFINITY});
  if (bytes.one_in(2)) fill(c.log_input_gates, {0.0, kMostInputGate, -1.0, -INFINITY});
}

/// out [heads, n_q, d_v] and lse [heads, n_q] of an exact run, in memory that begins as `content`.
template <class Real>
struct Exact {
  Tensor<Real> out;
  std::vector<Real> lse;

  explicit Exact(const Shapes& s)
      : out(s.heads, s.n_q, s.d_v), lse(static_cast<std::size_t>(s.heads * s.n_q), Real(7)) {}

  MatrixView<Real> sums() { return {lse.data(), out.heads, out.rows}; }
  /// Bit for bit.
  bool operator==(const Exact& other) const {
    const auto same = [](const std::vector<Real>& a, const std::vector<Real>& b) {
      return a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(Real)) == 0;
    };
    return same(out.values, other.out.values) && same(lse, other.lse);
  }
};

/// The case with arrays of larger sizes, whose first rows are its own.
AttentionCase widened(const AttentionCase& c, const Shapes& most) {
  AttentionCase wide = c;
  wide.shapes = most;
  const auto widen = [](auto& values, Index n, Index wanted) {
    if (values.empty()) return;
    std::decay_t<decltype(values)> all;
    for (auto row = values.begin(); row != values.end(); row += n) {
      all.insert(all.end(), row, row + n);
      all.insert(all.end(), static_cast<std::size_t>(wanted - n), {});
    }
    values = std::move(all);
  };
  widen(wide.query_positions, c.shapes.n_q, most.n_q);
  widen(wide.key_positions, c.shapes.n_k, most.n_k);
  widen(wide.query_section_positions, c.shapes.n_q, most.n_q);
  widen(wide.key_section_positions, c.shapes.n_k, most.n_k);
  widen(wide.ranges.ranges, c.shapes.n_q * c.ranges.per_row, most.n_q * c.ranges.per_row);
  widen(wide.log_gates, c.shapes.n_k, most.n_k);
  widen(wide.log_input_gates, c.shapes.n_k, most.n_k);
  return wide;
}

/// Holds a plan and a batch of larger capacity, where there are such, against a plan of just these sizes.
template <class T, class K, class V>
void check_capacity(Bytes& bytes, const AttentionCase& c, const Tensor<T>& q, const K& k, const V& v) {
  using Real = ArithmeticOf<T>;
  Shapes most = c.shapes;
  most.n_q += bytes.integer(0, 40);
  most.n_k += 5 * bytes.integer(0, 200);
  const std::byte content{static_cast<unsigned char>(bytes.next())};
  Options options = c.options();
  options.tolerance = 0;
  options.path = Path::exact;
  const AttentionCase wide = widened(c, most);
  const auto run = [&](const Plan<Real>& plan) {
    Exact<Real> result(c.shapes);
    std::vector<std::byte> memory(plan.workspace_bytes(), content);
    if (plan.run(q.view(), k.view(), v.view(), result.out.view(), result.sums(), memory) != RunStatus::ok)
      fail(c, "a plan of " + std::to_string(plan.shapes().n_q) + ", " + std::to_string(plan.shapes().n_k) +
                  " does not run");
    return result;
  };
  const auto own = make_plan<Real>(c.shapes, options);
  const Exact<Real> expected = run(own);
  const bool grows = own.has_capacity();
  Options of_most = grows ? wide.options() : options;
  of_most.tolerance = 0;
  of_most.path = Path::exact;
  if (grows && !(run(make_plan<Real>(most, of_most)) == expected))
    fail(c, "a plan of larger capacity gives other bits");

  const auto own_of = [](const Options& o) {
    return SequenceOptions{o.query_positions,
                           o.key_positions,
                           o.query_section_positions,
                           o.key_section_positions,
                           o.key_ranges,
                           o.dense_bias,
                           o.dense_mask,
                           o.log_gates,
                           o.log_input_gates};
  };
  const SequenceOptions of = own_of(options), of_slot = own_of(of_most);
  options.query_positions = options.key_positions = {};
  options.query_section_positions = options.key_section_positions = {};
  options.key_ranges = {};
  options.dense_bias = {};
  options.dense_mask = {};
  options.log_gates = options.log_input_gates = {};
  const BatchPlan<Real> plan(std::vector<Shapes>(3, grows ? most : c.shapes), options,
                             std::vector<SequenceOptions>(3, of_slot));
  Exact<Real> first(c.shapes), second(c.shapes);
  std::vector<SequenceViews<T, decltype(as_rows(k.view())), decltype(as_rows(v.view())), Real>> views;
  for (Exact<Real>* result : {&first, &second})
    views.push_back({q.view(), k.view(), v.view(), result->out.view(), result->sums()});
  if (grows)  // a slot that rests
    views.insert(views.begin() + bytes.integer(0, 1),
                 {rows(q.view(), {0, 0}), k.view(), v.view(), rows(first.out.view(), {0, 0})});
  std::vector<std::byte> memory(plan.workspace_bytes(), content);
  if (plan.run(views, memory) != RunStatus::ok) fail(c, "a batch does not run");
  if (!(first == expected && second == expected)) fail(c, "a sequence of a batch has other bits");

  // With the case's own tolerance, beside a sequence that rests.
  options.tolerance = c.base.tolerance;
  options.path = c.base.path;
  views = {{q.view(), k.view(), v.view(), first.out.view()},
           {rows(q.view(), {0, 0}), k.view(), v.view(), rows(first.out.view(), {0, 0})}};
  const auto planned = make_batch_plan(views, options, std::vector<SequenceOptions>{of, {}});
  memory.assign(planned.workspace_bytes(), content);
  if (planned.run(views, memory) != RunStatus::ok) fail(c, "a batch with a tolerance does not run");
  const auto alone = make_plan(q.view(), k.view(), v.view(), c.options());
  memory.assign(alone.workspace_bytes(), content);
  if (alone.run(q.view(), k.view(), v.view(), second.out.view(), memory) != RunStatus::ok)
    fail(c, "a plan does not run");
  second.lse = first.lse;
  if (!(first == second)) fail(c, "a sequence of a batch with a tolerance has other bits");
}

template <class T, class K = T, class V = K>
void check(Bytes& bytes) {
  using Real = ArithmeticOf<T>;
  FuzzCase c = case_from(bytes, kElementsOf<K>, kElementsOf<V>);
  const Shapes& s = c.shapes;
  const Tensor<T> q = rows_from<T>(bytes, s.heads, s.n_q, s.d);
  const Rows<K> stored_k(bytes, s.kv_heads, s.n_k, s.d);
  const Rows<V> stored_v(bytes, s.kv_heads, s.n_k, s.d_v);
  const auto &k = stored_k.numbers, &v = stored_v.numbers;
  extend_rope(bytes, c);
  if (bytes.one_in(4)) add_ranges(bytes, c);
  if (s.n_k > 0 && bytes.one_in(4)) add_gates(bytes, c);
  Tensor<Real> out(s.heads, s.n_q, s.d_v);
  std::fill(out.values.begin(), out.values.end(), std::numeric_limits<Real>::quiet_NaN());
  Report report;
  try {
    report = attend(q.view(), stored_k.view(), stored_v.view(), out.view(), c.options());
  } catch (const Error&) {
    return;
  }
  try {
    check_capacity(bytes, c, q, stored_k, stored_v);
  } catch (const Error&) {  // larger sizes than the options cover
  }

  // The rounding of the result to T comes on top of the tolerance.
  for (const HeadReport& head : report.heads)
    if (head.path != Path::exact && c.base.kernel.is_softmax() &&
        !(head.error_bound - result_rounding<Real, T>() * (1 + head.error_bound) <= c.base.tolerance))
      fail(c, "the report promises " + std::to_string(head.error_bound) +
                  ", more than was asked for: " + head.reason);
  const auto queries = row_norms(q), keys = row_norms(k);
  const double size = entry_size<T>(c, largest_tame(queries), largest_tame(keys)) + c.bias_size;
  // Rounding of a logit, and of the sums; where the hardware multiplies bfloat16, that of its operands.
  const bool pairs = std::is_same_v<T, bfloat16> && std::is_same_v<K, bfloat16> && pairs_pay();
  const double relative = (pairs ? 1.0 / 128 : 40.0 * std::numeric_limits<Real>::epsilon()) * (size + 4);
  double largest = 0;  // of the finite values
  for (const auto value : v.values)
    if (const auto x = static_cast<double>(value); std::isfinite(x)) largest = std::max(largest, std::abs(x));
  if (!std::isfinite(size) || !(largest < 1e30) || !(relative < 0.5)) return;  // no digits are promised
  if (c.query_positions.empty() && !c.key_positions.empty()) {
    // By default queries stand where the last keys stand, which the oracle does not know.
    c.query_positions = c.key_positions;
    if (c.ranges.ranges.empty()) std::sort(c.query_positions.begin(), c.query_positions.end());
    c.query_positions.erase(c.query_positions.begin(), c.query_positions.end() - s.n_q);
  }
  const Reference reference = reference_attention(q.view(), k.view(), v.view(), c.options(), c.bias);
  for (Index h = 0; h < s.heads; ++h) {
    const HeadReport& head = report.heads[static_cast<std::size_t>(h)];
    for (Index i = 0; i < s.n_q; ++i) {
      if (!(queries[static_cast<std::size_t>(h)][static_cast<std::size_t>(i)] < kWild) ||
          sees_wild(c, i, keys[static_cast<std::size_t>(h / (s.heads / s.kv_heads))]))
        continue;
      // A polynomial kernel's rows have bounds of their own; what is left is the oracle's rounding.
      const double oracle = 40 * std::numeric_limits<double>::epsilon() * (size + 4);
      const double promised =
          c.base.kernel.is_softmax()
              // What the report promises, with the oracle's own rounding; else what rounding may do.
              ? (std::isfinite(head.error_bound) ? head.error_bound + oracle : 2 * std::expm1(relative))
              : report.row_bounds[static_cast<std::size_t>(h * s.n_q + i)] +
                    polynomial_rounding(c, size, oracle, std::exp(reference.lse(0, h, i)));
      if (std::isinf(promised)) continue;
      for (Index m = 0; m < s.d_v; ++m) {
        const auto x = static_cast<double>(out(h, i, m)), expected = reference.out(h, i, m);
        // What is not finite among the values stays in the rows that attend to it.
        if (!std::isfinite(expected) && !std::isfinite(x)) continue;
        const double error = distance(x, expected);
        if (!(error <= promised * largest + 1e-37))
          fail(c, "row " + std::to_string(i) + " of head " + std::to_string(h) + " is off by " +
                      std::to_string(error / largest) + " of max|V|, promised " + std::to_string(promised) +
                      ": " + std::to_string(x) + ", not " + std::to_string(expected));
      }
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) try {
  Bytes bytes({data, size});
  // The inputs in the corpus are of a time before quantised rows, and begin otherwise.
  const std::uint32_t kind = bytes.next();
  constexpr std::uint32_t kQuantised = 216, kEnd = 255;
  switch (kind < kQuantised || kind == kEnd ? kind % 6 : kQuantised + kind % 6) {
    case kQuantised:
      check<float, Q8_0>(bytes);
      break;
    case kQuantised + 1:
      check<float, Q8_0, Q4_0>(bytes);
      break;
    case kQuantised + 2:
      check<float, Q4_0, float8_e5m2>(bytes);
      break;
    case kQuantised + 3:
      check<float, float8_e4m3, Q8_0>(bytes);
      break;
    case kQuantised + 4:
      check<bfloat16, Q8_0, Q4_0>(bytes);
      break;
    case kQuantised + 5:
      check<float, ScaledIntegers, ScaledIntegers>(bytes);
      break;
    case 0:
      check<double>(bytes);
      break;
    case 1:
      check<bfloat16>(bytes);
      break;
    case 2:
      check<float16>(bytes);
      break;
    default:
      check<float>(bytes);
  }
  return 0;
} catch (const Error&) {  // refused while options were made
  return 0;
}
