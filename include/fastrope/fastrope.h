/* The C interface of fastrope's compiled form (docs/compiled.md): C99 and C++, whatever the compiler's flags.
 *
 * What computes is chosen once, by the processor that runs it (fastrope_target). Functions mean what those of
 * the same name in the headers do, which have the formulas, bounds and costs; here stand shapes and
 * ownership.
 *
 * - Functions that can fail return a fastrope_status; fastrope_last_error() says, for this thread, what was
 * wrong and would be right. Nothing is thrown. Functions called run or step allocate nothing.
 * - Structs that are all zero mean the defaults. Those that begin with struct_size may grow: it is the size
 * of the struct as the caller knows it, and what a caller does not know yet has its default.
 * - Handles belong to the caller until their _destroy, which takes NULL. One handle may be used by several
 * threads at once where nothing says otherwise; a recurrence takes one call at a time.
 * - Sizes and strides count elements, of Q8_0 and Q4_0 strides count blocks of 32 and sizes the numbers in
 * them.
 * - Before version 1.0 minor versions may change this interface.
 */
#ifndef FASTROPE_FASTROPE_H
#define FASTROPE_FASTROPE_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define FASTROPE_API __attribute__((visibility("default")))
#else
#define FASTROPE_API
#endif

/* In C any int may stand in an enum, also one that is refused. */
#ifdef __cplusplus
#define FASTROPE_ANY_INT : int
#else
#define FASTROPE_ANY_INT
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* The first ones are fastrope::RunStatus. */
typedef enum fastrope_status FASTROPE_ANY_INT {
  FASTROPE_OK = 0,
  FASTROPE_SHAPE_MISMATCH,        /* run: tensors are not of the plan's shapes or types, or NULL */
  FASTROPE_WORKSPACE_TOO_SMALL,   /* run, save: fewer bytes than asked for; nothing was written */
  FASTROPE_EXECUTOR_FAILED,       /* run: parallel_for broke its contract; out has no meaning */
  FASTROPE_LSE_UNAVAILABLE,       /* run: lse was asked for, and a head is approximated */
  FASTROPE_PLACES_REFUSED,        /* run: positions or key ranges that run reads are not valid */
  FASTROPE_POSITION_OUT_OF_RANGE, /* step: a recurrence is as long as rope's phases are held */
  FASTROPE_GATES_REFUSED,         /* run, step: a log gate is above 0, or an input gate not below infinity */
  FASTROPE_PROMISE_BROKEN,        /* step: entries may be beyond the recurrence's radius */
  FASTROPE_INVALID_ARGUMENT,      /* shapes, options or bytes that clash: the message has the values */
  FASTROPE_OUT_OF_MEMORY,
  FASTROPE_NO_TARGET,     /* nothing here runs on this processor, or FASTROPE_TARGET names what does not */
  FASTROPE_INTERNAL_ERROR /* anything else; the message has what is known */
} fastrope_status;

/* What the last call of this thread that failed has to say; "" before any. Valid until the next one fails. */
FASTROPE_API const char* fastrope_last_error(void);
/* "major.minor.patch" */
FASTROPE_API const char* fastrope_version(void);
/* The instruction set in use, such as "avx2": the widest that this processor has, or what the environment
 * variable FASTROPE_TARGET named when the first function was called. NULL where there is none. */
FASTROPE_API const char* fastrope_target(void);

/* ---- tensors ---- */

typedef enum fastrope_type FASTROPE_ANY_INT {
  FASTROPE_F32 = 0,
  FASTROPE_F64,
  FASTROPE_BF16,
  FASTROPE_F16,
  FASTROPE_I8, /* from here on keys and values only, except BOOL */
  FASTROPE_E4M3,
  FASTROPE_E5M2,
  FASTROPE_Q8_0,
  FASTROPE_Q4_0,
  FASTROPE_BOOL /* a byte, 0 or 1: dense masks only */
} fastrope_type;

/* heads x rows x cols. Element (h, i, c) is data[h * head_stride + i * row_stride + c]; in pages, as
 * fastrope::PagedView has it, data[pages[i / page_rows] * page_stride + h * head_stride + i % page_rows *
 * row_stride + c]. Numbers are those stored times row_scales[h * row_scale_stride + i] and column_scales[h *
 * column_scale_stride + c], where these are given (of pages, i is the row in the pool, page * page_rows + i %
 * page_rows, of row_scale_count). Pages and scales: of keys and values. */
typedef struct fastrope_tensor {
  void* data;
  fastrope_type type;
  int64_t heads, rows, cols;
  int64_t head_stride, row_stride;
  const int32_t* pages; /* NULL: none */
  int64_t page_count, page_rows, page_stride;
  const float* row_scales; /* NULL: none */
  int64_t row_scale_count, row_scale_stride;
  const float* column_scales; /* NULL: none */
  int64_t column_scale_stride;
} fastrope_tensor;

/* rows x cols of F32 or F64, as the function says. */
typedef struct fastrope_matrix {
  void* data;
  int64_t rows, cols, row_stride;
} fastrope_matrix;

/* q [heads, n_q, d], k [kv_heads, n_k, d], v [kv_heads, n_k, d_v], out [heads, n_q, d_v] */
typedef struct fastrope_shapes {
  int64_t heads, kv_heads, n_q, n_k, d, d_v;
} fastrope_shapes;

/* ---- threads ---- */

typedef void (*fastrope_task)(void* task_context, int64_t task, int64_t worker);
/* Calls task(task_context, i, worker) for each i in [0, count), in any order and on any threads, worker in
 * [0, workers) and no worker twice at once, and returns when all are done. Both contexts may be read by all
 * threads. */
typedef struct fastrope_executor {
  int64_t workers; /* 0: the calling thread alone; parallel_for is not looked at */
  void (*parallel_for)(void* context, int64_t count, fastrope_task task, void* task_context);
  void* context;
} fastrope_executor;

/* ---- options: fastrope::Options ---- */

typedef enum fastrope_path FASTROPE_ANY_INT {
  FASTROPE_PATH_AUTOMATIC = 0,
  FASTROPE_PATH_EXACT,
  FASTROPE_PATH_POLYNOMIAL,
  FASTROPE_PATH_TOEPLITZ
} fastrope_path;

typedef enum fastrope_mask_kind FASTROPE_ANY_INT {
  FASTROPE_MASK_FULL = 0,
  FASTROPE_MASK_CAUSAL,
  FASTROPE_MASK_LAGS /* first <= query position - key position <= last; a window of w: 0 to w - 1 */
} fastrope_mask_kind;
typedef struct fastrope_mask {
  fastrope_mask_kind kind;
  int64_t first, last;
} fastrope_mask;

typedef enum fastrope_scaling FASTROPE_ANY_INT {
  FASTROPE_SCALING_NONE = 0,
  FASTROPE_SCALING_LINEAR,
  FASTROPE_SCALING_NTK,
  FASTROPE_SCALING_YARN,
  FASTROPE_SCALING_LLAMA3,
  FASTROPE_SCALING_FACTORS
} fastrope_scaling;
/* fastrope::Rope. Members of a scaling are read where it is chosen, and then have no default but where it
 * says. */
typedef struct fastrope_rope {
  size_t struct_size;
  double base;    /* 0: 10000 */
  int half_split; /* pairs: 0: (2m, 2m + 1); 1: (m, m + rotary_dim / 2) */
  int64_t rotary_begin;
  int64_t rotary_dim;      /* 0: all columns from rotary_begin on */
  const int64_t* sections; /* [section_count] pairs of each; NULL: none */
  int64_t section_count;
  int sections_interleaved;
  fastrope_scaling scaling;
  double factor;                            /* linear, NTK, YaRN, Llama 3 */
  double original_context;                  /* YaRN, Llama 3 */
  double beta_fast, beta_slow;              /* YaRN; 0: 32 and 1 */
  int keep_ramp_ends;                       /* YaRN: not truncated to whole pairs */
  double attention_factor;                  /* YaRN and factors; 0: the default of each */
  double low_freq_factor, high_freq_factor; /* Llama 3 */
  const double* factors;                    /* [factor_count] of FACTORS */
  int64_t factor_count;
} fastrope_rope;

typedef enum fastrope_bias_kind FASTROPE_ANY_INT {
  FASTROPE_BIAS_NONE = 0,
  FASTROPE_BIAS_ALIBI,        /* values: a slope for each head, or one for all */
  FASTROPE_BIAS_T5,           /* values: [buckets, heads] */
  FASTROPE_BIAS_TABLE,        /* values: [heads, lags] from first_lag on, heads may be 1 */
  FASTROPE_BIAS_CLAMPED_TABLE /* the same, constant beyond its ends */
} fastrope_bias_kind;
typedef struct fastrope_lag_bias {
  fastrope_bias_kind kind;
  const double* values; /* [value_count] */
  int64_t value_count;
  int64_t heads;
  int64_t first_lag;
  int t5_bidirectional;
  int64_t t5_max_distance; /* 0: 128 */
} fastrope_lag_bias;

/* fastrope::RelativeWeights */
typedef struct fastrope_relative_weights {
  const int64_t* support; /* [entries, 2]: pairs (a, b) */
  int64_t entries;        /* 0: none are given */
  int64_t first_lag;
  const double* values; /* [entries, lags] */
  int64_t lags;
} fastrope_relative_weights;

/* A half-open range of keys. */
typedef struct fastrope_range {
  int64_t begin, end;
} fastrope_range;

/* What one sequence has of its own (fastrope::SequenceOptions). Positions and ranges of a plan with capacity
 * and of a batch are read when it runs, and must outlive it; a tensor is copied, its elements are not. */
typedef struct fastrope_places {
  size_t struct_size;
  const int64_t* query_positions; /* NULL: where the last n_q keys stand */
  int64_t query_position_count;
  const int64_t* key_positions; /* NULL: 0 .. n_k - 1 */
  int64_t key_position_count;
  fastrope_matrix query_section_positions; /* [sections, n_q] of int64_t; no data: the positions above */
  fastrope_matrix key_section_positions;   /* [sections, n_k] of int64_t */
  const fastrope_range* key_ranges;        /* [n_q, per_row] or [heads, n_q, per_row]; NULL: every key */
  int64_t key_range_count;
  int64_t key_ranges_per_row;
  fastrope_tensor dense_bias;      /* [heads, n_q, n_k] of F32, F16 or BF16; no data: none */
  fastrope_tensor dense_mask;      /* [heads, n_q, n_k] of BOOL, 1: may attend; no data: none */
  fastrope_matrix log_gates;       /* [kv_heads or heads, n_k] of float; of no rows: none */
  fastrope_matrix log_input_gates; /* the same */
} fastrope_places;

/* fastrope::Normaliser */
typedef enum fastrope_normaliser_kind FASTROPE_ANY_INT {
  FASTROPE_ROW_SUM = 0, /* the sum of the weights + constant */
  FASTROPE_AT_LEAST,    /* the larger of |the sum| and the constant */
  FASTROPE_UNNORMALISED /* 1 */
} fastrope_normaliser_kind;
typedef struct fastrope_normaliser {
  fastrope_normaliser_kind kind;
  double constant;
} fastrope_normaliser;

/* fastrope::CostModel: work a second of one core, which decides between paths; a rate of 0 is the library's
 * own. */
typedef struct fastrope_cost_model {
  size_t struct_size;
  double tile, weigh, feature, transform, element, round, look;
} fastrope_cost_model;
/* The rates of a file that bench/calibrate wrote, of the instruction set in use. struct_size of `to` is
 * given.
 */
FASTROPE_API fastrope_status fastrope_cost_model_read(const char* path, fastrope_cost_model* to);

typedef struct fastrope_options {
  size_t struct_size;
  double tolerance; /* max |out - exact| / max|V|; 0: exact */
  fastrope_path path;
  const fastrope_rope* rope; /* NULL: none */
  int rope_already_applied;
  fastrope_mask mask;
  fastrope_lag_bias bias;
  fastrope_relative_weights weights;
  int has_scale; /* 0: 1 / sqrt(d) */
  double scale;
  double softcap;     /* 0: none */
  const float* sinks; /* [heads] or NULL */
  int64_t sink_count;
  const double* kernel; /* [kernel_count] coefficients of a polynomial kernel; NULL: softmax */
  int64_t kernel_count;
  int kernel_may_be_negative;
  int64_t verify;                /* rows that fastrope_attend recomputes for its report */
  const fastrope_places* places; /* NULL: the defaults; of a batch each sequence has its own */
  fastrope_executor executor;
  fastrope_normaliser normaliser;        /* but the plain sum: of polynomial kernels */
  const fastrope_cost_model* cost_model; /* NULL: the library's own */
} fastrope_options;

static inline fastrope_options fastrope_options_default(void) {
#ifdef __cplusplus
  fastrope_options options = {};
#else
  fastrope_options options = {0};
#endif
  options.struct_size = sizeof options;
  return options;
}

/* ---- reports ---- */

typedef struct fastrope_report fastrope_report;
/* fastrope::HeadReport */
typedef struct fastrope_head {
  size_t struct_size;
  fastrope_path path;
  int64_t degree, rank;
  double entry_bound, error_bound, rounding;
  int64_t repaired_rows, verified_rows;
  double observed_error;
  const char* reason; /* the report's */
} fastrope_head;

/* The length of the text, of which as much is written as there is room for, a zero at the end; `to` may be
 * NULL where size is 0. Of an error, 0. */
FASTROPE_API size_t fastrope_report_text(const fastrope_report* report, char* to, size_t size);
FASTROPE_API size_t fastrope_report_json(const fastrope_report* report, char* to, size_t size);
/* Query heads of the call. */
FASTROPE_API int64_t fastrope_report_heads(const fastrope_report* report);
FASTROPE_API fastrope_status fastrope_report_head(const fastrope_report* report, int64_t head,
                                                  fastrope_head* to);
/* [heads * n_q] of a call with a polynomial kernel: bounds of rows over max|V|; NULL otherwise. */
FASTROPE_API const double* fastrope_report_row_bounds(const fastrope_report* report);
FASTROPE_API void fastrope_report_destroy(fastrope_report* report);

/* ---- attention ---- */

/* Plans and runs; options may be NULL. report: NULL, or set to what was done, the caller's. */
FASTROPE_API fastrope_status fastrope_attend(const fastrope_tensor* q, const fastrope_tensor* k,
                                             const fastrope_tensor* v, const fastrope_tensor* out,
                                             const fastrope_options* options, fastrope_report** report);

typedef struct fastrope_plan fastrope_plan;
/* fastrope::RunDetails; what is NULL is not wanted. */
typedef struct fastrope_run_details {
  int64_t* repaired_rows; /* [heads] */
  double* row_bounds;     /* [heads * n_q] */
} fastrope_run_details;

/* For these tensors. */
FASTROPE_API fastrope_status fastrope_plan_create(const fastrope_tensor* q, const fastrope_tensor* k,
                                                  const fastrope_tensor* v, const fastrope_options* options,
                                                  fastrope_plan** plan);
/* For any tensors of these shapes, of softmax also for smaller n_q and n_k; q of F64 where arithmetic is F64,
 * else of F32, BF16 or F16. */
FASTROPE_API fastrope_status fastrope_plan_create_for_shapes(fastrope_type arithmetic,
                                                             const fastrope_shapes* shapes,
                                                             const fastrope_options* options,
                                                             fastrope_plan** plan);
FASTROPE_API size_t fastrope_plan_workspace_bytes(const fastrope_plan* plan);
/* The plan's. */
FASTROPE_API const fastrope_report* fastrope_plan_report(const fastrope_plan* plan);
/* lse: NULL or [heads, n_q] of the arithmetic; details: NULL or what is wanted, not with lse. */
FASTROPE_API fastrope_status fastrope_plan_run(const fastrope_plan* plan, const fastrope_tensor* q,
                                               const fastrope_tensor* k, const fastrope_tensor* v,
                                               const fastrope_tensor* out, const fastrope_matrix* lse,
                                               void* workspace, size_t workspace_bytes,
                                               const fastrope_run_details* details);
FASTROPE_API void fastrope_plan_destroy(fastrope_plan* plan);

/* Attention to a part of the keys: out, and lse [heads, n_q] of the arithmetic. */
FASTROPE_API fastrope_status fastrope_attend_partial(const fastrope_tensor* q, const fastrope_tensor* k,
                                                     const fastrope_tensor* v, const fastrope_tensor* out,
                                                     const fastrope_matrix* lse,
                                                     const fastrope_options* options);
/* The other part is merged into out and lse; out of F32 or F64. */
FASTROPE_API fastrope_status fastrope_merge(const fastrope_tensor* out, const fastrope_matrix* lse,
                                            const fastrope_tensor* other_out,
                                            const fastrope_matrix* other_lse);

/* ---- batches ---- */

typedef struct fastrope_sequence {
  fastrope_tensor q, k, v, out;
  fastrope_matrix lse; /* no data: not wanted */
} fastrope_sequence;
typedef struct fastrope_batch fastrope_batch;

/* Every sequence exact, of at most these shapes. places: [count] or NULL. */
FASTROPE_API fastrope_status fastrope_batch_create_for_shapes(fastrope_type arithmetic,
                                                              const fastrope_shapes* shapes, int64_t count,
                                                              const fastrope_options* options,
                                                              const fastrope_places* places,
                                                              fastrope_batch** batch);
/* Each sequence planned for its q, k and v, with the options' tolerance. */
FASTROPE_API fastrope_status fastrope_batch_create(const fastrope_sequence* sequences, int64_t count,
                                                   const fastrope_options* options,
                                                   const fastrope_places* places, fastrope_batch** batch);
FASTROPE_API size_t fastrope_batch_workspace_bytes(const fastrope_batch* batch);
/* For a run of these shapes alone, of a batch that was created for shapes. */
FASTROPE_API size_t fastrope_batch_step_bytes(const fastrope_batch* batch, const fastrope_shapes* step,
                                              int64_t count);
/* The batch's; NULL where it was created for shapes. */
FASTROPE_API const fastrope_report* fastrope_batch_report(const fastrope_batch* batch, int64_t sequence);
FASTROPE_API fastrope_status fastrope_batch_run(const fastrope_batch* batch,
                                                const fastrope_sequence* sequences, int64_t count,
                                                void* workspace, size_t workspace_bytes);
FASTROPE_API void fastrope_batch_destroy(fastrope_batch* batch);

/* ---- recurrent attention ---- */

typedef struct fastrope_recurrent fastrope_recurrent;

/* With a polynomial kernel, and radius 0; or softmax whose entries are promised to be at most the radius,
 * within the options' tolerance. */
FASTROPE_API fastrope_status fastrope_recurrent_create(fastrope_type arithmetic, int64_t heads,
                                                       int64_t kv_heads, int64_t d, int64_t d_v,
                                                       const fastrope_options* options, double radius,
                                                       fastrope_recurrent** recurrent);
/* The next n tokens: q [heads, n, d], k [kv_heads, n, d], v [kv_heads, n, d_v], out [heads, n, d_v]. Gates:
 * NULL or [kv_heads or heads, n] of float. */
FASTROPE_API fastrope_status fastrope_recurrent_prefill(fastrope_recurrent* recurrent,
                                                        const fastrope_tensor* q, const fastrope_tensor* k,
                                                        const fastrope_tensor* v, const fastrope_tensor* out,
                                                        const fastrope_matrix* log_gates,
                                                        const fastrope_matrix* log_input_gates);
/* The next one. */
FASTROPE_API fastrope_status fastrope_recurrent_step(fastrope_recurrent* recurrent, const fastrope_tensor* q,
                                                     const fastrope_tensor* k, const fastrope_tensor* v,
                                                     const fastrope_tensor* out,
                                                     const fastrope_matrix* log_gates,
                                                     const fastrope_matrix* log_input_gates);
FASTROPE_API int64_t fastrope_recurrent_tokens(const fastrope_recurrent* recurrent);
/* [heads, rows of the last prefill or step] of double; valid until the next. */
FASTROPE_API fastrope_matrix fastrope_recurrent_row_bounds(const fastrope_recurrent* recurrent);
FASTROPE_API size_t fastrope_recurrent_state_bytes(const fastrope_recurrent* recurrent);
FASTROPE_API fastrope_status fastrope_recurrent_save(const fastrope_recurrent* recurrent, void* to,
                                                     size_t bytes);
FASTROPE_API fastrope_status fastrope_recurrent_load(fastrope_recurrent* recurrent, const void* from,
                                                     size_t bytes);
FASTROPE_API void fastrope_recurrent_destroy(fastrope_recurrent* recurrent);

/* ---- Toeplitz matrices ---- */

typedef struct fastrope_toeplitz fastrope_toeplitz;

/* T_ij = generator[i - j + n_cols - 1]; generators: [1 or channels, n_rows + n_cols - 1] of F32 or F64, which
 * all matrices below are of. Those of a product allocate; executor may be NULL. */
FASTROPE_API fastrope_status fastrope_toeplitz_create(fastrope_type type, int64_t n_rows, int64_t n_cols,
                                                      const fastrope_matrix* generators,
                                                      fastrope_toeplitz** toeplitz);
/* y [n_rows, c] = T x, x [n_cols, c] */
FASTROPE_API fastrope_status fastrope_toeplitz_apply(const fastrope_toeplitz* toeplitz,
                                                     const fastrope_matrix* x, const fastrope_matrix* y,
                                                     const fastrope_executor* executor);
/* y [n_cols, c] = T' x, x [n_rows, c] */
FASTROPE_API fastrope_status fastrope_toeplitz_apply_transpose(const fastrope_toeplitz* toeplitz,
                                                               const fastrope_matrix* x,
                                                               const fastrope_matrix* y,
                                                               const fastrope_executor* executor);
/* y [n_rows, c] = (T o u v') x, u [n_rows, r], v [n_cols, r], x [n_cols, c] */
FASTROPE_API fastrope_status fastrope_toeplitz_apply_hadamard(
    const fastrope_toeplitz* toeplitz, const fastrope_matrix* u, const fastrope_matrix* v,
    const fastrope_matrix* x, const fastrope_matrix* y, const fastrope_executor* executor);
FASTROPE_API void fastrope_toeplitz_destroy(fastrope_toeplitz* toeplitz);

/* ---- storage ---- */

/* `count` floats to Q8_0, Q4_0, E4M3 or E5M2, and back. */
FASTROPE_API fastrope_status fastrope_quantize(fastrope_type type, const float* x, int64_t count, void* to);
FASTROPE_API fastrope_status fastrope_dequantize(fastrope_type type, const void* x, int64_t count, float* to);
/* x [rows, cols] to integers with a scale for each row, or each column. */
FASTROPE_API fastrope_status fastrope_quantize_rows(const float* x, int64_t rows, int64_t cols, int8_t* to,
                                                    float* scales);
FASTROPE_API fastrope_status fastrope_quantize_columns(const float* x, int64_t rows, int64_t cols, int8_t* to,
                                                       float* scales);

#ifdef __cplusplus
}
#endif

#undef FASTROPE_ANY_INT

#endif
