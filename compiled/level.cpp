// One level: the functions of fastrope.h over the headers, compiled for one instruction set.
//
// Compiled once for each; of an object all symbols are made local but the last function, which gives the
// table, and FFTW's planner lock. What templates of the standard and of Eigen become under wide flags so
// stays in here.
#include <algorithm>
#include <cstddef>
#include <exception>
#include <memory>
#include <new>
#include <span>
#include <sstream>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "convert.hpp"
#include "table.hpp"

using namespace fastrope;

struct fastrope_report {
  const Report* report;  // its own, or a plan's
  std::unique_ptr<const Report> own = {};
};

struct fastrope_plan {
  std::variant<Plan<float>, Plan<double>> plan;
  fastrope_report report = {};

  template <class Real>
  explicit fastrope_plan(Plan<Real> made) : plan(std::move(made)) {
    report.report = &std::get<Plan<Real>>(plan).report();
  }
};

struct fastrope_batch {
  std::variant<BatchPlan<float>, BatchPlan<double>, MixedBatchPlan<float>, MixedBatchPlan<double>> plan;
  std::vector<fastrope_report> reports = {};

  template <class Real>
  explicit fastrope_batch(BatchPlan<Real> made) : plan(std::move(made)) {}
  template <class Real>
  explicit fastrope_batch(MixedBatchPlan<Real> made) : plan(std::move(made)) {
    const auto& mixed = std::get<MixedBatchPlan<Real>>(plan);
    for (std::size_t s = 0; s < mixed.size(); ++s) reports.push_back({&mixed.report(s)});
  }
};

struct fastrope_recurrent {
  std::variant<RecurrentAttention<float>, RecurrentAttention<double>> recurrence;
};

struct fastrope_toeplitz {
  std::variant<ToeplitzOperator<float>, ToeplitzOperator<double>> matrix;
};

namespace {

fastrope_compiled::KeepError keep_error = nullptr;

fastrope_status failed(fastrope_status status, const char* message) {
  keep_error(message);
  return status;
}

fastrope_status status_of(RunStatus status) {
  switch (status) {
    case RunStatus::ok:
      return FASTROPE_OK;
    case RunStatus::shape_mismatch:
      return failed(FASTROPE_SHAPE_MISMATCH, "the tensors are not of shapes that the plan takes, or NULL");
    case RunStatus::workspace_too_small:
      return failed(FASTROPE_WORKSPACE_TOO_SMALL, "fewer bytes are given than were asked for");
    case RunStatus::executor_failed:
      return failed(FASTROPE_EXECUTOR_FAILED,
                    "the executor did not run each task once with a worker that there is");
    case RunStatus::lse_unavailable:
      return failed(FASTROPE_LSE_UNAVAILABLE, "lse is asked for, and a head is approximated");
    case RunStatus::places_refused:
      return failed(FASTROPE_PLACES_REFUSED, "positions or key ranges are not such as plans take");
    case RunStatus::position_out_of_range:
      return failed(FASTROPE_POSITION_OUT_OF_RANGE, "the recurrence is as long as rope's phases are held");
    case RunStatus::gates_refused:
      return failed(FASTROPE_GATES_REFUSED,
                    "a log gate is above 0 or NaN, or an input gate is not below infinity");
    case RunStatus::promise_broken:
      return failed(FASTROPE_PROMISE_BROKEN, "entries of the token may be beyond the recurrence's radius");
  }
  return failed(FASTROPE_INTERNAL_ERROR, "unknown status");
}

/// f(), which returns nothing or a RunStatus, with exceptions as statuses.
template <class F>
fastrope_status guarded(F&& f) noexcept {
  try {
    if constexpr (std::is_same_v<decltype(f()), RunStatus>)
      return status_of(f());
    else
      f();
    return FASTROPE_OK;
  } catch (const Error& error) {
    return failed(FASTROPE_INVALID_ARGUMENT, error.what());
  } catch (const std::bad_alloc&) {
    return failed(FASTROPE_OUT_OF_MEMORY, "out of memory");
  } catch (const std::exception& error) {
    return failed(FASTROPE_INTERNAL_ERROR, error.what());
  } catch (...) {
    return failed(FASTROPE_INTERNAL_ERROR, "unknown exception");
  }
}

/// handle = a new Handle of what make() gives; NULL where that fails.
template <class Handle, class Make>
fastrope_status create(Handle** handle, Make&& make) noexcept {
  if (handle == nullptr)
    return failed(FASTROPE_INVALID_ARGUMENT, "there is no place for the handle: it is NULL");
  *handle = nullptr;
  return guarded([&] { *handle = make().release(); });
}

std::span<std::byte> bytes_at(void* data, std::size_t size) {
  return {static_cast<std::byte*>(data), data == nullptr ? 0 : size};
}

// ---- reports ----

template <class Text>
std::size_t write_text(char* to, std::size_t size, Text&& text) noexcept {
  std::size_t length = 0;
  guarded([&] {
    const std::string whole = text();
    if (size > 0) {
      const std::size_t written = std::min(whole.size(), size - 1);
      std::copy_n(whole.data(), written, to);
      to[written] = '\0';
    }
    length = whole.size();
  });
  return length;
}

std::size_t report_text(const fastrope_report* report, char* to, std::size_t size) {
  return write_text(to, size, [&] {
    std::ostringstream text;
    text << *c::require("report", report).report;
    return text.str();
  });
}

std::size_t report_json(const fastrope_report* report, char* to, std::size_t size) {
  return write_text(to, size, [&] { return c::require("report", report).report->to_json(); });
}

std::int64_t report_heads(const fastrope_report* report) { return std::ssize(report->report->heads); }

fastrope_status report_head(const fastrope_report* report, std::int64_t head, fastrope_head* to) {
  return guarded([&] {
    const std::vector<HeadReport>& heads = c::require("report", report).report->heads;
    if (head < 0 || head >= std::ssize(heads)) detail::fail("head ", head, " of a report of ", heads.size());
    const HeadReport& h = heads[static_cast<std::size_t>(head)];
    const std::size_t size = c::require("head", to).struct_size;
    const fastrope_head known{.struct_size = size,
                              .path = static_cast<fastrope_path>(h.path),
                              .degree = h.degree,
                              .rank = h.rank,
                              .entry_bound = h.entry_bound,
                              .error_bound = h.error_bound,
                              .rounding = h.rounding,
                              .repaired_rows = h.repaired_rows,
                              .verified_rows = h.verified_rows,
                              .observed_error = h.observed_error,
                              .reason = h.reason.c_str()};
    std::memcpy(to, &known, std::min(size, sizeof known));
  });
}

const double* report_row_bounds(const fastrope_report* report) {
  if (report == nullptr || report->report->row_bounds.empty()) return nullptr;
  return report->report->row_bounds.data();
}

void report_destroy(fastrope_report* report) { delete report; }

// ---- attention ----

fastrope_status cost_model_read(const char* path, fastrope_cost_model* to) {
  return guarded([&] {
    const std::size_t size = c::require("cost_model", to).struct_size;
    if (path == nullptr) detail::fail("path is NULL");
    const CostModel model = read_cost_model(path);
    fastrope_cost_model known{};
    known.struct_size = size;
    for (const auto& [own, member] : c::kRates) known.*member = model.*own;
    std::memcpy(to, &known, std::min(size, sizeof known));
  });
}

fastrope_status attend(const fastrope_tensor* q, const fastrope_tensor* k, const fastrope_tensor* v,
                       const fastrope_tensor* out, const fastrope_options* options,
                       fastrope_report** report) {
  if (report != nullptr) *report = nullptr;
  return guarded([&] {
    c::with_arithmetic(c::require("q", q).type, [&]<class Real>(std::type_identity<Real>) {
      const ExactTensors<Real> x = c::tensors<Real>(q, k, v, out, nullptr);
      const detail::CheckedTensors checked{x.q, c::cached<KeyRows<double>>("k", k),
                                           c::cached<ValueRows<double>>("v", v),
                                           c::cached<StoredRows>("out", out)};
      Report made =
          c::with_operand<Real>(c::are_pairs(*q, *k, *v), [&]<class Operand>(std::type_identity<Operand>) {
            return detail::attend_tensors<Operand>(x, c::storage<Real>(*q, *k, *v, out->type),
                                                   c::options(options), checked, c::cost_model(options));
          });
      if (report == nullptr) return;
      auto own = std::make_unique<const Report>(std::move(made));
      *report = new fastrope_report{own.get(), std::move(own)};
    });
  });
}

fastrope_status plan_create(const fastrope_tensor* q, const fastrope_tensor* k, const fastrope_tensor* v,
                            const fastrope_options* options, fastrope_plan** plan) {
  return create(plan, [&] {
    return c::with_arithmetic(c::require("q", q).type, [&]<class Real>(std::type_identity<Real>) {
      const auto keys = c::cached<StoredRows>("k", k), values = c::cached<StoredRows>("v", v);
      return std::make_unique<fastrope_plan>(
          detail::plan_tensors<Real>(c::queries(q), keys, values, c::storage<Real>(*q, *k, *v, q->type),
                                     c::options(options), nullptr, c::cost_model(options)));
    });
  });
}

fastrope_status plan_create_for_shapes(fastrope_type arithmetic, const fastrope_shapes* shapes,
                                       const fastrope_options* options, fastrope_plan** plan) {
  return create(plan, [&] {
    return c::with_arithmetic(arithmetic, [&]<class Real>(std::type_identity<Real>) {
      return std::make_unique<fastrope_plan>(make_plan<Real>(c::shapes(c::require("shapes", shapes)),
                                                             c::options(options), c::cost_model(options)));
    });
  });
}

std::size_t plan_workspace_bytes(const fastrope_plan* plan) {
  return std::visit([](const auto& p) { return p.workspace_bytes(); }, plan->plan);
}

const fastrope_report* plan_report(const fastrope_plan* plan) { return &plan->report; }

fastrope_status plan_run(const fastrope_plan* plan, const fastrope_tensor* q, const fastrope_tensor* k,
                         const fastrope_tensor* v, const fastrope_tensor* out, const fastrope_matrix* lse,
                         void* workspace, std::size_t workspace_bytes, const fastrope_run_details* details) {
  return guarded([&] {
    return std::visit(
        [&]<class Real>(const Plan<Real>& p) {
          const ExactTensors<Real> x = c::tensors<Real>(q, k, v, out, lse);
          if ((q->type == FASTROPE_F64) != std::is_same_v<Real, double>) return RunStatus::shape_mismatch;
          RunDetails wanted;
          if (details != nullptr) {
            const auto heads = static_cast<std::size_t>(std::max<Index>(0, x.q.heads));
            const auto rows = heads * static_cast<std::size_t>(std::max<Index>(0, x.q.rows));
            if (details->repaired_rows != nullptr)
              wanted.repaired_rows = {reinterpret_cast<Index*>(details->repaired_rows), heads};
            if (details->row_bounds != nullptr) wanted.row_bounds = {details->row_bounds, rows};
          }
          return c::with_operand<Real>(
              c::are_pairs(*q, *k, *v), [&]<class Operand>(std::type_identity<Operand>) {
                return p.template run_tensors<Operand>(x, bytes_at(workspace, workspace_bytes), wanted);
              });
        },
        plan->plan);
  });
}

void plan_destroy(fastrope_plan* plan) { delete plan; }

fastrope_status attend_partial(const fastrope_tensor* q, const fastrope_tensor* k, const fastrope_tensor* v,
                               const fastrope_tensor* out, const fastrope_matrix* lse,
                               const fastrope_options* options) {
  return guarded([&] {
    c::with_arithmetic(c::require("q", q).type, [&]<class Real>(std::type_identity<Real>) {
      const ExactTensors<Real> x = c::tensors<Real>(q, k, v, out, &c::require("lse", lse));
      c::with_operand<Real>(c::are_pairs(*q, *k, *v), [&]<class Operand>(std::type_identity<Operand>) {
        detail::attend_part<Operand>(x, c::options(options));
      });
    });
  });
}

/// f(std::type_identity<Real>{}) for matrices of F32 or F64.
template <class F>
auto with_real(const char* name, fastrope_type type, F&& f) {
  if (type == FASTROPE_F32) return f(std::type_identity<float>{});
  if (type == FASTROPE_F64) return f(std::type_identity<double>{});
  detail::fail(name, " is of type ", static_cast<int>(type), ", and may be F32 or F64");
}

fastrope_status merge(const fastrope_tensor* out, const fastrope_matrix* lse,
                      const fastrope_tensor* other_out, const fastrope_matrix* other_lse) {
  return guarded([&] {
    with_real("out", c::require("out", out).type, [&]<class Real>(std::type_identity<Real>) {
      if (c::require("other_out", other_out).type != out->type)
        detail::fail("out and other_out are of two types");
      fastrope::merge<Real>(c::view_of<Real>(*out), c::view_of<Real>(c::require("lse", lse)),
                            c::view_of<const Real>(*other_out),
                            c::view_of<const Real>(c::require("other_lse", other_lse)));
    });
  });
}

// ---- batches ----

std::size_t size_of(const char* name, const void* data, std::int64_t count) {
  if (count < 0 || (data == nullptr && count > 0)) detail::fail(name, " is NULL or of ", count);
  return static_cast<std::size_t>(count);
}

fastrope_status batch_create_for_shapes(fastrope_type arithmetic, const fastrope_shapes* shapes,
                                        std::int64_t count, const fastrope_options* options,
                                        const fastrope_places* places, fastrope_batch** batch) {
  return create(batch, [&] {
    std::vector<Shapes> of_sequences;
    for (std::size_t s = 0; s < size_of("shapes", shapes, count); ++s)
      of_sequences.push_back(c::shapes(shapes[s]));
    const std::vector<SequenceOptions> own = c::places(places, count);
    return c::with_arithmetic(arithmetic, [&]<class Real>(std::type_identity<Real>) {
      return std::make_unique<fastrope_batch>(BatchPlan<Real>(of_sequences, c::options(options), own));
    });
  });
}

fastrope_status batch_create(const fastrope_sequence* sequences, std::int64_t count,
                             const fastrope_options* options, const fastrope_places* places,
                             fastrope_batch** batch) {
  return create(batch, [&] {
    const std::size_t size = size_of("sequences", sequences, count);
    const std::vector<SequenceOptions> own = c::places(places, count);
    const fastrope_type type = size == 0 ? FASTROPE_F32 : sequences[0].q.type;
    return c::with_arithmetic(type, [&]<class Real>(std::type_identity<Real>) {
      const auto tensors = [&](std::size_t s) { return c::tensors<Real>(sequences[s]); };
      const auto storage = [&](std::size_t s) {
        const fastrope_sequence& x = sequences[s];
        return c::storage<Real>(x.q, x.k, x.v, x.out.type);
      };
      return std::make_unique<fastrope_batch>(
          detail::plan_batch<Real>(size, tensors, storage, c::options(options), own, c::cost_model(options)));
    });
  });
}

std::size_t batch_workspace_bytes(const fastrope_batch* batch) {
  return std::visit([](const auto& p) { return p.workspace_bytes(); }, batch->plan);
}

template <class Real>
std::size_t step_bytes(const BatchPlan<Real>& plan, std::span<const Shapes> step) {
  return plan.workspace_bytes(step);
}
template <class Real>
std::size_t step_bytes(const MixedBatchPlan<Real>& plan, std::span<const Shapes>) {
  return plan.workspace_bytes();
}
std::size_t batch_step_bytes(const fastrope_batch* batch, const fastrope_shapes* step, std::int64_t count) {
  static_assert(sizeof(Shapes) == sizeof(fastrope_shapes));
  const std::span shapes(reinterpret_cast<const Shapes*>(step),
                         static_cast<std::size_t>(std::max<Index>(0, count)));
  return std::visit([&](const auto& p) { return step_bytes(p, shapes); }, batch->plan);
}

const fastrope_report* batch_report(const fastrope_batch* batch, std::int64_t sequence) {
  const bool exists = sequence >= 0 && sequence < std::ssize(batch->reports);
  return exists ? &batch->reports[static_cast<std::size_t>(sequence)] : nullptr;
}

template <class Real, template <class> class SomePlan>
RunStatus run_batch(const SomePlan<Real>& plan, std::span<const fastrope_sequence> sequences,
                    std::span<std::byte> workspace) {
  bool pairs = true;
  for (const fastrope_sequence& x : sequences) {
    c::tensors<Real>(x);  // throws here, not in a run
    if ((x.q.type == FASTROPE_F64) != std::is_same_v<Real, double>) return RunStatus::shape_mismatch;
    pairs = pairs && c::are_pairs(x.q, x.k, x.v);
  }
  return c::with_operand<Real>(pairs, [&]<class Operand>(std::type_identity<Operand>) {
    const auto views = [&](std::size_t s) { return c::tensors<Real>(sequences[s]); };
    return plan.template run_as<Operand>(sequences.size(), views, workspace);
  });
}
fastrope_status batch_run(const fastrope_batch* batch, const fastrope_sequence* sequences, std::int64_t count,
                          void* workspace, std::size_t workspace_bytes) {
  return guarded([&] {
    const std::span given(sequences, size_of("sequences", sequences, count));
    return std::visit(
        [&](const auto& plan) { return run_batch(plan, given, bytes_at(workspace, workspace_bytes)); },
        batch->plan);
  });
}

void batch_destroy(fastrope_batch* batch) { delete batch; }

// ---- recurrent attention ----

fastrope_status recurrent_create(fastrope_type arithmetic, std::int64_t heads, std::int64_t kv_heads,
                                 std::int64_t d, std::int64_t d_v, const fastrope_options* options,
                                 double radius, fastrope_recurrent** recurrent) {
  return create(recurrent, [&] {
    return c::with_arithmetic(arithmetic, [&]<class Real>(std::type_identity<Real>) {
      const Options o = c::options(options);
      return std::make_unique<fastrope_recurrent>(
          fastrope_recurrent{radius == 0 ? RecurrentAttention<Real>(heads, kv_heads, d, d_v, o)
                                         : RecurrentAttention<Real>(heads, kv_heads, d, d_v, o, radius)});
    });
  });
}

fastrope_status recurrent_prefill(fastrope_recurrent* recurrent, const fastrope_tensor* q,
                                  const fastrope_tensor* k, const fastrope_tensor* v,
                                  const fastrope_tensor* out, const fastrope_matrix* log_gates,
                                  const fastrope_matrix* log_input_gates) {
  return guarded([&] {
    std::visit(
        [&](auto& r) {
          r.prefill_rows(c::queries(q), c::cached<StoredRows>("k", k), c::cached<StoredRows>("v", v),
                         c::output(out), c::gates(log_gates, log_input_gates));
        },
        recurrent->recurrence);
  });
}

fastrope_status recurrent_step(fastrope_recurrent* recurrent, const fastrope_tensor* q,
                               const fastrope_tensor* k, const fastrope_tensor* v, const fastrope_tensor* out,
                               const fastrope_matrix* log_gates, const fastrope_matrix* log_input_gates) {
  return guarded([&] {
    return std::visit(
        [&](auto& r) {
          return r.step_rows(c::queries(q), c::cached<StoredRows>("k", k), c::cached<StoredRows>("v", v),
                             c::output(out), c::gates(log_gates, log_input_gates));
        },
        recurrent->recurrence);
  });
}

std::int64_t recurrent_tokens(const fastrope_recurrent* recurrent) {
  return std::visit([](const auto& r) { return r.tokens(); }, recurrent->recurrence);
}

fastrope_matrix recurrent_row_bounds(const fastrope_recurrent* recurrent) {
  const MatrixView<const double> bounds =
      std::visit([](const auto& r) { return r.row_bounds(); }, recurrent->recurrence);
  return {const_cast<double*>(bounds.data), bounds.rows, bounds.cols, bounds.row_stride};
}

std::size_t recurrent_state_bytes(const fastrope_recurrent* recurrent) {
  return std::visit([](const auto& r) { return r.state_bytes(); }, recurrent->recurrence);
}

fastrope_status recurrent_save(const fastrope_recurrent* recurrent, void* to, std::size_t bytes) {
  return guarded([&] {
    return std::visit([&](const auto& r) { return r.save(bytes_at(to, bytes)); }, recurrent->recurrence);
  });
}

fastrope_status recurrent_load(fastrope_recurrent* recurrent, const void* from, std::size_t bytes) {
  return guarded([&] {
    std::visit(
        [&](auto& r) {
          r.load({static_cast<const std::byte*>(from), from == nullptr ? 0 : bytes});
        },
        recurrent->recurrence);
  });
}

void recurrent_destroy(fastrope_recurrent* recurrent) { delete recurrent; }

// ---- Toeplitz matrices ----

fastrope_status toeplitz_create(fastrope_type type, std::int64_t n_rows, std::int64_t n_cols,
                                const fastrope_matrix* generators, fastrope_toeplitz** toeplitz) {
  return create(toeplitz, [&] {
    return with_real("a generator", type, [&]<class Real>(std::type_identity<Real>) {
      return std::make_unique<fastrope_toeplitz>(fastrope_toeplitz{ToeplitzOperator<Real>::per_channel(
          n_rows, n_cols, c::view_of<const Real>(c::require("generators", generators)))});
    });
  });
}

/// product(the matrix, executor), Real its type.
template <class Product>
fastrope_status multiply(const fastrope_toeplitz* toeplitz, const fastrope_executor* executor,
                         Product&& product) {
  return guarded([&] {
    const Executor threads = executor == nullptr ? Executor::serial() : c::executor(*executor);
    std::visit([&](const auto& matrix) { product(matrix, threads); }, toeplitz->matrix);
  });
}

fastrope_status toeplitz_apply(const fastrope_toeplitz* toeplitz, const fastrope_matrix* x,
                               const fastrope_matrix* y, const fastrope_executor* executor) {
  return multiply(toeplitz, executor,
                  [&]<class Real>(const ToeplitzOperator<Real>& matrix, const Executor& threads) {
                    matrix.apply(c::view_of<const Real>(c::require("x", x)),
                                 c::view_of<Real>(c::require("y", y)), threads);
                  });
}

fastrope_status toeplitz_apply_transpose(const fastrope_toeplitz* toeplitz, const fastrope_matrix* x,
                                         const fastrope_matrix* y, const fastrope_executor* executor) {
  return multiply(toeplitz, executor,
                  [&]<class Real>(const ToeplitzOperator<Real>& matrix, const Executor& threads) {
                    matrix.apply_transpose(c::view_of<const Real>(c::require("x", x)),
                                           c::view_of<Real>(c::require("y", y)), threads);
                  });
}

fastrope_status toeplitz_apply_hadamard(const fastrope_toeplitz* toeplitz, const fastrope_matrix* u,
                                        const fastrope_matrix* v, const fastrope_matrix* x,
                                        const fastrope_matrix* y, const fastrope_executor* executor) {
  return multiply(
      toeplitz, executor, [&]<class Real>(const ToeplitzOperator<Real>& matrix, const Executor& threads) {
        matrix.apply_hadamard(
            c::view_of<const Real>(c::require("u", u)), c::view_of<const Real>(c::require("v", v)),
            c::view_of<const Real>(c::require("x", x)), c::view_of<Real>(c::require("y", y)), threads);
      });
}

void toeplitz_destroy(fastrope_toeplitz* toeplitz) { delete toeplitz; }

// ---- storage ----

/// f(std::type_identity<T>{}, elements or blocks) for `count` numbers of T.
template <class F>
void with_quantised(fastrope_type type, std::int64_t count, F&& f) {
  if (count < 0) detail::fail("there are ", count, " numbers");
  const auto of = [&]<class T>(std::type_identity<T> t) {
    f(t, static_cast<std::size_t>(blocks_of<T>(count)));
  };
  switch (type) {
    case FASTROPE_E4M3:
      return of(std::type_identity<float8_e4m3>{});
    case FASTROPE_E5M2:
      return of(std::type_identity<float8_e5m2>{});
    case FASTROPE_Q8_0:
      return of(std::type_identity<Q8_0>{});
    case FASTROPE_Q4_0:
      return of(std::type_identity<Q4_0>{});
    default:
      detail::fail("floats are quantised to Q8_0, Q4_0, E4M3 or E5M2, not to type ", static_cast<int>(type));
  }
}

fastrope_status quantize(fastrope_type type, const float* x, std::int64_t count, void* to) {
  return guarded([&] {
    with_quantised(type, count, [&]<class T>(std::type_identity<T>, std::size_t elements) {
      fastrope::quantize(c::span_of<float>("x", x, count), std::span(static_cast<T*>(to), to ? elements : 0));
    });
  });
}

fastrope_status dequantize(fastrope_type type, const void* x, std::int64_t count, float* to) {
  return guarded([&] {
    with_quantised(type, count, [&]<class T>(std::type_identity<T>, std::size_t elements) {
      fastrope::dequantize(std::span(static_cast<const T*>(x), x ? elements : 0),
                           std::span(to, size_of("to", to, count)));
    });
  });
}

/// f(x, integers) of [rows, cols].
template <class F>
fastrope_status scaled(const float* x, std::int64_t rows, std::int64_t cols, std::int8_t* to, F&& f) {
  return guarded([&] {
    if (rows < 0 || cols < 0) detail::fail("x is [", rows, ", ", cols, "]");
    const std::int64_t count = saturating_product(rows, cols);
    f(c::span_of<float>("x", x, count), std::span(to, size_of("to", to, count)));
  });
}

fastrope_status quantize_rows(const float* x, std::int64_t rows, std::int64_t cols, std::int8_t* to,
                              float* scales) {
  return scaled(x, rows, cols, to, [&](auto numbers, auto integers) {
    fastrope::quantize_rows(numbers, integers, std::span(scales, size_of("scales", scales, rows)));
  });
}

fastrope_status quantize_columns(const float* x, std::int64_t rows, std::int64_t cols, std::int8_t* to,
                                 float* scales) {
  return scaled(x, rows, cols, to, [&](auto numbers, auto integers) {
    fastrope::quantize_columns(numbers, integers, std::span(scales, size_of("scales", scales, cols)));
  });
}

constexpr fastrope_compiled::Table kTable = {
#define FASTROPE_FUNCTION(result, failed, name, parameters, arguments) .name = name,
#include "functions.inc"
#undef FASTROPE_FUNCTION
    .target = kTargetName,
};

}  // namespace

#define FASTROPE_JOIN_(a, b) a##b
#define FASTROPE_JOIN(a, b) FASTROPE_JOIN_(a, b)
extern "C" const fastrope_compiled::Table* FASTROPE_JOIN(fastrope_level_,
                                                         FASTROPE_TARGET)(fastrope_compiled::KeepError keep) {
  keep_error = keep;
  return &kTable;
}
