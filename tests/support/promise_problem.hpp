// PromiseProblem: a random attention call of any kind, made from a seed, for tests that hold the library to
// its error bounds.
//
// Ordinary data and what bounds have been broken by: identical keys, keys opposite to the queries, rare runs
// of keys that evenly spread samples miss, content that changes late, a common mean far beyond the noise,
// biases much larger than the scores; values of one sign, steps, constants, and the signs of the weights' own
// errors.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <limits>
#include <optional>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "fastrope/plan/cost_model.hpp"
#include "fastrope/problem/options.hpp"
#include "support/attention_case.hpp"
#include "support/inputs.hpp"
#include "support/tensor.hpp"

namespace fastrope_test {

/// Element types of q, of k and v, and of out.
enum class Storage {
  float32,
  float64,
  bfloat16,
  float16,
  bfloat16_to_float,   ///< out is float
  narrow_keys,         ///< q and out float, k and v bfloat16
  narrow_keys_and_out  ///< q float, all else bfloat16
};
inline constexpr Storage kStorages[] = {
    Storage::float32,           Storage::float64,     Storage::bfloat16,           Storage::float16,
    Storage::bfloat16_to_float, Storage::narrow_keys, Storage::narrow_keys_and_out};

inline const char* to_string(Storage storage) {
  switch (storage) {
    case Storage::float32:
      return "float";
    case Storage::float64:
      return "double";
    case Storage::bfloat16:
      return "bfloat16";
    case Storage::float16:
      return "float16";
    case Storage::bfloat16_to_float:
      return "bfloat16-to-float";
    case Storage::narrow_keys:
      return "bfloat16-keys";
    case Storage::narrow_keys_and_out:
      return "bfloat16-keys-and-out";
  }
  return "unknown";
}

/// Half a unit in the last place of out's type, relative to the number.
inline double result_rounding(Storage storage) {
  switch (storage) {
    case Storage::float64:
      return 0x1p-53;
    case Storage::bfloat16:
    case Storage::narrow_keys_and_out:
      return 0x1p-8;
    case Storage::float16:
      return 0x1p-11;
    default:
      return 0x1p-24;
  }
}

/// b(head, lag) of options.bias, written again, with the digits that a double oracle would lack.
using LongBias = std::function<long double(Index head, Position lag)>;

struct PromiseProblem {
  std::uint64_t seed = 0;
  AttentionCase call = {};  ///< its `bias` is not used
  LongBias bias = {};
  Storage storage = Storage::float32;
  Tensor<double> q = {}, k = {}, v = {};  ///< before they are rounded to the storage
  bool adversarial_values = false;        ///< v becomes the signs of the weights' errors
  bool eager = false;                     ///< planned as if the exact path were slow: heads mix paths
  double loose_tolerance = 0;             ///< somewhere above the tightest one

  Options options(double tolerance) const {
    Options options = call.options();
    options.tolerance = tolerance;
    return options;
  }
  /// Whether a tolerance can be refused, or an approximation of it not be taken.
  bool seeks_approximation() const {
    const fastrope::Path path = call.base.path;
    return call.base.kernel.is_softmax() &&
           (path == fastrope::Path::polynomial || path == fastrope::Path::toeplitz ||
            (path == fastrope::Path::automatic && eager));
  }
  /// What calls through make_plan are planned with; none: attend.
  std::optional<fastrope::CostModel> cost() const {
    if (call.base.path != fastrope::Path::automatic) return {};
    fastrope::CostModel model;
    if (eager) {
      model.weigh = 1;  // scores a second: any approximation is cheaper
      model.look = 1e30;
    } else {
      model.element = 1e30;  // rows are read in no time: exact heads state their bounds
    }
    return model;
  }

  friend std::ostream& operator<<(std::ostream& out, const PromiseProblem& p) {
    return out << "seed " << p.seed << " (" << p.call << ", " << p.call.base.path << (p.eager ? " eager" : "")
               << ", " << to_string(p.storage) << (p.adversarial_values ? ", signs of errors" : "") << ')';
  }
};

/// Which sizes a problem of the sweep may have.
enum class PromiseSize {
  small,  ///< up to 500 keys, a few to 3000
  large,  ///< 4096 keys or more
  any     ///< 1 % of them large, some of these with up to 10^6 keys
};

namespace detail {

/// Random contents, one kind after another.
class PromiseMaker {
 public:
  PromiseMaker(std::uint64_t seed, PromiseSize size) : random_(seed * 0x9e3779b97f4a7c15u + 1), limit_(size) {
    problem_.seed = seed;
  }

  PromiseProblem make() {
    choose_path();
    choose_shapes();
    choose_position();
    fill_rows();
    fill_values();
    gates();
    problem_.loose_tolerance = power_of_ten(-5, -0.3);
    problem_.call.text = text_;
    return std::move(problem_);
  }

 private:
  using Draw = Tensor<double>;
  enum class Size { small, medium, large, huge };

  Options& options() { return problem_.call.base; }
  fastrope::Shapes& shapes() { return problem_.call.shapes; }
  bool chance(double probability) { return random_.uniform(0, 1) < probability; }
  Index integer(Index low, Index high) { return random_.integer(low, std::max(low, high)); }
  /// Log-uniform, rounded.
  Index size_between(double low, double high) {
    return static_cast<Index>(std::lround(std::exp(random_.uniform(std::log(low), std::log(high)))));
  }
  double power_of_ten(double low, double high) { return std::pow(10.0, random_.uniform(low, high)); }
  void say(const std::string& what) { text_ += ", " + what; }

  void choose_path() {
    using fastrope::Path;
    const double path = random_.uniform(0, 1);
    if (path < 0.38) {
      options().path = Path::polynomial;
    } else if (path < 0.60) {
      options().path = (states_ = chance(0.5)) ? Path::polynomial : Path::toeplitz;
    } else if (path < 0.82) {
      options().path = Path::automatic;
    } else if (path < 0.92) {
      options().path = Path::automatic;
      problem_.eager = true;
    } else if (path < 0.97) {
      options().path = Path::exact;
    } else {
      options().path = chance(0.5) ? Path::polynomial : Path::automatic;
      const int degree = 2 * static_cast<int>(integer(1, 3));
      options().kernel = chance(0.5) ? fastrope::Kernel::power(degree) : fastrope::Kernel::taylor(degree);
      say("kernel of degree " + std::to_string(degree));
    }
    approximates_ = problem_.seeks_approximation() || !options().kernel.is_softmax();

    const double storage = random_.uniform(0, 1), until[] = {0.45, 0.57, 0.70, 0.80, 0.86, 0.93};
    problem_.storage = kStorages[std::upper_bound(std::begin(until), std::end(until), storage) - until];
    const double size = random_.uniform(0, 1);
    if (limit_ == PromiseSize::large)
      size_ = Size::large;
    else if (limit_ == PromiseSize::any && size < 0.011)
      size_ = size < 0.0003 ? Size::huge : Size::large;
    else
      size_ = size < 0.07 ? Size::medium : Size::small;
    if (problem_.storage == Storage::float64) size_ = std::min(size_, Size::large);  // the oracle is slow
  }

  void choose_shapes() {
    using fastrope::Path;
    fastrope::Shapes& s = shapes();
    const bool small = size_ == Size::small;
    s.kv_heads = small && chance(0.25) ? 2 : 1;
    s.heads = s.kv_heads * (small && chance(0.3) ? integer(2, 3) : 1);
    const double width = random_.uniform(0, 1);
    const bool kernel = !options().kernel.is_softmax();
    if (approximates_)
      s.d = kernel           ? integer(1, 5)
            : width < 0.92   ? integer(1, 8)
            : width < 0.997  ? integer(9, 32)
            : width < 0.9995 ? integer(33, 128)  // slow to plan
                             : integer(129, 576);
    else
      s.d = width < 0.85 ? integer(1, 24) : width < 0.99 ? integer(25, 130) : integer(131, 576);
    s.d_v = chance(0.9) ? integer(1, 8) : integer(9, small ? 130 : 24);
    if (!small) s.d = std::min<Index>(s.d, approximates_ ? 8 : 64);
    if (approximates_ && s.d > 8) s.heads = s.kv_heads = 1;
    if (approximates_ && problem_.storage == Storage::float64) {  // high degrees: ranks of thousands
      s.d = std::min<Index>(s.d, 5);
      s.d_v = std::min<Index>(s.d_v, 16);
    }

    // Masks: what they leave far decides how many keys and queries there have to be.
    const double mask = random_.uniform(0, 1);
    const bool windows = options().path == Path::toeplitz || states_ || !approximates_ || problem_.eager;
    enum { full, causal, window, both } kind = full;
    if (windows)
      kind = mask < 0.3 ? full : mask < 0.55 ? causal : mask < 0.8 ? window : both;
    else
      kind = mask < 0.6 ? full : causal;

    switch (size_) {
      case Size::small:
        s.n_k = kind == full || !approximates_ ? size_between(1, chance(0.1) ? 500 : 120)
                                               : size_between(200, 500);
        s.n_q = kind == full || !approximates_ ? size_between(1, 60) : size_between(1, 30);
        if (chance(0.12)) s.n_q = 1;  // decoding
        if (chance(0.05)) s.n_q = size_between(60, 250);
        break;
      case Size::medium:
        s.n_k = size_between(500, 3000);
        s.n_q = chance(0.15) ? s.n_k : size_between(1, 200);
        break;
      case Size::large:
        s.n_k = size_between(4096, 30000);
        s.n_q = approximates_ ? size_between(1, 3000) : size_between(1, 100);
        if (approximates_ && kind == window && chance(0.5)) s.n_q = s.n_k;
        break;
      case Size::huge:
        s.n_k = size_between(1e5, 1e6);
        s.n_q = size_between(1, approximates_ ? 500 : 20);
        s.d = std::min<Index>(s.d, 8);
        s.d_v = std::min<Index>(s.d_v, 4);
        break;
    }
    if (small) {  // about as long for each
      const Index most = static_cast<Index>(problem_.storage == Storage::float64 ? 2e5 : 6e5);
      const Index pair = s.heads * (s.d + s.d_v + 16);
      s.n_q = std::max<Index>(1, std::min(s.n_q, most / (pair * s.n_k)));
    }
    const Index reach = std::max<Index>(1, s.n_k);
    switch (kind) {
      case full:
        break;
      case causal:
        options().mask = fastrope::Mask::causal();
        break;
      case window:
        options().mask = fastrope::Mask::sliding_window(
            approximates_ ? integer(std::min<Index>(reach, s.n_q + 130), reach) : integer(1, reach));
        if (s.n_q == s.n_k)
          options().mask = fastrope::Mask::sliding_window(std::min<Index>(integer(200, reach), 8192));
        break;
      case both:
        options().mask = fastrope::Mask::lags(-integer(0, reach), integer(0, reach));
        break;
    }
  }

  /// Rope, biases, and what only the exact path has.
  void choose_position() {
    using fastrope::LagBias, fastrope::Path, fastrope::Rope;
    const fastrope::Shapes& s = shapes();
    if (chance(0.3) && s.d >= 2) {
      Rope rope{.base = power_of_ten(1, 5)};
      if (chance(0.5)) rope.pairing = fastrope::RopePairing::half_split;
      if (s.d % 2 == 1 || chance(0.3)) rope.rotary_dim = 2 * integer(1, s.d / 2);
      options().rope = rope;
      say("rope");
    }
    if (!options().kernel.is_softmax()) return;
    const bool dense_allowed = !approximates_ && s.heads * s.n_q * s.n_k <= 3000000;
    const bool lags_allowed = options().path != Path::polynomial || states_;
    if (lags_allowed && chance(0.65)) set_lag_bias();
    const bool moved = !approximates_ || (options().path == Path::polynomial && !states_);
    if (dense_allowed && chance(0.2)) {
      set_dense(problem_.call, random_, chance(0.5), chance(0.7), chance(0.5) ? 1000000000 : 5);
      if (chance(0.3)) {  // padding as some write it
        const float padding = chance(0.5) ? -std::numeric_limits<float>::max() : -1e30f;
        for (float& b : problem_.call.dense)
          if (std::isinf(b)) b = padding;
        if (chance(0.3)) std::fill(problem_.call.dense.begin(), problem_.call.dense.end(), padding);
      }
      say("dense bias");
    }
    if (!approximates_ && chance(0.1)) set_sinks(problem_.call, random_);
    if (!approximates_ && chance(0.1)) options().softcap = power_of_ten(-1, 2);
    if (moved && problem_.bias == nullptr && chance(0.08)) {
      problem_.call.key_positions = shuffled_positions(random_, s.n_k, integer(0, 1000));
      const Position last =
          *std::max_element(problem_.call.key_positions.begin(), problem_.call.key_positions.end());
      for (Index i = 0; i < s.n_q; ++i) problem_.call.query_positions.push_back(last - s.n_q + 1 + i);
      say("ring cache");
    }
  }

  /// Gates, input gates and normalisers, drawn apart from all else: the rest of a problem is what its number
  /// made before there were any.
  void gates() {
    const fastrope::Shapes& s = shapes();
    Inputs random(problem_.seed * 0x9e3779b97f4a7c15u + 2);
    const auto chance = [&](double probability) { return random.uniform(0, 1) < probability; };
    const bool kernel = !options().kernel.is_softmax();
    if (kernel && chance(0.5)) {
      using fastrope::Normaliser;
      const double constant = std::pow(10.0, random.uniform(-12, 1));
      options().normaliser = chance(0.4)   ? Normaliser::row_sum(constant)
                             : chance(0.5) ? Normaliser::at_least(constant)
                                           : Normaliser::none();
      say("another normaliser");
    }
    if (options().mask.first < 0 || problem_.bias || !problem_.call.dense.empty() ||
        !problem_.call.key_positions.empty() || problem_.seeks_approximation() || s.n_q > s.n_k ||
        !chance(kernel ? 0.6 : 0.2))
      return;
    const Index rows = chance(0.5) ? s.heads : s.kv_heads;
    set_gates(problem_.call, random, rows, random.uniform(0.5, 14), chance(0.3) ? random.integer(2, 300) : 0);
    if (chance(0.4)) set_input_gates(problem_.call, random, rows, random.uniform(0, 20));
    text_ += std::exchange(problem_.call.text, {});
  }

  void set_lag_bias() {
    using fastrope::LagBias;
    const fastrope::Shapes& s = shapes();
    const Index heads = chance(0.5) ? s.heads : 1;
    const double kind = random_.uniform(0, 1);
    const double range = static_cast<double>(std::max(s.n_q, s.n_k));
    if (kind < 0.45) {  // ALiBi; of the other sign too
      std::vector<double> slopes;
      for (Index h = 0; h < heads; ++h)
        slopes.push_back(power_of_ten(-3, 2) / range * (chance(0.3) ? -1 : 1));
      options().bias = LagBias::alibi(slopes);
      set_bias([slopes](Index h, Position lag) {
        const double slope = slopes[slopes.size() == 1 ? 0 : static_cast<std::size_t>(h)];
        return -static_cast<long double>(slope) * static_cast<long double>(std::abs(lag));
      });
      say("ALiBi");
      if (chance(0.2) &&
          options().mask.last >= s.n_k) {  // far behind: the bias is huge, its differences are not
        const Position offset = integer(1, chance(0.3) ? 1000000 : 10000);
        for (Index i = 0; i < s.n_q; ++i) problem_.call.query_positions.push_back(offset + s.n_k - s.n_q + i);
        say("queries " + std::to_string(offset) + " later");
      }
    } else if (kind < 0.65) {
      const bool both_ways = chance(0.5);
      const double size = power_of_ten(-1, 0.7);
      const std::vector<double> table = random_numbers(random_, 16 * s.heads, -size, size);
      options().bias = LagBias::t5(table, s.heads, both_ways, 50);
      set_bias(t5_formula(table, s.heads, both_ways, 50));
      say("T5");
    } else {
      const Position first = -(s.n_q + s.n_k);
      const Index lags = 2 * (s.n_q + s.n_k) + 1;
      if (lags * heads > 300000) return;
      std::vector<double> table;
      const double size = power_of_ten(-2, 0.7), steps = power_of_ten(0, 2);
      const bool rough = chance(0.5);
      for (Index l = 0; l < heads * lags; ++l)
        table.push_back(size *
                        (rough ? random_.uniform(-1, 1) : std::sin(static_cast<double>(l % lags) / steps)));
      options().bias = LagBias::table(table, heads, first);
      set_bias(table_formula(table, heads, first));
      say(rough ? "rough table" : "smooth table");
    }
  }
  void set_bias(LongBias bias) { problem_.bias = std::move(bias); }

  /// One side's rows as they come, of length about 1.
  Draw draw(Index heads, Index n, Index d) {
    switch (integer(0, 7)) {
      case 0:
        return random_.gaussian<double>(heads, n, d, 1 / std::sqrt(static_cast<double>(d)));
      case 1:
        return random_.sphere<double>(heads, n, d, 1);
      case 2:
        return random_.heavy_tailed<double>(heads, n, d, 0.3);
      case 3:
        return random_.common_mean<double>(heads, n, d, random_.uniform(0, 5), random_.uniform(0.1, 1));
      case 4:
        return clusters(heads, n, d);
      case 5:
        return decaying(heads, n, d);
      case 6:
        return corners(heads, n, d);
      default:
        return segment(heads, n, d);
    }
  }

  /// A point of few, each row one of them with a little noise.
  Draw clusters(Index heads, Index n, Index d) {
    const Draw centres = random_.gaussian<double>(heads, 4, d);
    Draw x = random_.gaussian<double>(heads, n, d, 0.02);
    for (Index h = 0; h < heads; ++h)
      for (Index i = 0; i < n; ++i) {
        const Index centre = integer(0, 3);
        for (Index c = 0; c < d; ++c) x(h, i, c) += centres(h, centre, c);
      }
    return x;
  }

  /// Mixtures of a few directions, of decaying weight.
  Draw decaying(Index heads, Index n, Index d) {
    const Index count = std::min<Index>(d, 8);
    const Draw directions = random_.gaussian<double>(heads, count, d, 1 / std::sqrt(static_cast<double>(d)));
    const double decay = random_.uniform(0.01, 0.9);
    Draw x(heads, n, d);
    for (Index h = 0; h < heads; ++h)
      for (Index i = 0; i < n; ++i) {
        double size = 1;
        for (Index l = 0; l < count; ++l, size *= decay) {
          const double weight = size * random_.normal();
          for (Index c = 0; c < d; ++c) x(h, i, c) += weight * directions(h, l, c);
        }
      }
    return x;
  }

  /// Rows of one axis each, at both ends: entries at the bound, of either sign, and 0.
  Draw corners(Index heads, Index n, Index d) {
    Draw x(heads, n, d);
    for (Index h = 0; h < heads; ++h)
      for (Index i = 0; i < n; ++i) x(h, i, integer(0, std::min<Index>(d - 1, 1))) = chance(0.5) ? -1 : 1;
    return x;
  }

  /// Points of a segment through the origin: every entry size from 0 to the bound.
  Draw segment(Index heads, Index n, Index d) {
    Draw x(heads, n, d);
    for (Index h = 0; h < heads; ++h)
      for (Index i = 0; i < n; ++i)
        for (Index c = 0; c < d; ++c)
          x(h, i, c) =
              (2 * static_cast<double>(i) / static_cast<double>(n) - 1) / std::sqrt(static_cast<double>(d));
    return x;
  }

  /// Multiples of one direction for each key head, of the lengths that length(head, row) says.
  template <class Length>
  Draw along(const Draw& directions, Index heads, Index n, Length&& length) {
    const Index group = heads / directions.heads;
    Draw x(heads, n, directions.cols);
    for (Index h = 0; h < heads; ++h)
      for (Index i = 0; i < n; ++i) {
        const double size = length(h, i);
        for (Index c = 0; c < x.cols; ++c) x(h, i, c) = size * directions(h / group, 0, c);
      }
    return x;
  }

  /// q and k, all entries within a radius, and a scale.
  void fill_rows() {
    const fastrope::Shapes& s = shapes();
    Draw& q = problem_.q;
    Draw& k = problem_.k;
    const bool normal_data = chance(0.55);
    double radius = approximates_ ? power_of_ten(-1.3, 1) : power_of_ten(-1, 2.5);
    if (size_ != Size::small && approximates_) radius = power_of_ten(-1.3, 0.6);
    if (normal_data) {
      q = draw(s.heads, s.n_q, s.d);
      k = draw(s.kv_heads, s.n_k, s.d);
    } else {
      const Draw direction =
          chance(0.5) ? random_.sphere<double>(s.kv_heads, 1, s.d, 1) : axis(s.kv_heads, s.d);
      const auto near_end = [&](Index, Index) { return 1 - 0.05 * random_.uniform(0, 1); };
      const auto either = [&](Index h, Index i) { return (chance(0.5) ? -1 : 1) * near_end(h, i); };
      switch (integer(0, 6)) {
        case 0: {
          k = along(direction, s.kv_heads, s.n_k, [](Index, Index) { return 1; });
          q = chance(0.5) ? along(direction, s.heads, s.n_q, either) : draw(s.heads, s.n_q, s.d);
          say("identical keys");
          break;
        }
        case 1:
          k = along(direction, s.kv_heads, s.n_k, [](Index, Index) { return -1; });
          q = along(direction, s.heads, s.n_q, [](Index, Index) { return 1; });
          say("keys opposite to queries");
          break;
        case 2: {
          needle_ = needles(s.n_k);
          k = along(direction, s.kv_heads, s.n_k, [&](Index, Index j) { return needle_(j) ? 0 : -1; });
          q = along(direction, s.heads, s.n_q, either);
          say("needles");
          break;
        }
        case 3: {
          const Index late = s.n_k - std::max<Index>(1, s.n_k / 8);
          const bool repeated = chance(0.7);
          k = along(direction, s.kv_heads, s.n_k, [&](Index, Index j) {
            return j < late ? (j % 2 == 0 ? 1 : -1) : repeated ? 1 : 0;
          });
          q = along(direction, s.heads, s.n_q, either);
          needle_ = [=](Index j) { return j >= late; };
          say("late change");
          break;
        }
        case 4: {  // radius is the noise's
          // Where it cannot be shifted away, it is all of the radius.
          const bool stays =
              approximates_ && (options().rope || options().path != fastrope::Path::polynomial);
          const double mean = std::sqrt(stays ? random_.uniform(0.5, 4) : random_.uniform(20, 130));
          const double noise = std::sqrt(stays ? std::min(radius, 1.0) : radius) * random_.uniform(0.1, 1);
          const Draw mean_row = along(direction, s.kv_heads, 1, [](Index, Index) { return 1; });
          const double sigma = noise / std::sqrt(static_cast<double>(s.d));
          const double sign = chance(0.3) ? -1 : 1;
          q = along(mean_row, s.heads, s.n_q, [&](Index, Index) { return mean; });
          k = along(mean_row, s.kv_heads, s.n_k, [&](Index, Index) { return sign * mean; });
          for (double& x : q.values) x += sigma * random_.normal();
          for (double& x : k.values) x += sigma * random_.normal();
          say("common mean");
          return set_scale(1);
        }
        case 5:
          k = along(direction, s.kv_heads, s.n_k, [](Index, Index j) { return j % 2 == 0 ? 1 : -1; });
          q = along(direction, s.heads, s.n_q, either);
          say("alternating keys");
          break;
        default:
          k = along(direction, s.kv_heads, s.n_k, either);
          q = along(direction, s.heads, s.n_q, either);
          say("both ends");
          break;
      }
    }
    const double largest = longest(q) * longest(k);
    set_scale(largest > 0 ? radius / largest : 1);
  }

  /// Runs of 4 keys: those that evenly spread samples consist of, or others that they miss.
  std::function<bool(Index)> needles(Index n) {
    constexpr Index kRun = 4;
    const bool sampled = chance(0.5);
    const Index runs = sampled ? std::clamp<Index>(n / 16, 128, 512) / kRun * (chance(0.5) ? 1 : 4)
                               : std::max<Index>(1, n / 64);
    std::vector<bool> is_needle(static_cast<std::size_t>(n));
    for (Index r = 0; r < runs; ++r) {
      const Index begin = sampled ? r * std::max<Index>(0, n - kRun) / std::max<Index>(1, runs - 1)
                                  : (2 * r + 1) * n / (2 * runs);
      for (Index j = begin; j < std::min(n, begin + kRun); ++j) is_needle[static_cast<std::size_t>(j)] = true;
    }
    return [is_needle = std::move(is_needle)](Index j) { return is_needle[static_cast<std::size_t>(j)]; };
  }

  Draw axis(Index heads, Index d) {
    Draw x(heads, 1, d);
    for (Index h = 0; h < heads; ++h) x(h, 0, integer(0, d - 1)) = 1;
    return x;
  }

  static double longest(const Draw& x) {
    double largest = 0;
    for (Index h = 0; h < x.heads; ++h)
      for (Index i = 0; i < x.rows; ++i) {
        double squares = 0;
        for (Index c = 0; c < x.cols; ++c) squares += x(h, i, c) * x(h, i, c);
        largest = std::max(largest, squares);
      }
    return std::sqrt(largest);
  }

  /// The factor on the products, given to the rows or to the scale; one side's size is the other's inverse.
  void set_scale(double factor) {
    const double decades = problem_.storage == Storage::float16 ? 1 : 3;
    const double decade = power_of_ten(-decades, decades);
    const bool rows_carry = chance(0.5);
    const double sides = rows_carry ? std::sqrt(factor) : 1;
    for (double& x : problem_.q.values) x *= sides * decade;
    for (double& x : problem_.k.values) x *= sides / decade;
    options().scale = (rows_carry ? 1 : factor) * (chance(0.1) ? -1 : 1);
  }

  void fill_values() {
    const fastrope::Shapes& s = shapes();
    Draw& v = problem_.v;
    v = Draw(s.kv_heads, s.n_k, s.d_v);
    const auto fill = [&](auto&& value) {
      for (Index h = 0; h < s.kv_heads; ++h)
        for (Index j = 0; j < s.n_k; ++j)
          for (Index c = 0; c < s.d_v; ++c) v(h, j, c) = value(j, c);
    };
    const Index step = integer(0, s.n_k - 1);
    const double base = random_.uniform(0.1, 1);
    if (needle_ && chance(0.6)) {
      fill([&](Index j, Index) { return needle_(j) ? 1.0 : -1.0; });
    } else {
      switch (integer(0, 8)) {
        case 0:
          fill([&](Index, Index) { return random_.normal(); });
          break;
        case 1:
          fill([&](Index, Index) { return random_.uniform(0.5, 1); });
          break;
        case 2:
          fill([&](Index, Index) { return base; });
          break;
        case 3:
          fill([&](Index j, Index) { return j < step ? base : 1.0; });
          break;
        case 4:
          fill([&](Index j, Index) { return j < step ? -1.0 : 1.0; });
          break;
        case 5:
          fill([&](Index, Index) { return chance(0.5) ? -1.0 : 1.0; });
          break;
        case 6:
          fill([&](Index, Index) { return 10 + random_.normal(); });
          break;
        case 7:
          fill([&](Index j, Index c) { return j % 2 == c % 2 ? 1.0 : -1.0; });
          break;
        default:
          fill([&](Index j, Index) { return j == step ? 1.0 : 0.0; });
          break;
      }
    }
    const double decades = problem_.storage == Storage::float16 ? 1 : 3;
    const double size = chance(0.5) ? 1 : power_of_ten(-decades, decades);
    for (double& x : v.values) x *= size;
    problem_.adversarial_values = s.n_k <= 200 && result_rounding(problem_.storage) < 1e-6 &&
                                  options().kernel.is_softmax() && chance(0.15);
  }

  Inputs random_;
  PromiseSize limit_;
  Size size_ = Size::small;
  bool approximates_ = false;
  bool states_ = false;                     // forced features of biases and windows
  std::function<bool(Index)> needle_ = {};  ///< the keys that differ from the rest
  std::string text_ = {};
  PromiseProblem problem_ = {};
};

}  // namespace detail

/// The problem of this number; the same on every machine with the same standard library.
inline PromiseProblem make_promise_problem(std::uint64_t seed, PromiseSize size = PromiseSize::any) {
  return detail::PromiseMaker(seed, size).make();
}

}  // namespace fastrope_test
