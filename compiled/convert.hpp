// From the structs of fastrope.h to what the headers take. Throws Error, naming the member and its value, for
// what no struct may hold; whether shapes and options go together is for the headers to say.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include "fastrope/fastrope.h"
#include "fastrope/fastrope.hpp"

namespace fastrope::c {

static_assert(sizeof(fastrope_range) == sizeof(Range) && sizeof(Range) == 2 * sizeof(std::int64_t));
static_assert(sizeof(bool) == 1);
static_assert(FASTROPE_PROMISE_BROKEN == static_cast<int>(RunStatus::promise_broken));
static_assert(FASTROPE_PATH_TOEPLITZ == static_cast<int>(Path::toeplitz));

template <class T>
const T& require(const char* name, const T* given) {
  if (given == nullptr) detail::fail(name, " is NULL");
  return *given;
}

/// The struct as this library knows it: what the caller does not know is zero, the default.
template <class T>
T whole(const char* name, const T& given) {
  const std::size_t size = given.struct_size;
  if (size < sizeof size) detail::fail(name, ".struct_size is ", size, ", and is to be sizeof(", name, ")");
  const auto* bytes = reinterpret_cast<const unsigned char*>(&given);
  for (std::size_t i = sizeof(T); i < size; ++i)
    if (bytes[i] != 0)
      detail::fail(name, " has ", size, " bytes, this library knows ", sizeof(T), " and cannot do what byte ",
                   i, " asks for");
  T known{};
  std::memcpy(&known, &given, std::min(size, sizeof(T)));
  return known;
}

/// data [count], of which NULL has none.
template <class T, class U>
std::span<const T> span_of(const char* name, const U* data, std::int64_t count) {
  static_assert(sizeof(T) == sizeof(U));
  if (count < 0 || (data == nullptr && count > 0)) detail::fail(name, " is NULL or of ", count, " elements");
  return {reinterpret_cast<const T*>(data), data == nullptr ? 0 : static_cast<std::size_t>(count)};
}

// ---- tensors ----

template <class T>
TensorView<T> view_of(const fastrope_tensor& x) {
  return {static_cast<T*>(x.data), x.heads, x.rows, x.cols, x.head_stride, x.row_stride};
}
template <class T>
MatrixView<T> view_of(const fastrope_matrix& x) {
  return {static_cast<T*>(x.data), x.rows, x.cols, x.row_stride};
}

/// f(std::type_identity<T>{}) for the type of q's or out's elements.
template <class F>
auto with_element(const char* name, fastrope_type type, F&& f) {
  switch (type) {
    case FASTROPE_F32:
      return f(std::type_identity<float>{});
    case FASTROPE_F64:
      return f(std::type_identity<double>{});
    case FASTROPE_BF16:
      return f(std::type_identity<bfloat16>{});
    case FASTROPE_F16:
      return f(std::type_identity<float16>{});
    default:
      detail::fail(name, " is of type ", static_cast<int>(type), ", and may be F32, F64, BF16 or F16");
  }
}
/// The same of keys and values.
template <class F>
auto with_cache_element(const char* name, fastrope_type type, F&& f) {
  switch (type) {
    case FASTROPE_I8:
      return f(std::type_identity<std::int8_t>{});
    case FASTROPE_E4M3:
      return f(std::type_identity<float8_e4m3>{});
    case FASTROPE_E5M2:
      return f(std::type_identity<float8_e5m2>{});
    case FASTROPE_Q8_0:
      return f(std::type_identity<Q8_0>{});
    case FASTROPE_Q4_0:
      return f(std::type_identity<Q4_0>{});
    case FASTROPE_BOOL:
      detail::fail(name, " is of type BOOL, which only a dense mask is");
    default:
      return with_element(name, type, f);
  }
}

inline void require_plain(const char* name, const fastrope_tensor& x) {
  if (x.pages != nullptr || x.row_scales != nullptr || x.column_scales != nullptr)
    detail::fail(name, " has pages or scales, which keys and values alone may have");
}
inline bool is_scaled(const fastrope_tensor& x) {
  return x.row_scales != nullptr || x.column_scales != nullptr;
}

inline StoredRows queries(const fastrope_tensor* given) {
  const fastrope_tensor& q = require("q", given);
  require_plain("q", q);
  return with_element("q", q.type,
                      [&]<class T>(std::type_identity<T>) { return StoredRows(view_of<const T>(q)); });
}
inline OutputRows output(const fastrope_tensor* given) {
  const fastrope_tensor& out = require("out", given);
  require_plain("out", out);
  return with_element("out", out.type,
                      [&]<class T>(std::type_identity<T>) { return OutputRows(view_of<T>(out)); });
}
/// Keys or values, as Rows: StoredRows, KeyRows or ValueRows.
template <class Rows>
Rows cached(const char* name, const fastrope_tensor* given) {
  const fastrope_tensor& x = require(name, given);
  const auto scaled = [&](const auto& view) -> Rows {
    if (!is_scaled(x)) return view;
    MatrixView<const float> of_rows, of_columns;
    if (x.row_scales != nullptr) of_rows = {x.row_scales, x.heads, x.row_scale_count, x.row_scale_stride};
    if (x.column_scales != nullptr) of_columns = {x.column_scales, x.heads, x.cols, x.column_scale_stride};
    return ScaledView{view, of_rows, of_columns};
  };
  return with_cache_element(name, x.type, [&]<class T>(std::type_identity<T>) -> Rows {
    if (x.pages == nullptr) return scaled(view_of<const T>(x));
    return scaled(PagedView<const T>{static_cast<const T*>(x.data), x.heads, x.rows, x.cols, x.page_rows,
                                     span_of<std::int32_t>("pages", x.pages, x.page_count), x.page_stride,
                                     x.head_stride, x.row_stride});
  });
}

/// lse may be NULL. Of a call whose arithmetic is in Real.
template <class Real>
ExactTensors<Real> tensors(const fastrope_tensor* q, const fastrope_tensor* k, const fastrope_tensor* v,
                           const fastrope_tensor* out, const fastrope_matrix* lse) {
  return {queries(q), cached<KeyRows<Real>>("k", k), cached<ValueRows<Real>>("v", v), output(out),
          lse == nullptr ? MatrixView<Real>() : view_of<Real>(*lse)};
}
template <class Real>
ExactTensors<Real> tensors(const fastrope_sequence& x) {
  return tensors<Real>(&x.q, &x.k, &x.v, &x.out, &x.lse);
}

/// Whether products of bfloat16 may serve.
inline bool are_pairs(const fastrope_tensor& q, const fastrope_tensor& k, const fastrope_tensor& v) {
  return simd::kBfloat16Products && q.type == FASTROPE_BF16 && k.type == FASTROPE_BF16 &&
         v.type == FASTROPE_BF16 && !is_scaled(k) && !is_scaled(v);
}
template <class Real>
Storage storage(const fastrope_tensor& q, const fastrope_tensor& k, const fastrope_tensor& v,
                fastrope_type out) {
  const double rounding = with_element("out", out, []<class T>(std::type_identity<T>) {
    return std::is_same_v<T, Real> ? 0 : kStoredType<T>.rounding;
  });
  return {are_pairs(q, k, v), rounding};
}

/// f(std::type_identity<Real>{}) for the arithmetic of tensors whose q is of a type.
template <class F>
auto with_arithmetic(fastrope_type type, F&& f) {
  return with_element(
      "q", type, [&]<class T>(std::type_identity<T>) { return f(std::type_identity<ArithmeticOf<T>>{}); });
}
/// f(std::type_identity<Operand>{}), Operand as OperandOf has it.
template <class Real, class F>
auto with_operand(bool pairs, F&& f) {
  if constexpr (simd::kBfloat16Products && std::is_same_v<Real, float>)
    if (pairs) return f(std::type_identity<bfloat16>{});
  return f(std::type_identity<Real>{});
}

inline Shapes shapes(const fastrope_shapes& s) { return {s.heads, s.kv_heads, s.n_q, s.n_k, s.d, s.d_v}; }

// ---- options ----

inline Executor executor(const fastrope_executor& e) {
  if (e.workers == 0) return Executor::serial();
  if (e.parallel_for == nullptr) detail::fail("executor.parallel_for is NULL for ", e.workers, " workers");
  return {e.workers, [e](Index count, TaskRef task) {
            const auto run = [](void* context, std::int64_t i, std::int64_t worker) {
              (*static_cast<const TaskRef*>(context))(i, worker);
            };
            e.parallel_for(e.context, count, run, &task);
          }};
}

inline RopeScaling scaling(const fastrope_rope& r) {
  switch (r.scaling) {
    case FASTROPE_SCALING_NONE:
      return {};
    case FASTROPE_SCALING_LINEAR:
      return LinearScaling{r.factor};
    case FASTROPE_SCALING_NTK:
      return NtkScaling{r.factor};
    case FASTROPE_SCALING_YARN: {
      YarnScaling yarn{
          .factor = r.factor, .original_context = r.original_context, .truncate = r.keep_ramp_ends == 0};
      if (r.beta_fast != 0) yarn.beta_fast = r.beta_fast;
      if (r.beta_slow != 0) yarn.beta_slow = r.beta_slow;
      if (r.attention_factor != 0) yarn.attention_factor = r.attention_factor;
      return yarn;
    }
    case FASTROPE_SCALING_LLAMA3:
      return Llama3Scaling{r.factor, r.low_freq_factor, r.high_freq_factor, r.original_context};
    case FASTROPE_SCALING_FACTORS: {
      const auto factors = span_of<double>("rope.factors", r.factors, r.factor_count);
      return FactorScaling{{factors.begin(), factors.end()},
                           r.attention_factor == 0 ? 1 : r.attention_factor};
    }
  }
  detail::fail("rope.scaling is ", static_cast<int>(r.scaling), ", which is none");
}

inline Rope rope(const fastrope_rope& given) {
  const fastrope_rope r = whole("rope", given);
  const auto sections = span_of<Index>("rope.sections", r.sections, r.section_count);
  return {
      .base = r.base == 0 ? Rope{}.base : r.base,
      .pairing = r.half_split != 0 ? RopePairing::half_split : RopePairing::interleaved,
      .rotary_dim = r.rotary_dim,
      .scaling = scaling(r),
      .rotary_begin = r.rotary_begin,
      .sections = {sections.begin(), sections.end()},
      .section_order = r.sections_interleaved != 0 ? SectionOrder::interleaved : SectionOrder::consecutive};
}

inline Mask mask(const fastrope_mask& m) {
  switch (m.kind) {
    case FASTROPE_MASK_FULL:
      return Mask::full();
    case FASTROPE_MASK_CAUSAL:
      return Mask::causal();
    case FASTROPE_MASK_LAGS:
      return Mask::lags(m.first, m.last);
  }
  detail::fail("mask.kind is ", static_cast<int>(m.kind), ", which is none");
}

inline LagBias bias(const fastrope_lag_bias& b) {
  const auto values = span_of<double>("bias.values", b.values, b.value_count);
  switch (b.kind) {
    case FASTROPE_BIAS_NONE:
      return LagBias::none();
    case FASTROPE_BIAS_ALIBI:
      return LagBias::alibi(values);
    case FASTROPE_BIAS_T5:
      return LagBias::t5(values, b.heads, b.t5_bidirectional != 0,
                         b.t5_max_distance == 0 ? 128 : b.t5_max_distance);
    case FASTROPE_BIAS_TABLE:
      return LagBias::table(values, b.heads, b.first_lag);
    case FASTROPE_BIAS_CLAMPED_TABLE:
      return LagBias::clamped_table(values, b.heads, b.first_lag);
  }
  detail::fail("bias.kind is ", static_cast<int>(b.kind), ", which is none");
}

inline RelativeWeights weights(const fastrope_relative_weights& w) {
  if (w.entries < 0 || w.lags < 0)
    detail::fail("weights of ", w.entries, " entries and ", w.lags, " lags: neither may be negative");
  const auto support = span_of<Index>("weights.support", w.support, saturating_product(2, w.entries));
  std::vector<RelativeWeights::Entry> entries;
  for (std::size_t s = 0; s + 1 < support.size(); s += 2) entries.push_back({support[s], support[s + 1]});
  return {std::move(entries), w.first_lag,
          span_of<double>("weights.values", w.values, saturating_product(w.entries, w.lags))};
}

inline DenseBias dense_bias(const fastrope_tensor& x) {
  require_plain("dense_bias", x);
  switch (x.type) {
    case FASTROPE_F32:
      return view_of<const float>(x);
    case FASTROPE_BF16:
      return view_of<const bfloat16>(x);
    case FASTROPE_F16:
      return view_of<const float16>(x);
    default:
      detail::fail("dense_bias is of type ", static_cast<int>(x.type), ", and may be F32, BF16 or F16");
  }
}
inline TensorView<const bool> dense_mask(const fastrope_tensor& x) {
  require_plain("dense_mask", x);
  if (x.data != nullptr && x.type != FASTROPE_BOOL)
    detail::fail("dense_mask is of type ", static_cast<int>(x.type), ", and must be BOOL");
  return view_of<const bool>(x);
}

inline SequenceOptions places(const fastrope_places& given) {
  const fastrope_places p = whole("places", given);
  return {.queries = span_of<Position>("query_positions", p.query_positions, p.query_position_count),
          .keys = span_of<Position>("key_positions", p.key_positions, p.key_position_count),
          .query_sections = view_of<const Position>(p.query_section_positions),
          .key_sections = view_of<const Position>(p.key_section_positions),
          .key_ranges = {span_of<Range>("key_ranges", p.key_ranges, p.key_range_count), p.key_ranges_per_row},
          .dense_bias = dense_bias(p.dense_bias),
          .dense_mask = dense_mask(p.dense_mask),
          .log_gates = view_of<const float>(p.log_gates),
          .log_input_gates = view_of<const float>(p.log_input_gates)};
}
/// [count], or none: structs of the size that the first one says.
inline std::vector<SequenceOptions> places(const fastrope_places* given, std::int64_t count) {
  std::vector<SequenceOptions> own;
  if (given == nullptr) return own;
  const auto* at = reinterpret_cast<const unsigned char*>(given);
  for (std::int64_t s = 0; s < count; ++s)
    own.push_back(places(
        *reinterpret_cast<const fastrope_places*>(at + static_cast<std::size_t>(s) * given->struct_size)));
  return own;
}

inline Normaliser normaliser(const fastrope_normaliser& n) {
  switch (n.kind) {
    case FASTROPE_ROW_SUM:
      return Normaliser::row_sum(n.constant);
    case FASTROPE_AT_LEAST:
      return Normaliser::at_least(n.constant);
    case FASTROPE_UNNORMALISED:
      return Normaliser::none();
  }
  detail::fail("normaliser.kind is ", static_cast<int>(n.kind), ", which is none");
}

/// Both may be NULL.
inline Gates gates(const fastrope_matrix* log, const fastrope_matrix* log_input) {
  return {log == nullptr ? MatrixView<const float>() : view_of<const float>(*log),
          log_input == nullptr ? MatrixView<const float>() : view_of<const float>(*log_input)};
}

/// The members of CostModel and of its struct.
inline constexpr std::pair<double CostModel::*, double fastrope_cost_model::*> kRates[] = {
    {&CostModel::tile, &fastrope_cost_model::tile},
    {&CostModel::weigh, &fastrope_cost_model::weigh},
    {&CostModel::feature, &fastrope_cost_model::feature},
    {&CostModel::transform, &fastrope_cost_model::transform},
    {&CostModel::element, &fastrope_cost_model::element},
    {&CostModel::round, &fastrope_cost_model::round},
    {&CostModel::look, &fastrope_cost_model::look},
};
inline CostModel cost_model(const fastrope_options* given) {
  CostModel model;
  if (given == nullptr) return model;
  const fastrope_options o = whole("options", *given);
  if (o.cost_model == nullptr) return model;
  const fastrope_cost_model rates = whole("cost_model", *o.cost_model);
  for (const auto& [own, member] : kRates) {
    const double rate = rates.*member;
    if (!(rate >= 0) || !std::isfinite(rate)) detail::fail("cost_model has a rate of ", rate);
    if (rate > 0) model.*own = rate;
  }
  return model;
}

inline Options options(const fastrope_options* given) {
  Options options;
  if (given == nullptr) return options;
  const fastrope_options o = whole("options", *given);
  if (o.rope != nullptr) options.rope = rope(*o.rope);
  options.rope_already_applied = o.rope_already_applied != 0;
  options.mask = mask(o.mask);
  options.bias = bias(o.bias);
  if (o.weights.entries != 0) options.weights = weights(o.weights);
  if (o.has_scale != 0) options.scale = o.scale;
  if (o.kernel != nullptr)
    options.kernel =
        Kernel::polynomial(span_of<double>("kernel", o.kernel, o.kernel_count),
                           o.kernel_may_be_negative != 0 ? KernelSign::any : KernelSign::nonnegative);
  options.tolerance = o.tolerance;
  if (o.path < FASTROPE_PATH_AUTOMATIC || o.path > FASTROPE_PATH_TOEPLITZ)
    detail::fail("path is ", static_cast<int>(o.path), ", which is none");
  options.path = static_cast<Path>(o.path);
  options.verify = o.verify;
  options.softcap = o.softcap;
  options.sinks = span_of<float>("sinks", o.sinks, o.sink_count);
  if (o.places != nullptr) options = detail::options_of(options, places(*o.places));
  options.executor = executor(o.executor);
  options.normaliser = normaliser(o.normaliser);
  return options;
}

}  // namespace fastrope::c
