// The C++ face of the compiled form: the names of fastrope.hpp, over the C interface of fastrope.h.
//
// Views, options and errors are the headers' own types; what plans and computes is in the library, so a file
// that includes this needs no flags for vectors and neither Eigen, Highway nor FFTW. A file includes this or
// fastrope.hpp, a program may do both. What the C interface does not have is not here either: weights,
// predictions, bounds of caches, and the candidates of a report.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <ostream>
#include <ranges>
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "fastrope/c_interface.hpp"
#include "fastrope/core/error.hpp"
#include "fastrope/core/executor.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/paged_view.hpp"
#include "fastrope/core/quantised.hpp"
#include "fastrope/core/scaled_view.hpp"
#include "fastrope/core/storage.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/tensor_view.hpp"
#include "fastrope/exact/sequence_views.hpp"
#include "fastrope/fastrope.h"
#include "fastrope/problem/options.hpp"
#include "fastrope/problem/run_status.hpp"
#include "fastrope/problem/shapes.hpp"
#include "fastrope/version.hpp"

namespace fastrope::inline FASTROPE_TARGET::c_interface {

/// Throws what a status says.
inline void require_ok(fastrope_status status) {
  if (status == FASTROPE_OK) return;
  if (status == FASTROPE_OUT_OF_MEMORY) throw std::bad_alloc();
  if (status == FASTROPE_INTERNAL_ERROR) throw std::runtime_error(fastrope_last_error());
  throw Error(fastrope_last_error());
}
inline RunStatus run_status(fastrope_status status) {
  return status <= FASTROPE_PROMISE_BROKEN ? static_cast<RunStatus>(status) : RunStatus::shape_mismatch;
}

/// A handle that copies share, and the executor that it runs with.
template <class Handle>
struct Shared {
  Executor executor;
  Handle* handle = nullptr;
  void (*destroy)(Handle*);

  Shared(const Executor& e, void (*d)(Handle*)) : executor(e), destroy(d) {}
  Shared(const Shared&) = delete;
  Shared& operator=(const Shared&) = delete;
  ~Shared() { destroy(handle); }
};

inline std::vector<fastrope_places> to_c(std::span<const SequenceOptions> own) {
  std::vector<fastrope_places> places;
  for (const SequenceOptions& one : own) places.push_back(to_c(one));
  return places;
}
template <class Views>
fastrope_sequence sequence(const Views& x) {
  return {to_c(x.q), to_c(as_rows(x.k)), to_c(as_rows(x.v)), to_c(x.out), to_c(x.lse)};
}
inline std::string text_of(std::size_t (*write)(const fastrope_report*, char*, std::size_t),
                           const fastrope_report* report) {
  std::string text(write(report, nullptr, 0), '\0');
  write(report, text.data(), text.size() + 1);
  return text;
}

template <class T>
void quantize(std::span<const float> x, std::span<T> to) {
  if (std::ssize(x) != std::ssize(to) * kElementsOf<T>)
    detail::fail("there are ", x.size(), " floats for ", to.size(), " elements of ", kElementsOf<T>);
  require_ok(fastrope_quantize(type_of<T>(), x.data(), std::ssize(x), to.data()));
}
template <class T>
void dequantize(std::span<const T> x, std::span<float> to) {
  if (std::ssize(to) != std::ssize(x) * kElementsOf<T>)
    detail::fail("there are ", to.size(), " floats for ", x.size(), " elements of ", kElementsOf<T>);
  require_ok(fastrope_dequantize(type_of<T>(), x.data(), std::ssize(to), to.data()));
}

}  // namespace fastrope::inline FASTROPE_TARGET::c_interface

// Its own namespace: what is called Plan here is not what fastrope.hpp calls so in another file.
namespace fastrope::inline FASTROPE_TARGET::inline compiled {

/// fastrope.hpp's CostModel; a rate of 0 is the library's own, of the instruction set in use.
struct CostModel : private fastrope_cost_model {
  using fastrope_cost_model::element, fastrope_cost_model::feature, fastrope_cost_model::look,
      fastrope_cost_model::round, fastrope_cost_model::tile, fastrope_cost_model::transform,
      fastrope_cost_model::weigh;

  CostModel() : fastrope_cost_model{} { struct_size = sizeof(fastrope_cost_model); }
  fastrope_cost_model* get() { return this; }
  const fastrope_cost_model* get() const { return this; }
};
/// The rates of a file for the instruction set in use.
inline CostModel read_cost_model(const std::string& path) {
  CostModel model;
  c_interface::require_ok(fastrope_cost_model_read(path.c_str(), model.get()));
  return model;
}

/// The plan of one query head, without its candidates, which the report's text has.
struct HeadReport {
  Path path = Path::exact;
  double entry_bound = 0;
  int degree = 0;
  Index rank = 0;
  double error_bound = 0;
  double rounding = 0;
  std::string reason = {};
  Index repaired_rows = 0;
  Index verified_rows = 0;
  double observed_error = 0;
};

/// The plan of a call.
class Report {
 public:
  std::vector<HeadReport> heads = {};
  std::vector<double> row_bounds = {};  ///< [heads * n_q] of a call with a polynomial kernel

  std::string to_json() const { return c_interface::text_of(fastrope_report_json, report_.get()); }
  friend std::ostream& operator<<(std::ostream& out, const Report& report) {
    return out << c_interface::text_of(fastrope_report_text, report.report_.get());
  }

  /// Of a report that is alive as long as the pointer is; rows: heads n_q.
  explicit Report(std::shared_ptr<const fastrope_report> report, Index rows = 0)
      : report_(std::move(report)) {
    fastrope_head c = {};
    c.struct_size = sizeof c;
    for (Index h = 0; h < fastrope_report_heads(report_.get()); ++h) {
      c_interface::require_ok(fastrope_report_head(report_.get(), h, &c));
      heads.push_back({static_cast<Path>(c.path), c.entry_bound, static_cast<int>(c.degree), c.rank,
                       c.error_bound, c.rounding, c.reason, c.repaired_rows, c.verified_rows,
                       c.observed_error});
    }
    if (const double* bounds = fastrope_report_row_bounds(report_.get()))
      row_bounds.assign(bounds, bounds + rows);
  }

 private:
  std::shared_ptr<const fastrope_report> report_;
};

/// fastrope.hpp's Plan. Copies share what was planned, which nothing changes.
template <class Real>
class Plan {
 public:
  const Report& report() const { return *report_; }
  std::size_t workspace_bytes() const { return fastrope_plan_workspace_bytes(plan_->handle); }
  std::string to_json() const { return report_->to_json(); }
  friend std::ostream& operator<<(std::ostream& out, const Plan& plan) { return out << plan.report(); }

  template <TensorLike Q, RowsLike K, RowsLike V, TensorLike Out>
  RunStatus run(const Q& q, const K& k, const V& v, Out&& out,
                std::span<std::byte> workspace) const noexcept {
    return run_tensors(q, k, v, out, nullptr, workspace, nullptr);
  }
  template <TensorLike Q, RowsLike K, RowsLike V, TensorLike Out>
  RunStatus run(const Q& q, const K& k, const V& v, Out&& out, MatrixView<Real> lse,
                std::span<std::byte> workspace) const noexcept {
    const fastrope_matrix c = c_interface::to_c(lse);
    return run_tensors(q, k, v, out, &c, workspace, nullptr);
  }
  /// details: of [heads] and [heads * n_q] elements, or empty.
  template <TensorLike Q, RowsLike K, RowsLike V, TensorLike Out>
  RunStatus run(const Q& q, const K& k, const V& v, Out&& out, std::span<std::byte> workspace,
                const RunDetails& details) const noexcept {
    const auto queries = as_tensor(q);
    if ((!details.repaired_rows.empty() && std::ssize(details.repaired_rows) != queries.heads) ||
        (!details.row_bounds.empty() && std::ssize(details.row_bounds) != queries.heads * queries.rows))
      return RunStatus::shape_mismatch;
    fastrope_run_details c = {};
    if (!details.repaired_rows.empty())
      c.repaired_rows = const_cast<std::int64_t*>(c_interface::integers(details.repaired_rows.data()));
    if (!details.row_bounds.empty()) c.row_bounds = details.row_bounds.data();
    return run_tensors(q, k, v, out, nullptr, workspace, &c);
  }

  using Handle = c_interface::Shared<fastrope_plan>;
  explicit Plan(std::shared_ptr<const Handle> plan)
      : plan_(std::move(plan)),
        report_(std::make_shared<const Report>(
            std::shared_ptr<const fastrope_report>(plan_, fastrope_plan_report(plan_->handle)))) {}

 private:
  template <class Q, class K, class V, class Out>
  RunStatus run_tensors(const Q& q, const K& k, const V& v, Out& out, const fastrope_matrix* lse,
                        std::span<std::byte> workspace, const fastrope_run_details* details) const noexcept {
    try {  // pages that are missing
      const fastrope_tensor queries = c_interface::to_c(as_tensor(q)), keys = c_interface::to_c(as_rows(k)),
                            values = c_interface::to_c(as_rows(v)),
                            result = c_interface::to_c(as_tensor(out));
      return c_interface::run_status(fastrope_plan_run(plan_->handle, &queries, &keys, &values, &result, lse,
                                                       workspace.data(), workspace.size(), details));
    } catch (...) {
      return RunStatus::shape_mismatch;
    }
  }

  std::shared_ptr<const Handle> plan_;
  std::shared_ptr<const Report> report_;
};

template <TensorLike Q, RowsLike K, RowsLike V>
Plan<ArithmeticOf<ElementOf<Q>>> make_plan(const Q& q, const K& k, const V& v, const Options& options,
                                           const CostModel& cost = {}) {
  using Real = ArithmeticOf<ElementOf<Q>>;
  const auto plan = std::make_shared<typename Plan<Real>::Handle>(options.executor, fastrope_plan_destroy);
  const fastrope_tensor queries = c_interface::to_c(as_tensor(q)), keys = c_interface::to_c(as_rows(k)),
                        values = c_interface::to_c(as_rows(v));
  const c_interface::COptions c(options, plan->executor, cost.get());
  c_interface::require_ok(fastrope_plan_create(&queries, &keys, &values, c.get(), &plan->handle));
  return Plan<Real>(plan);
}

template <class Real = float>
Plan<Real> make_plan(const Shapes& shapes, const Options& options, const CostModel& cost = {}) {
  const auto plan = std::make_shared<typename Plan<Real>::Handle>(options.executor, fastrope_plan_destroy);
  const fastrope_shapes sizes = c_interface::to_c(shapes);
  const c_interface::COptions c(options, plan->executor, cost.get());
  c_interface::require_ok(
      fastrope_plan_create_for_shapes(c_interface::type_of<Real>(), &sizes, c.get(), &plan->handle));
  return Plan<Real>(plan);
}

template <TensorLike Q, RowsLike K, RowsLike V, TensorLike Out>
Report attend(const Q& q, const K& k, const V& v, Out&& out, const Options& options,
              const CostModel& cost = {}) {
  const fastrope_tensor queries = c_interface::to_c(as_tensor(q)), keys = c_interface::to_c(as_rows(k)),
                        values = c_interface::to_c(as_rows(v)), result = c_interface::to_c(as_tensor(out));
  const c_interface::COptions c(options, options.executor, cost.get());
  fastrope_report* report = nullptr;
  c_interface::require_ok(fastrope_attend(&queries, &keys, &values, &result, c.get(), &report));
  return Report({report, fastrope_report_destroy}, queries.heads * queries.rows);
}

template <TensorLike Q, RowsLike K, RowsLike V, TensorLike Out>
void attend_partial(const Q& q, const K& k, const V& v, Out&& out, MatrixView<ArithmeticOf<ElementOf<Q>>> lse,
                    const Options& options) {
  const fastrope_tensor queries = c_interface::to_c(as_tensor(q)), keys = c_interface::to_c(as_rows(k)),
                        values = c_interface::to_c(as_rows(v)), result = c_interface::to_c(as_tensor(out));
  const fastrope_matrix sums = c_interface::to_c(lse);
  const c_interface::COptions c(options, options.executor);
  c_interface::require_ok(fastrope_attend_partial(&queries, &keys, &values, &result, &sums, c.get()));
}

template <class Real>
void merge(TensorView<Real> out, std::type_identity_t<MatrixView<Real>> lse,
           std::type_identity_t<TensorView<const Real>> other_out,
           std::type_identity_t<MatrixView<const Real>> other_lse) {
  const fastrope_tensor to = c_interface::to_c(out), other = c_interface::to_c(other_out);
  const fastrope_matrix sums = c_interface::to_c(lse), other_sums = c_interface::to_c(other_lse);
  c_interface::require_ok(fastrope_merge(&to, &sums, &other, &other_sums));
}

/// fastrope.hpp's BatchPlan and MixedBatchPlan, but that a run makes room for the C interface's views: it
/// allocates.
template <class Real>
class BatchPlan {
 public:
  BatchPlan(std::span<const Shapes> shapes, const Options& options, std::span<const SequenceOptions> own = {})
      : batch_(std::make_shared<Handle>(options.executor, fastrope_batch_destroy)) {
    const std::vector<fastrope_shapes> sizes = to_c(shapes);
    const c_interface::COptions c(options, batch_->executor);
    const std::vector<fastrope_places> places = c_interface::to_c(own);
    require_places(shapes.size(), own.size());
    c_interface::require_ok(
        fastrope_batch_create_for_shapes(c_interface::type_of<Real>(), sizes.data(), std::ssize(sizes),
                                         c.get(), places.empty() ? nullptr : places.data(), &batch_->handle));
  }
  /// What make_batch_plan gives.
  BatchPlan(std::span<const fastrope_sequence> sequences, const Options& options,
            std::span<const SequenceOptions> own, const CostModel& cost)
      : batch_(std::make_shared<Handle>(options.executor, fastrope_batch_destroy)) {
    const c_interface::COptions c(options, batch_->executor, cost.get());
    const std::vector<fastrope_places> places = c_interface::to_c(own);
    require_places(sequences.size(), own.size());
    c_interface::require_ok(fastrope_batch_create(sequences.data(), std::ssize(sequences), c.get(),
                                                  places.empty() ? nullptr : places.data(), &batch_->handle));
    for (Index s = 0; s < std::ssize(sequences); ++s)
      reports_.emplace_back(
          std::shared_ptr<const fastrope_report>(batch_, fastrope_batch_report(batch_->handle, s)));
  }

  /// Of a sequence that make_batch_plan planned.
  const Report& report(std::size_t sequence) const { return reports_[sequence]; }
  std::size_t workspace_bytes() const { return fastrope_batch_workspace_bytes(batch_->handle); }
  std::size_t workspace_bytes(std::span<const Shapes> step) const {
    const std::vector<fastrope_shapes> sizes = to_c(step);
    return fastrope_batch_step_bytes(batch_->handle, sizes.data(), std::ssize(sizes));
  }

  template <std::ranges::contiguous_range Sequences>
  RunStatus run(const Sequences& sequences, std::span<std::byte> workspace) const {
    std::vector<fastrope_sequence> views;
    for (const auto& x : sequences) views.push_back(c_interface::sequence(x));
    return c_interface::run_status(fastrope_batch_run(batch_->handle, views.data(), std::ssize(views),
                                                      workspace.data(), workspace.size()));
  }

 private:
  using Handle = c_interface::Shared<fastrope_batch>;

  static std::vector<fastrope_shapes> to_c(std::span<const Shapes> shapes) {
    std::vector<fastrope_shapes> sizes;
    for (const Shapes& s : shapes) sizes.push_back(c_interface::to_c(s));
    return sizes;
  }
  static void require_places(std::size_t sequences, std::size_t own) {
    if (own != 0 && own != sequences)
      detail::fail("options are given for ", own, " of ", sequences, " sequences");
  }

  std::shared_ptr<Handle> batch_;
  std::vector<Report> reports_ = {};
};

template <std::ranges::contiguous_range Sequences>
auto make_batch_plan(const Sequences& sequences, const Options& options,
                     std::span<const SequenceOptions> own = {}, const CostModel& cost = {}) {
  using Views = std::ranges::range_value_t<Sequences>;
  std::vector<fastrope_sequence> views;
  for (const auto& x : sequences) views.push_back(c_interface::sequence(x));
  return BatchPlan<ArithmeticOf<ElementOf<decltype(Views::q)>>>(views, options, own, cost);
}

/// fastrope.hpp's RecurrentAttention; it moves, and is not copied.
template <class Real>
class RecurrentAttention {
 public:
  RecurrentAttention(Index heads, Index kv_heads, Index d, Index d_v, const Options& options)
      : RecurrentAttention(heads, kv_heads, d, d_v, options, 0, {}) {}
  RecurrentAttention(Index heads, Index kv_heads, Index d, Index d_v, const Options& options, double radius)
      : RecurrentAttention(heads, kv_heads, d, d_v, options, not_zero(radius), {}) {}

  Position tokens() const { return fastrope_recurrent_tokens(state_->handle); }
  MatrixView<const double> row_bounds() const {
    const fastrope_matrix c = fastrope_recurrent_row_bounds(state_->handle);
    return {static_cast<const double*>(c.data), c.rows, c.cols, c.row_stride};
  }

  template <TensorLike Q, RowsLike K, RowsLike V, TensorLike Out>
  void prefill(const Q& q, const K& k, const V& v, Out&& out, MatrixView<const float> log_gates = {},
               MatrixView<const float> log_input_gates = {}) {
    c_interface::require_ok(call(fastrope_recurrent_prefill, q, k, v, out, log_gates, log_input_gates));
  }
  template <TensorLike Q, RowsLike K, RowsLike V, TensorLike Out>
  RunStatus step(const Q& q, const K& k, const V& v, Out&& out, std::span<const float> log_gates = {},
                 std::span<const float> log_input_gates = {}) noexcept {
    const auto column = [](std::span<const float> x) {
      return MatrixView<const float>(x.data(), std::ssize(x), x.empty() ? 0 : 1, 1);
    };
    try {  // pages that are missing
      return c_interface::run_status(
          call(fastrope_recurrent_step, q, k, v, out, column(log_gates), column(log_input_gates)));
    } catch (...) {
      return RunStatus::shape_mismatch;
    }
  }

  std::size_t state_bytes() const noexcept { return fastrope_recurrent_state_bytes(state_->handle); }
  RunStatus save(std::span<std::byte> to) const noexcept {
    return c_interface::run_status(fastrope_recurrent_save(state_->handle, to.data(), to.size()));
  }
  void load(std::span<const std::byte> from) {
    c_interface::require_ok(fastrope_recurrent_load(state_->handle, from.data(), from.size()));
  }

 private:
  using Handle = c_interface::Shared<fastrope_recurrent>;
  struct Unchecked {};

  static double not_zero(double radius) {
    if (radius == 0)
      detail::fail("the radius of a recurrence is a positive number, got 0");  // which is none in C
    return radius;
  }

  RecurrentAttention(Index heads, Index kv_heads, Index d, Index d_v, const Options& options, double radius,
                     Unchecked)
      : state_(std::make_unique<Handle>(options.executor, fastrope_recurrent_destroy)) {
    const c_interface::COptions c(options, state_->executor);
    c_interface::require_ok(fastrope_recurrent_create(c_interface::type_of<Real>(), heads, kv_heads, d, d_v,
                                                      c.get(), radius, &state_->handle));
  }

  template <class Function, class Q, class K, class V, class Out>
  fastrope_status call(Function function, const Q& q, const K& k, const V& v, Out& out,
                       const MatrixView<const float>& log_gates,
                       const MatrixView<const float>& log_input_gates) {
    const fastrope_tensor queries = c_interface::to_c(as_tensor(q)), keys = c_interface::to_c(as_rows(k)),
                          values = c_interface::to_c(as_rows(v)), result = c_interface::to_c(as_tensor(out));
    const fastrope_matrix gates = c_interface::to_c(log_gates), inputs = c_interface::to_c(log_input_gates);
    return function(state_->handle, &queries, &keys, &values, &result, &gates, &inputs);
  }

  std::unique_ptr<Handle> state_;
};

/// fastrope.hpp's ToeplitzOperator. Copies share the matrix.
template <class Real>
class ToeplitzOperator {
 public:
  ToeplitzOperator(Index n_rows, Index n_cols, std::span<const Real> generator)
      : ToeplitzOperator(n_rows, n_cols, {generator.data(), 1, std::ssize(generator)}, 0) {}
  static ToeplitzOperator per_channel(Index n_rows, Index n_cols, MatrixView<const Real> generators) {
    return {n_rows, n_cols, generators, 0};
  }

  void apply(MatrixView<const Real> x, MatrixView<Real> y,
             const Executor& executor = Executor::serial()) const {
    multiply(fastrope_toeplitz_apply, x, y, executor);
  }
  void apply_transpose(MatrixView<const Real> x, MatrixView<Real> y,
                       const Executor& executor = Executor::serial()) const {
    multiply(fastrope_toeplitz_apply_transpose, x, y, executor);
  }
  void apply_hadamard(MatrixView<const Real> u, MatrixView<const Real> v, MatrixView<const Real> x,
                      MatrixView<Real> y, const Executor& executor = Executor::serial()) const {
    const fastrope_matrix left = c_interface::to_c(u), right = c_interface::to_c(v),
                          from = c_interface::to_c(x), to = c_interface::to_c(y);
    const fastrope_executor c = c_interface::to_c(executor);
    c_interface::require_ok(fastrope_toeplitz_apply_hadamard(matrix_.get(), &left, &right, &from, &to, &c));
  }

 private:
  ToeplitzOperator(Index n_rows, Index n_cols, MatrixView<const Real> generators, int) {
    const fastrope_matrix c = c_interface::to_c(generators);
    fastrope_toeplitz* made = nullptr;
    c_interface::require_ok(
        fastrope_toeplitz_create(c_interface::type_of<Real>(), n_rows, n_cols, &c, &made));
    matrix_ = {made, fastrope_toeplitz_destroy};
  }
  template <class Function>
  void multiply(Function function, const MatrixView<const Real>& x, const MatrixView<Real>& y,
                const Executor& executor) const {
    const fastrope_matrix from = c_interface::to_c(x), to = c_interface::to_c(y);
    const fastrope_executor c = c_interface::to_c(executor);
    c_interface::require_ok(function(matrix_.get(), &from, &to, &c));
  }

  std::shared_ptr<fastrope_toeplitz> matrix_;
};

inline void quantize(std::span<const float> x, std::span<Q8_0> to) { c_interface::quantize(x, to); }
inline void quantize(std::span<const float> x, std::span<Q4_0> to) { c_interface::quantize(x, to); }
inline void quantize(std::span<const float> x, std::span<float8_e4m3> to) { c_interface::quantize(x, to); }
inline void quantize(std::span<const float> x, std::span<float8_e5m2> to) { c_interface::quantize(x, to); }
inline void dequantize(std::span<const Q8_0> x, std::span<float> to) { c_interface::dequantize(x, to); }
inline void dequantize(std::span<const Q4_0> x, std::span<float> to) { c_interface::dequantize(x, to); }
inline void dequantize(std::span<const float8_e4m3> x, std::span<float> to) {
  c_interface::dequantize(x, to);
}
inline void dequantize(std::span<const float8_e5m2> x, std::span<float> to) {
  c_interface::dequantize(x, to);
}

/// x [scales.size(), cols] to integers with a scale for each row.
inline void quantize_rows(std::span<const float> x, std::span<std::int8_t> to, std::span<float> scales) {
  const Index rows = std::ssize(scales), cols = rows == 0 ? 0 : std::ssize(x) / rows;
  if (rows * cols != std::ssize(x) || x.size() != to.size())
    detail::fail("there are ", x.size(), " floats for ", to.size(), " integers of ", rows, " scales");
  c_interface::require_ok(fastrope_quantize_rows(x.data(), rows, cols, to.data(), scales.data()));
}
/// x [rows, scales.size()] to integers with a scale for each column.
inline void quantize_columns(std::span<const float> x, std::span<std::int8_t> to, std::span<float> scales) {
  const Index cols = std::ssize(scales), rows = cols == 0 ? 0 : std::ssize(x) / cols;
  if (rows * cols != std::ssize(x) || x.size() != to.size())
    detail::fail("there are ", x.size(), " floats for ", to.size(), " integers of ", cols, " scales");
  c_interface::require_ok(fastrope_quantize_columns(x.data(), rows, cols, to.data(), scales.data()));
}

}  // namespace fastrope::inline FASTROPE_TARGET::inline compiled
