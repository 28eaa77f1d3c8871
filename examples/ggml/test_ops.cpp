// Attention by fastrope's backend of ggml against ggml's own CPU backend, one operation at a time: types of
// keys and values, heads, sizes, masks, softcap, sinks, streams, as ggml's test-backend-ops has them.
//
//     test_ops libfastrope_ggml.so           every case; fails where one is beyond the bound, or did not run
//     test_ops libfastrope_ggml.so --bench [d (64)]   times of the operation alone
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "fastrope_ggml.h"
#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "ggml.h"

namespace {

/// The largest sum of squared errors over the sum of squares; that of test-backend-ops for this operation.
constexpr double kBound = 5e-4;

enum class MaskKind { none, causal, window, sequences, interleaved, packed, alibi, random, empty_rows };
constexpr const char* kMaskNames[] = {"none",   "causal", "window", "sequences", "interleaved",
                                      "packed", "alibi",  "random", "empty rows"};

struct Case {
  ggml_type k_type = GGML_TYPE_F16, v_type = GGML_TYPE_F16;
  int64_t d = 64, d_v = 64, heads = 4, kv_heads = 2, n_q = 1, n_kv = 512, streams = 1;
  MaskKind mask = MaskKind::causal;
  float softcap = 0;
  bool sinks = false;
  bool in_heads =
      false;  ///< memory of k and v: [streams, heads, n, d]; else [streams, n, heads, d], as caches have it
  int64_t window = 40;  ///< of the mask of that name
  float entries = 1;    ///< standard deviation of q and k
  bool casts = false;   ///< k and v are cast to F16 before, as llama.cpp does with a cache of F32
};

std::string to_string(const Case& c) {
  char text[256];
  std::snprintf(text, sizeof text,
                "k %s v %s d %d d_v %d heads %d on %d n_q %d n_kv %d streams %d mask %s softcap %g%s%s",
                ggml_type_name(c.k_type), ggml_type_name(c.v_type), int(c.d), int(c.d_v), int(c.heads),
                int(c.kv_heads), int(c.n_q), int(c.n_kv), int(c.streams), kMaskNames[int(c.mask)],
                double(c.softcap), c.sinks ? " sinks" : "", c.in_heads ? " in heads" : "");
  return text;
}

/// The mask's value for a query and a key.
float mask_value(const Case& c, int64_t i, int64_t j, std::mt19937& random) {
  const int64_t used = std::max<int64_t>(c.n_q, c.n_kv - c.n_kv / 5);  // the keys after these are padding
  const int64_t at = used - c.n_q + i;
  const bool causal = j <= at;
  switch (c.mask) {
    case MaskKind::none:
      return 0;
    case MaskKind::causal:
      return causal ? 0 : -INFINITY;
    case MaskKind::window:
      return causal && at - j < c.window ? 0 : -INFINITY;
    case MaskKind::sequences:  // a third of the cache each
      return causal && 3 * j / used == i % 3 ? 0 : -INFINITY;
    case MaskKind::interleaved:
      return causal && j % 3 == i % 3 ? 0 : -INFINITY;
    case MaskKind::packed: {  // a third of the rows, one after the other, and of the keys, in turns
      const int64_t sequence = 3 * i / c.n_q, end = ((sequence + 1) * c.n_q + 2) / 3;
      return j % 3 == sequence && j / 3 < used / 3 - end + i + 1 ? 0 : -INFINITY;
    }
    case MaskKind::alibi:
      return causal ? -static_cast<float>(at - j) : -INFINITY;
    case MaskKind::random:
      return j / 32 % 3 == 1 ? -INFINITY : std::normal_distribution<float>()(random);
    case MaskKind::empty_rows:
      return causal && i % 2 == 0 ? 0 : -INFINITY;
  }
  return 0;
}

/// The operation with its tensors, in the CPU's memory.
class Operation {
 public:
  explicit Operation(const Case& c)
      : context_(ggml_init({ggml_tensor_overhead() * 16 + ggml_graph_overhead(), nullptr, true})) {
    ggml_context* const context = context_.get();
    const auto rows = [&](ggml_type type, int64_t cols, int64_t n, int64_t heads) {
      if (c.in_heads) return ggml_new_tensor_4d(context, type, cols, n, heads, c.streams);
      return ggml_permute(context, ggml_new_tensor_4d(context, type, cols, heads, n, c.streams), 0, 2, 1, 3);
    };
    ggml_tensor* q = rows(GGML_TYPE_F32, c.d, c.n_q, c.heads);
    ggml_tensor* k = rows(c.k_type, c.d, c.n_kv, c.kv_heads);
    ggml_tensor* v = rows(c.v_type, c.d_v, c.n_kv, c.kv_heads);
    ggml_tensor* mask = c.mask == MaskKind::none
                            ? nullptr
                            : ggml_new_tensor_4d(context, GGML_TYPE_F16, c.n_kv, c.n_q, 1, c.streams);
    ggml_tensor* sinks = c.sinks ? ggml_new_tensor_1d(context, GGML_TYPE_F32, c.heads) : nullptr;
    const float scale = 1 / std::sqrt(static_cast<float>(c.d));
    const auto handed_over = [&](ggml_tensor* x) {
      return c.casts ? ggml_cast(context, x, GGML_TYPE_F16) : x;
    };
    result_ = ggml_flash_attn_ext(context, q, handed_over(k), handed_over(v), mask, scale,
                                  c.mask == MaskKind::alibi ? 8.0f : 0.0f, c.softcap);
    ggml_flash_attn_ext_add_sinks(result_, sinks);
    ggml_flash_attn_ext_set_prec(result_, GGML_PREC_F32);
    graph_ = ggml_new_graph(context);
    ggml_build_forward_expand(graph_, result_);
    buffer_.reset(ggml_backend_alloc_ctx_tensors_from_buft(context, ggml_backend_cpu_buffer_type()));

    std::mt19937 random(1);
    fill(q, random, c.entries);
    fill(k, random, c.entries);
    largest_value_ = fill(v, random, 1);
    if (sinks != nullptr) fill(sinks, random, 1);
    if (mask == nullptr) return;
    std::vector<ggml_fp16_t> values;
    for (int64_t s = 0; s < c.streams; ++s)
      for (int64_t i = 0; i < c.n_q; ++i)
        for (int64_t j = 0; j < c.n_kv; ++j)
          values.push_back(ggml_fp32_to_fp16(mask_value(c, (i + s) % c.n_q, j, random)));
    ggml_backend_tensor_set(mask, values.data(), 0, ggml_nbytes(mask));
  }

  const ggml_tensor* node() const { return result_; }
  bool compute(ggml_backend_t backend) {
    return ggml_backend_graph_compute(backend, graph_) == GGML_STATUS_SUCCESS;
  }
  std::vector<float> result() const {
    std::vector<float> values(static_cast<size_t>(ggml_nelements(result_)));
    ggml_backend_tensor_get(result_, values.data(), 0, ggml_nbytes(result_));
    return values;
  }
  void clear() { ggml_backend_tensor_memset(result_, 0xff, 0, ggml_nbytes(result_)); }
  float largest_value() const { return largest_value_; }
  /// As if all tensors were results of a graph, whose memory others may have later.
  void make_transient() { ggml_backend_buffer_set_usage(buffer_.get(), GGML_BACKEND_BUFFER_USAGE_COMPUTE); }

 private:
  /// Returns the largest absolute value.
  static float fill(ggml_tensor* x, std::mt19937& random, float deviation) {
    if (x->view_src != nullptr) x = x->view_src;
    std::vector<float> values(static_cast<size_t>(ggml_nelements(x)));
    float largest = 0;
    for (float& e : values) {
      e = deviation * std::normal_distribution<float>()(random);
      largest = std::max(largest, std::abs(e));
    }
    std::vector<char> stored(ggml_nbytes(x));
    const int64_t cols = x->ne[0];
    if (x->type == GGML_TYPE_F32)
      std::memcpy(stored.data(), values.data(), stored.size());
    else
      ggml_quantize_chunk(x->type, values.data(), stored.data(), 0, ggml_nrows(x), cols, nullptr);
    ggml_backend_tensor_set(x, stored.data(), 0, stored.size());
    return largest;
  }

  struct Free {
    void operator()(ggml_context* context) const { ggml_free(context); }
    void operator()(ggml_backend_buffer_t buffer) const { ggml_backend_buffer_free(buffer); }
  };
  std::unique_ptr<ggml_context, Free> context_;
  std::unique_ptr<ggml_backend_buffer, Free> buffer_;
  ggml_tensor* result_ = nullptr;
  ggml_cgraph* graph_ = nullptr;
  float largest_value_ = 0;
};

constexpr ggml_type kTypes[] = {GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0};

std::vector<Case> cases() {
  std::vector<Case> all;
  const auto add = [&](const Case& c) {
    // Rows are whole blocks.
    if (c.d % ggml_blck_size(c.k_type) == 0 && c.d_v % ggml_blck_size(c.v_type) == 0) all.push_back(c);
  };
  // Types, all pairs.
  for (const ggml_type k : kTypes)
    for (const ggml_type v : kTypes)
      for (const int64_t n_q : {1, 3, 75})
        for (const bool in_heads : {false, true})
          for (const MaskKind mask : {MaskKind::none, MaskKind::causal})
            add({.k_type = k, .v_type = v, .n_q = n_q, .n_kv = 256, .mask = mask, .in_heads = in_heads});
  for (const ggml_type type : kTypes) {
    // Sizes of heads: those of models, keys wider than values too.
    for (const auto& [d, d_v] : std::vector<std::pair<int64_t, int64_t>>{{8, 8},
                                                                         {40, 40},
                                                                         {64, 64},
                                                                         {72, 72},
                                                                         {80, 80},
                                                                         {96, 96},
                                                                         {128, 128},
                                                                         {192, 128},
                                                                         {192, 192},
                                                                         {256, 256},
                                                                         {576, 512}})
      for (const int64_t n_q : {1, 32})
        for (const int64_t kv_heads : {1, 4})
          add({.k_type = type,
               .v_type = type,
               .d = d,
               .d_v = d_v,
               .heads = 4,
               .kv_heads = kv_heads,
               .n_q = n_q,
               .n_kv = 512});
    // Masks, with all that goes with them.
    for (const MaskKind mask :
         {MaskKind::none, MaskKind::causal, MaskKind::window, MaskKind::sequences, MaskKind::interleaved,
          MaskKind::packed, MaskKind::alibi, MaskKind::random, MaskKind::empty_rows})
      for (const int64_t n_q : {1, 3, 32, 75})
        for (const int64_t n_kv : {113, 512, 1024})
          for (const float softcap : {0.0f, 10.0f})
            for (const bool sinks : {false, true})
              add({.k_type = type,
                   .v_type = type,
                   .d = 64,
                   .d_v = 64,
                   .heads = 8,
                   .kv_heads = 2,
                   .n_q = n_q,
                   .n_kv = n_kv,
                   .mask = mask,
                   .softcap = softcap,
                   .sinks = sinks});
    // Streams, and heads that are no power of two.
    for (const MaskKind mask :
         {MaskKind::none, MaskKind::causal, MaskKind::window, MaskKind::alibi, MaskKind::random})
      for (const int64_t n_q : {1, 40})
        for (const auto& [heads, kv_heads] : std::vector<std::pair<int64_t, int64_t>>{{6, 2}, {12, 12}})
          add({.k_type = type,
               .v_type = type,
               .heads = heads,
               .kv_heads = kv_heads,
               .n_q = n_q,
               .n_kv = 320,
               .streams = 3,
               .mask = mask});
  }
  return all;
}

/// The sum of squared differences over the sum of squares.
double normalised_error(const std::vector<float>& expected, const std::vector<float>& seen) {
  double error = 0, size = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double difference = double(seen[i]) - double(expected[i]);
    error += difference * difference;
    size += double(expected[i]) * double(expected[i]);
  }
  return size == 0 ? error : error / size;
}

int test(ggml_backend_t cpu, ggml_backend_t backend, ggml_backend_dev_t device, fastrope_ggml_stats_t stats) {
  int failed = 0, ran = 0;
  double largest[GGML_TYPE_COUNT] = {};
  for (const Case& c : cases()) {
    Operation operation(c);
    const bool claimed = ggml_backend_dev_supports_op(device, operation.node());
    operation.compute(cpu);
    const std::vector<float> expected = operation.result();
    operation.clear();  // NaN
    const bool computed = claimed && operation.compute(backend);
    const double error = computed ? normalised_error(expected, operation.result()) : INFINITY;
    if (!(error <= kBound)) {
      ++failed;
      std::printf("FAILED %s: %s %.2e\n", to_string(c).c_str(), claimed ? "error" : "is not claimed", error);
    }
    ++ran;
    double& most = largest[c.k_type == c.v_type ? c.k_type : GGML_TYPE_COUNT - 1];
    most = std::max(most, error);
  }
  const fastrope_ggml_stats s = stats();
  std::printf("%d cases, %d failed; normalised squared error at most", ran, failed);
  for (const ggml_type type : kTypes) std::printf(" %.1e (%s),", largest[type], ggml_type_name(type));
  std::printf(" %.1e (mixed), bound %.0e\n", largest[GGML_TYPE_COUNT - 1], kBound);
  std::printf("fastrope ran %lld nodes in %.1f s: planes %lld runs, %lld of ranges, %lld dense\n",
              (long long)s.nodes, s.seconds, (long long)s.runs, (long long)s.ranges, (long long)s.dense);
  const bool all_ran = s.nodes == ran && s.runs > 0 && s.ranges > 0 && s.dense > 0;
  if (!all_ran) std::printf("FAILED: not every kind of mask ran\n");
  return failed == 0 && all_ran ? 0 : 1;
}

/// A backend that is told a tolerance, or null where it refuses that.
ggml_backend_t backend_with(ggml_backend_dev_t device, const char* tolerance) {
  setenv("FASTROPE_TOLERANCE", tolerance, 1);
  ggml_backend_t backend = ggml_backend_dev_init(device, nullptr);
  unsetenv("FASTROPE_TOLERANCE");
  return backend;
}

/// With a tolerance: small entries take a fast path and stay within it, large ones do not, and the summary
/// says why; single steps, and all without a tolerance, are what they were, bit for bit.
int test_tolerance(ggml_backend_t exact, ggml_backend_dev_t device, fastrope_ggml_stats_t stats,
                   fastrope_ggml_summary_t summary) {
  constexpr double kTolerance = 1e-2;
  int failed = 0;
  const auto report = [&](bool passed, const std::string& what) {
    std::printf("%s tolerance, %s\n", passed ? "  ok    " : "  FAILED", what.c_str());
    failed += !passed;
  };
  ggml_backend_t fast = backend_with(device, "1e-2"), zero = backend_with(device, "0");
  report(backend_with(device, "-1") == nullptr && backend_with(device, "some") == nullptr,
         "what is none is refused");
  double milliseconds = 0;  // of the last operation, the least of several times
  const auto result_by = [&](Operation& operation, ggml_backend_t by) {
    operation.clear();  // NaN
    milliseconds = INFINITY;
    for (int round = 0; round < 3; ++round) {
      const auto begin = std::chrono::steady_clock::now();
      operation.compute(by);
      const std::chrono::duration<double, std::milli> time = std::chrono::steady_clock::now() - begin;
      milliseconds = std::min(milliseconds, time.count());
    }
    return operation.result();
  };
  for (const ggml_type type : {GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_Q8_0})
    for (const MaskKind mask : {MaskKind::none, MaskKind::causal, MaskKind::window}) {
      Case c{.k_type = type, .v_type = type, .n_q = 512, .n_kv = 16384, .mask = mask};
      c.window = 10000;
      c.entries = 0.1f;
      Operation small(c);
      const fastrope_ggml_stats before = stats();
      const std::vector<float> expected = result_by(small, exact);
      const double exact_milliseconds = milliseconds;
      const std::vector<float> seen = result_by(small, fast);
      const fastrope_ggml_stats after = stats();
      double off = 0;
      for (size_t i = 0; i < expected.size(); ++i)
        off = std::max(off, std::isnan(seen[i]) ? INFINITY : std::abs(double(seen[i]) - double(expected[i])));
      off /= small.largest_value();
      const int64_t took = after.polynomial - before.polynomial + after.toeplitz - before.toeplitz;
      char text[96];
      std::snprintf(text, sizeof text, ": off by %.1e max|V|, %d of %d heads fast; %.1f ms for %.1f", off,
                    int(took / 3), int(c.heads), milliseconds, exact_milliseconds);
      report(off <= kTolerance && took == 3 * c.heads, to_string(c) + text);
      report(result_by(small, zero) == expected, "of 0, the same");
      c.entries = 1;
      Operation large(c);
      const fastrope_ggml_stats then = stats();
      report(result_by(large, fast) == result_by(large, exact) && stats().exact - then.exact == 3 * c.heads,
             "entries of 1 are exact, the same");
      c.entries = 0.1f;
      c.n_q = 1;
      Operation step(c);
      report(result_by(step, fast) == result_by(step, exact) && stats().exact == then.exact + 3 * c.heads,
             "a step is exact, the same");
    }
  std::string text(1 << 14, '\0');
  text.resize(summary(text.data(), text.size()));
  report(text.find(" heads exact: polynomial: a rank of #") != std::string::npos, "the summary says why not");
  std::printf("%s", text.c_str());
  ggml_backend_free(zero);
  ggml_backend_free(fast);
  return failed == 0 ? 0 : 1;
}

/// Floats that are cast to F16 before are read as they were, if they are still there.
int test_casts(ggml_backend_t cpu, ggml_backend_t backend) {
  Case c{.k_type = GGML_TYPE_F32, .v_type = GGML_TYPE_F32, .n_q = 75, .n_kv = 256};
  Operation floats(c);
  floats.compute(backend);
  c.casts = true;
  Operation cast(c);
  cast.compute(cpu);
  cast.compute(backend);
  const bool reads_floats = cast.result() == floats.result();
  cast.make_transient();
  cast.compute(backend);
  const double error = normalised_error(floats.result(), cast.result());
  const bool passed = reads_floats && error > 0 && error <= kBound;
  std::printf("%s casts to F16, read as floats: the same; as F16: normalised squared error %.1e\n",
              passed ? "  ok    " : "  FAILED", error);
  return passed ? 0 : 1;
}

/// Milliseconds of one operation by each backend, in turns; medians.
void bench(ggml_backend_t cpu, ggml_backend_t backend, ggml_backend_set_n_threads_t set_threads, int64_t d) {
  std::printf("%-100s threads   ggml ms  fastrope ms\n", "");
  const auto time = [](Operation& operation, ggml_backend_t by) {
    const auto begin = std::chrono::steady_clock::now();
    operation.compute(by);
    return 1e3 * std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  };
  for (const int threads : {1, 2})
    for (const int64_t n_q : {512, 4, 1})
      for (const MaskKind mask : {MaskKind::causal, MaskKind::interleaved, MaskKind::packed})
        for (const int64_t n_kv : {1024, 4096, 16384}) {
          const Case c{.d = d,
                       .d_v = d,
                       .heads = 1024 / d,
                       .kv_heads = d == 64 ? 8 : 2,
                       .n_q = n_q,
                       .n_kv = n_kv,
                       .mask = mask};
          Operation operation(c);
          ggml_backend_cpu_set_n_threads(cpu, threads);
          set_threads(backend, threads);
          std::vector<double> times[2];
          for (int round = 0; round < (n_q == 512 ? 3 : 15); ++round) {
            times[0].push_back(time(operation, cpu));
            times[1].push_back(time(operation, backend));
          }
          for (std::vector<double>& of : times)
            std::nth_element(of.begin(), of.begin() + std::ssize(of) / 2, of.end());
          std::printf("%-100s %7d %9.3f %12.3f\n", to_string(c).c_str(), threads,
                      times[0][times[0].size() / 2], times[1][times[1].size() / 2]);
          std::fflush(stdout);
        }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) return std::fprintf(stderr, "usage: test_ops libfastrope_ggml.so\n"), 2;
  ggml_backend_reg_t reg = ggml_backend_load(argv[1]);
  if (reg == nullptr) return 1;
  ggml_backend_dev_t device = ggml_backend_reg_dev_get(reg, 0);
  const auto stats =
      reinterpret_cast<fastrope_ggml_stats_t>(ggml_backend_reg_get_proc_address(reg, "fastrope_ggml_stats"));
  ggml_backend_t cpu = ggml_backend_cpu_init(), backend = ggml_backend_dev_init(device, nullptr);
  ggml_backend_cpu_set_n_threads(cpu, 1);
  if (argc > 2 && std::strcmp(argv[2], "--bench") == 0) {
    const auto set_threads = reinterpret_cast<ggml_backend_set_n_threads_t>(
        ggml_backend_reg_get_proc_address(reg, "ggml_backend_set_n_threads"));
    return bench(cpu, backend, set_threads, argc > 3 ? std::atoi(argv[3]) : 64), 0;
  }
  const auto summary = reinterpret_cast<fastrope_ggml_summary_t>(
      ggml_backend_reg_get_proc_address(reg, "fastrope_ggml_summary"));
  const int result = test(cpu, backend, device, stats) | test_casts(cpu, backend) |
                     test_tolerance(backend, device, stats, summary);
  ggml_backend_free(backend);
  ggml_backend_free(cpu);
  return result;
}
