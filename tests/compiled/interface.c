/* The C interface in C99: results against the formula written out, and what misuse is told. */
#include <fastrope/fastrope.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { kHeads = 2, kN = 40, kD = 8, kSize = kHeads * kN * kD };

static int failures = 0;

static void expect(int holds, const char* what) {
  if (holds) return;
  fprintf(stderr, "error: %s (last message: %s)\n", what, fastrope_last_error());
  ++failures;
}
static void refuses(fastrope_status status, const char* part_of_message) {
  expect(status == FASTROPE_INVALID_ARGUMENT, part_of_message);
  expect(strstr(fastrope_last_error(), part_of_message) != NULL, part_of_message);
}

static fastrope_tensor tensor(float* data) {
  fastrope_tensor x;
  memset(&x, 0, sizeof x);
  x.data = data;
  x.type = FASTROPE_F32;
  x.heads = kHeads;
  x.rows = kN;
  x.cols = kD;
  x.head_stride = kN * kD;
  x.row_stride = kD;
  return x;
}

/* out = softmax(q k' / sqrt(d), causal) v in double; the largest difference to `got`. */
static double error_of(const float* q, const float* k, const float* v, const float* got) {
  double most = 0;
  for (int h = 0; h < kHeads; ++h)
    for (int i = 0; i < kN; ++i) {
      double sum = 0, out[kD] = {0};
      for (int j = 0; j <= i; ++j) {
        double x = 0;
        for (int c = 0; c < kD; ++c) x += (double)q[(h * kN + i) * kD + c] * (double)k[(h * kN + j) * kD + c];
        x = exp(x / sqrt(kD));
        sum += x;
        for (int c = 0; c < kD; ++c) out[c] += x * (double)v[(h * kN + j) * kD + c];
      }
      for (int c = 0; c < kD; ++c) {
        const double apart = fabs(out[c] / sum - (double)got[(h * kN + i) * kD + c]);
        if (!(apart <= most)) most = apart;
      }
    }
  return most;
}

/* An engine's threads: here one after the other, the last task first. */
static void backwards(void* context, int64_t count, fastrope_task task, void* task_context) {
  ++*(int*)context;
  for (int64_t i = count; i-- > 0;) task(task_context, i, i % 2);
}
static void forgetful(void* context, int64_t count, fastrope_task task, void* task_context) {
  (void)context;
  for (int64_t i = 0; i + 1 < count; ++i) task(task_context, i, 0);
}

int main(void) {
  if (fastrope_target() == NULL) {
    fprintf(stderr, "%s\n", fastrope_last_error());
    return 77;
  }
  static float q[kSize], k[kSize], v[kSize], out[kSize], again[kSize];
  for (int i = 0; i < kSize; ++i) {
    q[i] = sinf((float)(i * 7 % 101));
    k[i] = cosf((float)(i * 5 % 97));
    v[i] = sinf((float)(i * 3 % 89));
  }
  const fastrope_tensor queries = tensor(q), keys = tensor(k), values = tensor(v), result = tensor(out);
  fastrope_options options = fastrope_options_default();
  options.mask.kind = FASTROPE_MASK_CAUSAL;

  fastrope_report* report = NULL;
  expect(fastrope_attend(&queries, &keys, &values, &result, &options, &report) == FASTROPE_OK, "attend");
  expect(error_of(q, k, v, out) < 1e-5, "attend is right");
  expect(fastrope_report_heads(report) == kHeads, "heads of a report");
  fastrope_head head;
  head.struct_size = sizeof head;
  expect(fastrope_report_head(report, 1, &head) == FASTROPE_OK && head.path == FASTROPE_PATH_EXACT, "a head");
  refuses(fastrope_report_head(report, kHeads, &head), "head 2 of a report of 2");
  const size_t length = fastrope_report_text(report, NULL, 0);
  char* text = malloc(length + 1);
  expect(text != NULL && fastrope_report_text(report, text, length + 1) == length && strlen(text) == length,
         "text");
  expect(strstr(text, fastrope_target()) != NULL, "the text names the target");
  char begin[6];
  expect(fastrope_report_json(report, begin, sizeof begin) > 100 && strcmp(begin, "{\"hea") == 0,
         "a part of the text");
  free(text);
  fastrope_report_destroy(report);

  /* A plan, run twice and with an engine's threads. */
  int calls = 0;
  options.executor.workers = 2;
  options.executor.parallel_for = backwards;
  options.executor.context = &calls;
  const fastrope_shapes shapes = {kHeads, kHeads, kN, kN, kD, kD};
  fastrope_plan* plan = NULL;
  expect(fastrope_plan_create_for_shapes(FASTROPE_F32, &shapes, &options, &plan) == FASTROPE_OK, "a plan");
  const size_t bytes = fastrope_plan_workspace_bytes(plan);
  void* workspace = malloc(bytes);
  const fastrope_tensor other = tensor(again);
  expect(
      fastrope_plan_run(plan, &queries, &keys, &values, &other, NULL, workspace, bytes, NULL) == FASTROPE_OK,
      "run");
  expect(memcmp(out, again, sizeof out) == 0 && calls > 0, "threads change no bit");
  expect(fastrope_plan_run(plan, &queries, &keys, &values, &other, NULL, workspace, bytes - 1, NULL) ==
             FASTROPE_WORKSPACE_TOO_SMALL,
         "a byte too few");
  fastrope_tensor narrow = queries;
  narrow.cols = kD - 1;
  expect(fastrope_plan_run(plan, &narrow, &keys, &values, &other, NULL, workspace, bytes, NULL) ==
             FASTROPE_SHAPE_MISMATCH,
         "narrow queries");
  fastrope_plan_destroy(plan);
  options.executor.parallel_for = forgetful;
  expect(fastrope_plan_create_for_shapes(FASTROPE_F32, &shapes, &options, &plan) == FASTROPE_OK &&
             fastrope_plan_run(plan, &queries, &keys, &values, &other, NULL, workspace, bytes, NULL) ==
                 FASTROPE_EXECUTOR_FAILED,
         "a task is missing");
  fastrope_plan_destroy(plan);
  free(workspace);

  /* Structs of other sizes: an older caller's, one that says nothing, a newer one's with and without wishes.
   */
  options = fastrope_options_default();
  options.mask.kind = FASTROPE_MASK_CAUSAL;
  options.struct_size = offsetof(fastrope_options, executor);
  options.executor.workers = -5; /* beyond its end */
  memset(again, 0, sizeof again);
  expect(fastrope_attend(&queries, &keys, &values, &other, &options, NULL) == FASTROPE_OK, "an older struct");
  expect(memcmp(out, again, sizeof out) == 0, "an older struct is read");
  options.struct_size = 0;
  refuses(fastrope_attend(&queries, &keys, &values, &other, &options, NULL), "options.struct_size is 0");
  struct {
    fastrope_options known;
    double wish;
  } newer;
  memset(&newer, 0, sizeof newer);
  newer.known.struct_size = sizeof newer;
  newer.known.mask.kind = FASTROPE_MASK_CAUSAL;
  expect(fastrope_attend(&queries, &keys, &values, &other, &newer.known, NULL) == FASTROPE_OK,
         "a newer struct");
  newer.wish = 1;
  refuses(fastrope_attend(&queries, &keys, &values, &other, &newer.known, NULL), "cannot do");

  /* Rates. */
  fastrope_cost_model rates;
  memset(&rates, 0, sizeof rates);
  options = fastrope_options_default();
  options.cost_model = &rates;
  refuses(fastrope_attend(&queries, &keys, &values, &other, &options, NULL), "cost_model.struct_size is 0");
  rates.struct_size = sizeof rates;
  expect(fastrope_attend(&queries, &keys, &values, &other, &options, NULL) == FASTROPE_OK, "rates of 0");
  rates.weigh = -1;
  refuses(fastrope_attend(&queries, &keys, &values, &other, &options, NULL), "a rate of -1");
  refuses(fastrope_cost_model_read("no such file", &rates), "no such file: no rates");
  refuses(fastrope_cost_model_read(NULL, &rates), "path is NULL");

  /* Misuse. */
  options = fastrope_options_default();
  refuses(fastrope_attend(&queries, &keys, NULL, &other, &options, NULL), "v is NULL");
  fastrope_tensor odd = keys;
  odd.type = (fastrope_type)77;
  refuses(fastrope_attend(&queries, &odd, &values, &other, &options, NULL), "type 77");
  odd.type = FASTROPE_Q8_0; /* of 8 columns */
  refuses(fastrope_attend(&queries, &odd, &values, &other, &options, NULL), "not whole blocks of 32");
  odd = queries;
  odd.pages = (const int32_t*)q;
  refuses(fastrope_attend(&odd, &keys, &values, &other, &options, NULL), "q has pages");
  options.sink_count = 3;
  refuses(fastrope_attend(&queries, &keys, &values, &other, &options, NULL),
          "sinks is NULL or of 3 elements");
  options = fastrope_options_default();
  options.executor.workers = 2;
  refuses(fastrope_attend(&queries, &keys, &values, &other, &options, NULL), "parallel_for is NULL");
  refuses(fastrope_plan_create(&queries, &keys, &values, &options, NULL), "no place for the handle");
  refuses(fastrope_plan_create_for_shapes(FASTROPE_Q4_0, &shapes, NULL, &plan), "of type 8");
  expect(plan == NULL, "no plan");
  refuses(fastrope_quantize(FASTROPE_F32, q, kSize, out), "Q8_0, Q4_0, E4M3 or E5M2");
  fastrope_plan_destroy(NULL);
  fastrope_batch_destroy(NULL);
  fastrope_recurrent_destroy(NULL);
  fastrope_toeplitz_destroy(NULL);
  fastrope_report_destroy(NULL);

  printf("fastrope %s, target %s: %d failures\n", fastrope_version(), fastrope_target(), failures);
  return failures == 0 ? 0 : 1;
}
