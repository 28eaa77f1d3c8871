// Any bytes make calls of the C interface: structs whose members are what a caller may have got wrong, over
// memory that is exactly as large as they say. Every call gives a status with a message, or did what it says;
// what is given back is freed. The sanitizers see the rest.
//
// libFuzzer's interface; replay.cpp runs it where there is no libFuzzer.
#include <fastrope/fastrope.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <span>
#include <string>
#include <vector>

#include "../fuzz/bytes.hpp"

namespace {

using fastrope::Index;
using fastrope_test::Bytes;

[[noreturn]] void fail(const std::string& what) {
  std::fprintf(stderr, "%s (last message: %s)\n", what.c_str(), fastrope_last_error());
  std::abort();
}

/// Whether it is FASTROPE_OK. Of all others there is a message; INTERNAL_ERROR should not be.
bool ok(fastrope_status status, const char* call) {
  if (status == FASTROPE_OK) return true;
  if (status < FASTROPE_OK || status >= FASTROPE_NO_TARGET || *fastrope_last_error() == '\0')
    fail(std::string(call) + " gives status " + std::to_string(status));
  return false;
}

/// What a type takes for `cols` numbers.
std::size_t bytes_of(fastrope_type type, Index cols) {
  const auto n = static_cast<std::size_t>(cols);
  switch (type) {
    case FASTROPE_F64:
      return 8 * n;
    case FASTROPE_F32:
      return 4 * n;
    case FASTROPE_BF16:
    case FASTROPE_F16:
      return 2 * n;
    case FASTROPE_Q8_0:
      return n / 32 * 34;
    case FASTROPE_Q4_0:
      return n / 32 * 18;
    default:
      return n;
  }
}

/// The arithmetic of tensors of a type, of which lse is.
fastrope_type real_of(fastrope_type type) { return type == FASTROPE_F64 ? FASTROPE_F64 : FASTROPE_F32; }

/// A call's tensors and options, and the memory that they point to.
class Caller {
 public:
  explicit Caller(Bytes& bytes) : bytes_(bytes) {}

  /// A size as it is, or now and then another small one.
  Index about(Index size) { return bytes_.one_in(40) ? size + bytes_.integer(-3, 3) : size; }

  void* memory(std::size_t size) {
    memory_.emplace_back(size);
    return memory_.back().data();
  }
  template <class T>
  T* numbers(Index count, double size) {
    if (count <= 0) return nullptr;
    T* const x = static_cast<T*>(memory(static_cast<std::size_t>(count) * sizeof(T)));
    std::uint32_t state = bytes_.next() + 1;
    for (Index i = 0; i < count; ++i) {
      state = state * 1664525U + 1013904223U;
      x[i] = static_cast<T>(size * (static_cast<double>(state >> 8) / (1 << 23) - 1));
    }
    if (bytes_.one_in(12))
      x[bytes_.integer(0, 255) % count] = static_cast<T>(bytes_.one_of({1e30, -1e9, 0.0}));
    return x;
  }

  /// Elements of types that are not numbers of C are any bits, small ones.
  void* elements(fastrope_type type, Index count) {
    if (type == FASTROPE_F32) return numbers<float>(count, 1);
    if (type == FASTROPE_F64) return numbers<double>(count, 1);
    auto* const x = static_cast<unsigned char*>(memory(bytes_of(type, count)));
    std::uint32_t state = bytes_.next() + 1;
    for (std::size_t i = 0; i < bytes_of(type, count); ++i) {
      state = state * 1664525U + 1013904223U;
      x[i] = static_cast<unsigned char>(type == FASTROPE_BOOL ? state >> 31 : (state >> 24) & 0x3fU);
    }
    return x;
  }

  fastrope_tensor tensor(fastrope_type type, Index heads, Index rows, Index cols) {
    fastrope_tensor x = {};
    x.type = bytes_.one_in(60) ? static_cast<fastrope_type>(bytes_.integer(-1, 12)) : type;
    x.heads = about(heads);
    x.rows = about(rows);
    x.cols = about(cols);
    const bool blocks = x.type == FASTROPE_Q8_0 || x.type == FASTROPE_Q4_0;
    const Index least = std::max<Index>(0, x.cols), unit = blocks ? 32 : 1;
    x.row_stride = least / unit + (blocks ? 0 : bytes_.integer(0, 2));
    x.head_stride = std::max<Index>(0, x.rows) * x.row_stride;
    const Index count = std::max<Index>(0, x.heads) * x.head_stride * unit;
    x.data = bytes_.one_in(60) ? nullptr : elements(x.type, count);
    return x;
  }
  /// Keys or values, of [heads, rows, cols], some in pages, some with scales.
  fastrope_tensor cache(fastrope_type type, Index heads, Index rows, Index cols) {
    fastrope_tensor x = tensor(type, heads, rows, cols);
    if (x.rows < 0 || x.heads < 0 || x.cols < 0) return x;
    if (bytes_.one_in(4)) {  // a page of all rows, so many times
      x.page_rows = bytes_.integer(1, 9);
      const Index pages = (x.rows + x.page_rows - 1) / x.page_rows;
      x.page_count = about(pages);
      x.head_stride = x.page_rows * x.row_stride;
      x.page_stride = x.heads * x.head_stride;
      const bool blocks = x.type == FASTROPE_Q8_0 || x.type == FASTROPE_Q4_0;
      x.data = elements(x.type, 3 * x.page_stride * (blocks ? 32 : 1));
      const Index listed = std::max<Index>(1, x.page_count);
      auto* const list = static_cast<std::int32_t*>(memory(static_cast<std::size_t>(listed) * 4));
      for (Index p = 0; p < listed; ++p) list[p] = static_cast<std::int32_t>(bytes_.integer(0, 2));
      x.pages = list;
    }
    if (type == FASTROPE_I8 || bytes_.one_in(20)) {
      const Index rows_of_scales = x.pages == nullptr ? x.rows : 3 * x.page_rows;
      if (bytes_.one_in(2)) {
        x.row_scale_count = x.row_scale_stride = about(rows_of_scales);
        x.row_scales = numbers<float>(x.heads * std::max<Index>(0, x.row_scale_stride), 0.1);
      } else {
        x.column_scale_stride = x.cols;
        x.column_scales = numbers<float>(x.heads * x.cols, 0.1);
      }
    }
    return x;
  }
  fastrope_matrix matrix(fastrope_type type, Index rows, Index cols) {
    fastrope_matrix x = {};
    x.rows = about(rows);
    x.cols = about(cols);
    x.row_stride = std::max<Index>(0, x.cols);
    x.data = elements(type, std::max<Index>(0, x.rows) * x.row_stride);
    return x;
  }

  fastrope_places* places(Index heads, Index kv_heads, Index n_q, Index n_k) {
    auto* const p = static_cast<fastrope_places*>(memory(sizeof(fastrope_places)));
    p->struct_size = sizeof *p;
    const auto positions = [&](const std::int64_t*& list, std::int64_t& count, Index n) {
      if (!bytes_.one_in(4)) return;
      count = about(n);
      auto* const made =
          static_cast<std::int64_t*>(memory(static_cast<std::size_t>(std::max<Index>(1, count)) * 8));
      for (Index i = 0; i < count; ++i) made[i] = i * bytes_.integer(-1, 3) + bytes_.integer(-4, 4);
      if (bytes_.one_in(9) && count > 0) made[0] = static_cast<std::int64_t>(bytes_.word());
      list = made;
    };
    positions(p->query_positions, p->query_position_count, n_q);
    positions(p->key_positions, p->key_position_count, n_k);
    if (bytes_.one_in(4)) {
      p->key_ranges_per_row = bytes_.integer(0, 3);
      p->key_range_count = about(n_q * p->key_ranges_per_row * (bytes_.one_in(2) ? heads : 1));
      auto* const list = static_cast<fastrope_range*>(
          memory(static_cast<std::size_t>(std::max<Index>(1, p->key_range_count)) * sizeof(fastrope_range)));
      for (Index r = 0; r < p->key_range_count; ++r) {
        list[r].begin = bytes_.integer(0, std::max<Index>(1, n_k));
        list[r].end = list[r].begin + bytes_.integer(-1, 40);
      }
      p->key_ranges = list;
    }
    if (bytes_.one_in(6))
      p->dense_bias = tensor(bytes_.one_of({FASTROPE_F32, FASTROPE_BF16}), heads, n_q, n_k);
    if (bytes_.one_in(6)) p->dense_mask = tensor(FASTROPE_BOOL, heads, n_q, n_k);
    if (p->dense_mask.type != FASTROPE_BOOL) p->dense_mask = {};  // of bytes that are no bool
    if (bytes_.one_in(4)) {
      p->log_gates = matrix(FASTROPE_F32, bytes_.one_in(2) ? heads : kv_heads, n_k);
      auto* const gates = static_cast<float*>(p->log_gates.data);
      for (Index i = 0; gates != nullptr && i < p->log_gates.rows * p->log_gates.cols && !bytes_.one_in(200);
           ++i)
        gates[i] = -std::abs(gates[i]);
    }
    if (bytes_.one_in(8)) p->log_input_gates = matrix(FASTROPE_F32, bytes_.one_in(2) ? heads : kv_heads, n_k);
    return p;
  }

  fastrope_options* options(Index heads, Index kv_heads, Index n_q, Index n_k, Index d) {
    auto* const o = static_cast<fastrope_options*>(memory(sizeof(fastrope_options)));
    o->struct_size = bytes_.one_in(60) ? static_cast<std::size_t>(bytes_.integer(0, 12)) : sizeof *o;
    o->tolerance = bytes_.number({0.0, 0.0, 1e-1, 1e-2, 1e-3});
    if (bytes_.one_in(6)) o->path = static_cast<fastrope_path>(bytes_.integer(-1, 4));
    if (bytes_.one_in(2)) o->rope = rope(d);
    o->mask.kind = static_cast<fastrope_mask_kind>(bytes_.one_in(60) ? 3 : bytes_.integer(0, 2));
    o->mask.first = bytes_.integer(-9, 9);
    o->mask.last =
        bytes_.one_in(30) ? static_cast<std::int64_t>(bytes_.word()) : o->mask.first + bytes_.integer(-1, 60);
    if (bytes_.one_in(4)) bias(o->bias, heads);
    if (bytes_.one_in(12)) weights(o->weights, d);
    o->has_scale = bytes_.one_in(3);
    o->scale = bytes_.number({0.1, 0.01, -1.0, 1.0});
    if (bytes_.one_in(8)) o->softcap = bytes_.number({5.0, 50.0});
    if (bytes_.one_in(8)) {
      o->sink_count = about(heads);
      o->sinks = numbers<float>(o->sink_count, 2);
    }
    if (bytes_.one_in(3)) {
      o->kernel_count = bytes_.integer(0, 5);
      o->kernel = numbers<double>(std::max<Index>(1, o->kernel_count), 1);
      o->kernel_may_be_negative = bytes_.one_in(2);
      o->normaliser.kind =
          static_cast<fastrope_normaliser_kind>(bytes_.one_in(20) ? 3 : bytes_.integer(0, 2));
      o->normaliser.constant = bytes_.number({0.0, 1.0, 1e-6});
    }
    o->verify = bytes_.integer(-1, 3) * bytes_.one_in(4);
    if (bytes_.one_in(2)) o->places = places(heads, kv_heads, n_q, n_k);
    if (bytes_.one_in(4)) {
      o->executor.workers = bytes_.integer(-1, 3);
      o->executor.context = &bytes_;
      o->executor.parallel_for = bytes_.one_in(9) ? nullptr : bytes_.one_in(9) ? forgetful : backwards;
    }
    if (bytes_.one_in(8)) {
      auto* const rates = static_cast<fastrope_cost_model*>(memory(sizeof(fastrope_cost_model)));
      rates->struct_size = sizeof *rates;
      rates->tile = bytes_.number({0.0, 1e3, 1e12});
      o->cost_model = rates;
    }
    return o;
  }

 private:
  static void backwards(void*, std::int64_t count, fastrope_task task, void* context) {
    for (std::int64_t i = count; i-- > 0;) task(context, i, 0);
  }
  static void forgetful(void*, std::int64_t count, fastrope_task task, void* context) {
    for (std::int64_t i = 1; i < count; ++i) task(context, i, 0);
  }

  fastrope_rope* rope(Index d) {
    auto* const r = static_cast<fastrope_rope*>(memory(sizeof(fastrope_rope)));
    r->struct_size = sizeof *r;
    r->base = bytes_.number({0.0, 10000.0, 100.0});
    r->half_split = bytes_.one_in(2);
    r->scaling = static_cast<fastrope_scaling>(bytes_.one_in(3) ? bytes_.integer(0, 6) : 0);
    r->factor = bytes_.number({2.0, 8.0});
    r->original_context = bytes_.number({64.0, 4096.0});
    r->low_freq_factor = 1;
    r->high_freq_factor = bytes_.number({4.0, 1.0});
    if (bytes_.one_in(4)) r->rotary_dim = bytes_.integer(-1, d + 1);
    if (bytes_.one_in(6)) r->rotary_begin = bytes_.integer(-1, d + 1);
    r->factor_count = about(std::max<Index>(0, d / 2));
    r->factors = numbers<double>(r->factor_count, 3);
    if (bytes_.one_in(8)) {
      r->section_count = bytes_.integer(0, 3);
      auto* const list = static_cast<std::int64_t*>(memory(32));
      for (Index s = 0; s < 3; ++s) list[s] = bytes_.integer(-1, d / 2);
      r->sections = list;
    }
    return r;
  }
  void bias(fastrope_lag_bias& b, Index heads) {
    b.kind = static_cast<fastrope_bias_kind>(bytes_.integer(0, 5));
    b.heads = about(bytes_.one_in(2) ? heads : 1);
    b.value_count = about(b.kind == FASTROPE_BIAS_ALIBI ? b.heads : b.heads * bytes_.integer(1, 40));
    b.values = numbers<double>(b.value_count, 1);
    b.first_lag = bytes_.integer(-40, 9);
    b.t5_bidirectional = bytes_.one_in(2);
    b.t5_max_distance = bytes_.integer(-1, 60);
  }
  void weights(fastrope_relative_weights& w, Index d) {
    w.entries = bytes_.integer(-1, 3);
    w.lags = bytes_.integer(-1, 140);
    w.first_lag = bytes_.integer(-70, 2);
    auto* const pairs = static_cast<std::int64_t*>(memory(6 * 8));
    for (Index s = 0; s < 6; ++s) pairs[s] = about(bytes_.integer(0, std::max<Index>(0, d - 1)));
    w.support = pairs;
    w.values = numbers<double>(std::max<Index>(1, w.entries * w.lags), 1);
  }

  Bytes& bytes_;
  struct Memory {
    explicit Memory(std::size_t size) : data_(std::calloc(size == 0 ? 1 : size, 1)) {}
    ~Memory() { std::free(data_); }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    void* data() const { return data_; }

   private:
    void* data_;
  };
  std::deque<Memory> memory_;
};

void read(const fastrope_report* report) {
  const std::size_t length = fastrope_report_text(report, nullptr, 0);
  std::vector<char> text(length + 1);
  if (length == 0 || fastrope_report_text(report, text.data(), text.size()) != length)
    fail("a report's text");
  if (fastrope_report_json(report, text.data(), 1) == 0 || text[0] != '\0') fail("a report's JSON");
  fastrope_head head = {};
  head.struct_size = sizeof head;
  for (Index h = 0; h < fastrope_report_heads(report); ++h)
    if (!ok(fastrope_report_head(report, h, &head), "report_head") || head.reason == nullptr) fail("a head");
}

constexpr fastrope_type kElements[] = {FASTROPE_F32, FASTROPE_F32, FASTROPE_F64, FASTROPE_BF16, FASTROPE_F16};
constexpr fastrope_type kCached[] = {FASTROPE_F32,  FASTROPE_F32,  FASTROPE_F64,  FASTROPE_BF16, FASTROPE_F16,
                                     FASTROPE_Q8_0, FASTROPE_Q4_0, FASTROPE_E4M3, FASTROPE_E5M2, FASTROPE_I8};

/// The tensors of one call, and its options.
struct Call {
  Index kv_heads, heads, n_q, n_k, d, d_v;
  fastrope_type type;
  fastrope_tensor q, k, v, out;
  const fastrope_options* options;

  Call(Bytes& bytes, Caller& caller)
      : kv_heads(bytes.integer(1, 2)),
        heads(kv_heads * bytes.integer(1, 2)),
        n_q(bytes.one_of<Index>({0, 1, 5, 40, 70})),
        n_k(bytes.one_in(2) ? n_q : bytes.integer(0, 90)),
        d(bytes.one_of<Index>({1, 4, 8, 32})),
        d_v(bytes.one_of<Index>({1, 5, 32})),
        type(kElements[bytes.integer(0, 4)]),
        q(caller.tensor(type, heads, n_q, d)) {
    const fastrope_type of_keys = kCached[bytes.integer(0, 9)], of_values = kCached[bytes.integer(0, 9)];
    k = caller.cache(bytes.one_in(3) ? of_keys : type, kv_heads, n_k, d);
    v = caller.cache(bytes.one_in(3) ? of_values : type, kv_heads, n_k, d_v);
    out = caller.tensor(bytes.one_in(3) ? FASTROPE_F32 : type, heads, n_q, d_v);
    options = bytes.one_in(9) ? nullptr : caller.options(heads, kv_heads, n_q, n_k, d);
  }
};

/// Attends, then plans and runs: both refuse, or give the same bits.
void attend_and_plan(Bytes& bytes) {
  Caller caller(bytes);
  const Call c(bytes, caller);
  fastrope_report* report = nullptr;
  const bool attended = ok(fastrope_attend(&c.q, &c.k, &c.v, &c.out, c.options, &report), "attend");
  if (attended != (report != nullptr)) fail("a report");
  if (attended) read(report);
  fastrope_report_destroy(report);

  fastrope_plan* plan = nullptr;
  const bool planned = ok(fastrope_plan_create(&c.q, &c.k, &c.v, c.options, &plan), "plan_create");
  if (planned != (plan != nullptr)) fail("a plan");
  if (!planned) return;
  read(fastrope_plan_report(plan));
  const std::size_t size = fastrope_plan_workspace_bytes(plan);
  const std::size_t written = bytes_of(c.out.type, c.out.heads * c.out.head_stride);
  const auto* const result = static_cast<const unsigned char*>(c.out.data);
  const std::vector<unsigned char> before =
      attended ? std::vector<unsigned char>(result, result + written) : std::vector<unsigned char>();
  void* const workspace = caller.memory(size);
  if (size > 0 &&
      fastrope_plan_run(plan, &c.q, &c.k, &c.v, &c.out, nullptr, workspace, size - 1, nullptr) == FASTROPE_OK)
    fail("a workspace of a byte too few is taken");
  const bool ran =
      ok(fastrope_plan_run(plan, &c.q, &c.k, &c.v, &c.out, nullptr, workspace, size, nullptr), "run");
  if (attended && !ran) fail("attend does what run does not");
  if (attended && !std::equal(before.begin(), before.end(), result)) fail("attend and run give other bits");
  fastrope_plan_destroy(plan);
}

/// A plan for shapes, and a run of others; parts and their merging.
void capacities_and_parts(Bytes& bytes) {
  Caller caller(bytes);
  const Call c(bytes, caller);
  fastrope_shapes shapes = {c.heads, c.kv_heads, c.n_q, c.n_k, c.d, c.d_v};
  if (bytes.one_in(4)) shapes.n_k = static_cast<std::int64_t>(bytes.word() >> bytes.integer(48, 63));
  if (bytes.one_in(8)) shapes.d = caller.about(shapes.d);
  fastrope_plan* plan = nullptr;
  if (ok(fastrope_plan_create_for_shapes(c.type, &shapes, c.options, &plan), "plan_create_for_shapes")) {
    const std::size_t size = fastrope_plan_workspace_bytes(plan);
    if (size < (std::size_t{1} << 24)) {
      const fastrope_matrix lse = caller.matrix(real_of(c.type), c.heads, c.n_q);
      ok(fastrope_plan_run(plan, &c.q, &c.k, &c.v, &c.out, bytes.one_in(2) ? &lse : nullptr,
                           caller.memory(size), size, nullptr),
         "run");
    }
  }
  fastrope_plan_destroy(plan);

  const fastrope_matrix lse = caller.matrix(real_of(c.q.type), c.heads, c.n_q);
  ok(fastrope_attend_partial(&c.q, &c.k, &c.v, &c.out, &lse, c.options), "attend_partial");
  const fastrope_tensor other = caller.tensor(c.out.type, c.heads, c.n_q, c.d_v);
  const fastrope_matrix sums = caller.matrix(real_of(c.out.type), c.heads, c.n_q),
                        other_sums = caller.matrix(real_of(c.out.type), c.heads, c.n_q);
  ok(fastrope_merge(&c.out, &sums, &other, &other_sums), "merge");
}

void batches(Bytes& bytes) {
  Caller caller(bytes);
  std::vector<fastrope_sequence> sequences;
  std::vector<fastrope_shapes> shapes;
  std::vector<fastrope_places> places;
  const Index count = bytes.integer(0, 3);
  const fastrope_type type = kElements[bytes.integer(0, 4)];
  const Index kv_heads = bytes.integer(1, 2), heads = 2 * kv_heads, d = 8;
  for (Index s = 0; s < count; ++s) {
    const Index n_q = bytes.integer(0, 30), n_k = n_q + bytes.integer(0, 30);
    fastrope_sequence x = {};
    x.q = caller.tensor(type, heads, n_q, d);
    x.k = caller.cache(type, kv_heads, n_k, d);
    x.v = caller.cache(type, kv_heads, n_k, d);
    x.out = caller.tensor(type, heads, n_q, d);
    sequences.push_back(x);
    shapes.push_back({heads, kv_heads, n_q, n_k, d, d});
    places.push_back(*caller.places(heads, kv_heads, n_q, n_k));
  }
  const fastrope_options* const options = caller.options(heads, kv_heads, 10, 20, d);
  const fastrope_places* const own = bytes.one_in(2) && count > 0 ? places.data() : nullptr;
  fastrope_batch* batch = nullptr;
  const bool made =
      bytes.one_in(2)
          ? ok(fastrope_batch_create_for_shapes(type, shapes.data(), count, options, own, &batch),
               "batch of shapes")
          : ok(fastrope_batch_create(sequences.data(), count, options, own, &batch), "batch_create");
  if (!made) return;
  for (Index s = -1; s <= count; ++s)
    if (const fastrope_report* const report = fastrope_batch_report(batch, s)) read(report);
  const std::size_t size = fastrope_batch_workspace_bytes(batch);
  ok(fastrope_batch_run(batch, sequences.data(), count, caller.memory(size), size), "batch_run");
  fastrope_batch_destroy(batch);
}

/// Prompts and tokens, and states that something has written to.
void recurrences(Bytes& bytes) {
  Caller caller(bytes);
  const Index kv_heads = bytes.integer(1, 2), heads = kv_heads * bytes.integer(1, 2), d = bytes.integer(1, 6),
              d_v = bytes.integer(1, 6);
  const fastrope_type type = bytes.one_in(3) ? FASTROPE_F64 : FASTROPE_F32;
  const fastrope_options* const options = caller.options(heads, kv_heads, 0, 0, d);
  fastrope_recurrent* made[2] = {};
  const double radius = bytes.number({0.0, 0.0, 0.5, 2.0});
  for (fastrope_recurrent*& r : made)
    if (!ok(fastrope_recurrent_create(type, heads, kv_heads, d, d_v, options, radius, &r),
            "recurrent_create"))
      return fastrope_recurrent_destroy(made[0]);
  for (int call = 0; call < 3; ++call) {
    const Index n = call == 1 ? 1 : bytes.integer(0, 90);
    const fastrope_tensor q = caller.tensor(type, heads, n, d), k = caller.cache(type, kv_heads, n, d),
                          v = caller.cache(type, kv_heads, n, d_v), out = caller.tensor(type, heads, n, d_v);
    fastrope_matrix gates = caller.matrix(FASTROPE_F32, kv_heads, n);
    const fastrope_matrix* const given = bytes.one_in(3) ? &gates : nullptr;
    for (Index i = 0; gates.data != nullptr && i < gates.rows * gates.cols; ++i)
      static_cast<float*>(gates.data)[i] = -std::abs(static_cast<float*>(gates.data)[i]);
    ok(call == 1 ? fastrope_recurrent_step(made[0], &q, &k, &v, &out, given, nullptr)
                 : fastrope_recurrent_prefill(made[0], &q, &k, &v, &out, given, nullptr),
       "prefill or step");
    const fastrope_matrix bounds = fastrope_recurrent_row_bounds(made[0]);
    for (Index h = 0; h < bounds.rows; ++h)
      for (Index i = 0; i < bounds.cols; ++i)
        if (std::isnan(static_cast<const double*>(bounds.data)[h * bounds.row_stride + i]))
          fail("a bound is no number");
  }
  const std::size_t size = fastrope_recurrent_state_bytes(made[0]);
  auto* const state = static_cast<unsigned char*>(caller.memory(size));
  if (ok(fastrope_recurrent_save(made[0], state, size), "save") && size > 0) {
    for (Index changes = bytes.integer(0, 3); changes > 0; --changes)
      state[bytes.word() % size] = static_cast<unsigned char>(bytes.next());
    const std::size_t given = bytes.one_in(9) ? bytes.word() % size : size;
    if (ok(fastrope_recurrent_load(made[1], state, given), "load")) {
      const fastrope_tensor q = caller.tensor(type, heads, 1, d), k = caller.tensor(type, kv_heads, 1, d),
                            v = caller.tensor(type, kv_heads, 1, d_v),
                            out = caller.tensor(type, heads, 1, d_v);
      ok(fastrope_recurrent_step(made[1], &q, &k, &v, &out, nullptr, nullptr), "step of a loaded state");
    }
  }
  for (fastrope_recurrent* r : made) fastrope_recurrent_destroy(r);
}

void matrices_and_storage(Bytes& bytes) {
  Caller caller(bytes);
  const fastrope_type type = bytes.one_of({FASTROPE_F32, FASTROPE_F64});
  const Index rows = bytes.integer(0, 40), cols = bytes.integer(0, 40), columns = bytes.integer(0, 3);
  const fastrope_matrix generators =
      caller.matrix(type, bytes.one_in(2) ? columns : 1, std::max<Index>(0, rows + cols - 1));
  fastrope_toeplitz* t = nullptr;
  if (ok(fastrope_toeplitz_create(type, rows, cols, &generators, &t), "toeplitz_create")) {
    const fastrope_matrix x = caller.matrix(type, cols, columns), y = caller.matrix(type, rows, columns);
    const fastrope_matrix u = caller.matrix(type, rows, 2), v = caller.matrix(type, cols, 2);
    ok(fastrope_toeplitz_apply(t, &x, &y, nullptr), "apply");
    ok(fastrope_toeplitz_apply_transpose(t, &y, &x, nullptr), "apply_transpose");
    ok(fastrope_toeplitz_apply_hadamard(t, &u, &v, &x, &y, nullptr), "apply_hadamard");
  }
  fastrope_toeplitz_destroy(t);

  const auto to = static_cast<fastrope_type>(bytes.integer(-1, 12));
  const Index count = 32 * bytes.integer(0, 3) + bytes.integer(0, 1);
  float* const x = caller.numbers<float>(count, 3);
  void* const blocks = caller.memory(bytes_of(to, count) + 34);
  if (ok(fastrope_quantize(to, x, count, blocks), "quantize"))
    ok(fastrope_dequantize(to, blocks, count, x), "dequantize");
  auto* const integers = static_cast<std::int8_t*>(caller.memory(static_cast<std::size_t>(count)));
  float* const scales = caller.numbers<float>(count, 1);
  ok(fastrope_quantize_rows(x, 1, count, integers, scales), "quantize_rows");
  ok(fastrope_quantize_columns(x, 1, count, integers, scales), "quantize_columns");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Bytes bytes({data, size});
  switch (bytes.integer(0, 7)) {
    case 0:
      capacities_and_parts(bytes);
      break;
    case 1:
      batches(bytes);
      break;
    case 2:
    case 3:
      recurrences(bytes);
      break;
    case 4:
      matrices_and_storage(bytes);
      break;
    default:
      attend_and_plan(bytes);
  }
  return 0;
}
