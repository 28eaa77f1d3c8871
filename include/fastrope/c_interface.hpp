// What fastrope.h has for the headers' own views, options and executors: structs that view these.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>
#include <variant>
#include <vector>

#include "fastrope/core/error.hpp"
#include "fastrope/core/executor.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/paged_view.hpp"
#include "fastrope/core/quantised.hpp"
#include "fastrope/core/scaled_view.hpp"
#include "fastrope/core/storage.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/tensor_view.hpp"
#include "fastrope/fastrope.h"
#include "fastrope/problem/options.hpp"
#include "fastrope/problem/shapes.hpp"

namespace fastrope::inline FASTROPE_TARGET {

namespace c_interface {

static_assert(sizeof(Index) == sizeof(std::int64_t) && sizeof(Range) == sizeof(fastrope_range));

template <class T>
constexpr fastrope_type type_of() {
  if constexpr (std::is_same_v<T, float>) return FASTROPE_F32;
  if constexpr (std::is_same_v<T, double>) return FASTROPE_F64;
  if constexpr (std::is_same_v<T, bfloat16>) return FASTROPE_BF16;
  if constexpr (std::is_same_v<T, float16>) return FASTROPE_F16;
  if constexpr (std::is_same_v<T, std::int8_t>) return FASTROPE_I8;
  if constexpr (std::is_same_v<T, float8_e4m3>) return FASTROPE_E4M3;
  if constexpr (std::is_same_v<T, float8_e5m2>) return FASTROPE_E5M2;
  if constexpr (std::is_same_v<T, Q8_0>) return FASTROPE_Q8_0;
  if constexpr (std::is_same_v<T, Q4_0>) return FASTROPE_Q4_0;
  return FASTROPE_BOOL;
}

inline void* unconst(const void* data) { return const_cast<void*>(data); }
inline const std::int64_t* integers(const void* data) { return static_cast<const std::int64_t*>(data); }

template <class T>
fastrope_tensor to_c(const TensorView<T>& x) {
  fastrope_tensor c = {};
  c.data = unconst(x.data);
  c.type = type_of<std::remove_const_t<T>>();
  c.heads = x.heads;
  c.rows = x.rows;
  c.cols = x.cols;
  c.head_stride = x.head_stride;
  c.row_stride = x.row_stride;
  return c;
}
template <class T>
fastrope_tensor to_c(const PagedView<T>& x) {
  x.require_pages("k or v");
  fastrope_tensor c = to_c(TensorView<T>(x.data, x.heads, x.rows, x.cols, x.head_stride, x.row_stride));
  static constexpr std::int32_t kNoPage = 0;  // pages, even where there are none
  c.pages = x.pages.empty() ? &kNoPage : x.pages.data();
  c.page_count = std::ssize(x.pages);
  c.page_rows = x.page_rows;
  c.page_stride = x.page_stride;
  return c;
}
template <class View>
fastrope_tensor to_c(const ScaledView<View>& x) {
  fastrope_tensor c = to_c(x.values);
  const auto require = [&](const char* what, const MatrixView<const float>& scales, Index cols) {
    if (scales.data != nullptr && (scales.rows != c.heads || scales.cols < cols))
      detail::fail("k or v has scales of ", what, " [", scales.rows, ", ", scales.cols, "], not [", c.heads,
                   ", ", cols, "]");
  };
  require("rows", x.row_scales, 0);
  require("columns", x.column_scales, c.cols);
  c.row_scales = x.row_scales.data;
  c.row_scale_count = x.row_scales.cols;
  c.row_scale_stride = x.row_scales.row_stride;
  c.column_scales = x.column_scales.data;
  c.column_scale_stride = x.column_scales.row_stride;
  return c;
}
template <class T>
fastrope_matrix to_c(const MatrixView<T>& x) {
  return {unconst(x.data), x.rows, x.cols, x.row_stride};
}
inline fastrope_shapes to_c(const Shapes& s) { return {s.heads, s.kv_heads, s.n_q, s.n_k, s.d, s.d_v}; }

inline fastrope_tensor to_c(const DenseBias& x) {
  if (x.type == DenseType::float16) return to_c(x.as<float16>());
  if (x.type == DenseType::bfloat16) return to_c(x.as<bfloat16>());
  return to_c(x.as<float>());
}

/// The executor must outlive what is made of it. What its pool throws cannot cross C: tasks are then missing,
/// which the library notices.
inline fastrope_executor to_c(const Executor& executor) {
  return {executor.workers(),
          [](void* context, std::int64_t count, fastrope_task task, void* task_context) {
            try {
              static_cast<const Executor*>(context)->parallel_for(
                  count, [&](Index i, Index worker) { task(task_context, i, worker); });
            } catch (...) {
            }
          },
          unconst(&executor)};
}

inline fastrope_places to_c(const SequenceOptions& own) {
  fastrope_places c = {};
  c.struct_size = sizeof c;
  c.query_positions = integers(own.queries.data());
  c.query_position_count = std::ssize(own.queries);
  c.key_positions = integers(own.keys.data());
  c.key_position_count = std::ssize(own.keys);
  c.query_section_positions = to_c(own.query_sections);
  c.key_section_positions = to_c(own.key_sections);
  c.key_ranges = reinterpret_cast<const fastrope_range*>(own.key_ranges.ranges.data());
  c.key_range_count = std::ssize(own.key_ranges.ranges);
  c.key_ranges_per_row = own.key_ranges.per_row;
  c.dense_bias = to_c(own.dense_bias);
  c.dense_mask = to_c(own.dense_mask);
  c.log_gates = to_c(own.log_gates);
  c.log_input_gates = to_c(own.log_input_gates);
  return c;
}

inline fastrope_normaliser to_c(const Normaliser& n) {
  const fastrope_normaliser_kind kind = n.kind() == Normaliser::Kind::row_sum    ? FASTROPE_ROW_SUM
                                        : n.kind() == Normaliser::Kind::at_least ? FASTROPE_AT_LEAST
                                                                                 : FASTROPE_UNNORMALISED;
  return {kind, n.constant()};
}

inline void set_scaling(fastrope_rope&, std::monostate) {}
inline void set_scaling(fastrope_rope& c, const LinearScaling& s) {
  c.scaling = FASTROPE_SCALING_LINEAR;
  c.factor = s.factor;
}
inline void set_scaling(fastrope_rope& c, const NtkScaling& s) {
  c.scaling = FASTROPE_SCALING_NTK;
  c.factor = s.factor;
}
inline void set_scaling(fastrope_rope& c, const YarnScaling& s) {
  c.scaling = FASTROPE_SCALING_YARN;
  c.factor = s.factor;
  c.original_context = s.original_context;
  c.beta_fast = s.beta_fast;
  c.beta_slow = s.beta_slow;
  c.keep_ramp_ends = s.truncate ? 0 : 1;
  c.attention_factor = s.attention_factor.value_or(0);
}
inline void set_scaling(fastrope_rope& c, const Llama3Scaling& s) {
  c.scaling = FASTROPE_SCALING_LLAMA3;
  c.factor = s.factor;
  c.original_context = s.original_context;
  c.low_freq_factor = s.low_freq_factor;
  c.high_freq_factor = s.high_freq_factor;
}
inline void set_scaling(fastrope_rope& c, const FactorScaling& s) {
  c.scaling = FASTROPE_SCALING_FACTORS;
  c.attention_factor = s.attention_factor;
  c.factors = s.factors.data();
  c.factor_count = std::ssize(s.factors);
}

/// Options as the C interface has them, which view the Options and the executor.
class COptions {
 public:
  /// cost_model: null, or what outlives this.
  COptions(const Options& o, const Executor& executor, const fastrope_cost_model* cost_model = nullptr)
      : places_(to_c(SequenceOptions{o.query_positions, o.key_positions, o.query_section_positions,
                                     o.key_section_positions, o.key_ranges, o.dense_bias, o.dense_mask,
                                     o.log_gates, o.log_input_gates})) {
    c_.tolerance = o.tolerance;
    c_.path = static_cast<fastrope_path>(o.path);
    if (o.rope) set_rope(*o.rope);
    c_.rope_already_applied = o.rope_already_applied ? 1 : 0;
    c_.mask = {FASTROPE_MASK_LAGS, o.mask.first, o.mask.last};
    set_bias(o.bias);
    if (o.weights) set_weights(*o.weights);
    c_.has_scale = o.scale ? 1 : 0;
    c_.scale = o.scale.value_or(0);
    c_.softcap = o.softcap;
    c_.sinks = o.sinks.data();
    c_.sink_count = std::ssize(o.sinks);
    if (!o.kernel.is_softmax()) {
      c_.kernel = o.kernel.coefficients().data();
      c_.kernel_count = std::ssize(o.kernel.coefficients());
      c_.kernel_may_be_negative = o.kernel.nonnegative() ? 0 : 1;
    }
    c_.normaliser = to_c(o.normaliser);
    c_.verify = o.verify;
    c_.places = &places_;
    c_.executor = to_c(executor);
    c_.cost_model = cost_model;
  }
  COptions(const COptions&) = delete;
  COptions& operator=(const COptions&) = delete;

  const fastrope_options* get() const { return &c_; }

 private:
  void set_rope(const Rope& r) {
    rope_.struct_size = sizeof rope_;
    if (r.base == 0)
      detail::fail("rope: base must be positive and finite, got 0");  // which is the default in C
    rope_.base = r.base;
    rope_.half_split = r.pairing == RopePairing::half_split ? 1 : 0;
    rope_.rotary_begin = r.rotary_begin;
    rope_.rotary_dim = r.rotary_dim;
    rope_.sections = integers(r.sections.data());
    rope_.section_count = std::ssize(r.sections);
    rope_.sections_interleaved = r.section_order == SectionOrder::interleaved ? 1 : 0;
    std::visit([this](const auto& scaling) { set_scaling(rope_, scaling); }, r.scaling);
    c_.rope = &rope_;
  }
  void set_bias(const LagBias& b) {
    const auto values = b.values().empty() ? b.slopes() : b.values();
    c_.bias.kind = b.empty()            ? FASTROPE_BIAS_NONE
                   : b.values().empty() ? FASTROPE_BIAS_ALIBI
                   : b.is_clamped()     ? FASTROPE_BIAS_CLAMPED_TABLE
                                        : FASTROPE_BIAS_TABLE;
    c_.bias.values = values.data();
    c_.bias.value_count = std::ssize(values);
    c_.bias.heads = b.heads();
    c_.bias.first_lag = b.first_lag();
  }
  void set_weights(const RelativeWeights& w) {
    for (Index s = 0; s < std::ssize(w.support()); ++s)
      for (Position lag = w.first_lag(); lag <= w.last_lag(); ++lag) weights_.push_back(w(lag, s));
    c_.weights = {integers(w.support().data()), std::ssize(w.support()), w.first_lag(), weights_.data(),
                  w.last_lag() - w.first_lag() + 1};
  }

  fastrope_options c_ = fastrope_options_default();
  fastrope_places places_;
  fastrope_rope rope_ = {};
  std::vector<double> weights_ = {};
};

}  // namespace c_interface

}  // namespace fastrope::inline FASTROPE_TARGET
