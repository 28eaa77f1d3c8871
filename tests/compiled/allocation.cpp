// What runs through the C interface allocates nothing.
#include <vector>

#include "answers.hpp"
#include "fastrope/fastrope.h"
#include "support/counted_new.hpp"

namespace {

fastrope_tensor tensor(std::vector<float>& x, int64_t heads, int64_t rows, int64_t cols) {
  fastrope_tensor c = {};
  c.data = x.data();
  c.heads = heads;
  c.rows = rows;
  c.cols = cols;
  c.head_stride = rows * cols;
  c.row_stride = cols;
  return c;
}
void in_turn(void*, int64_t count, fastrope_task task, void* task_context) {
  for (int64_t i = 0; i < count; ++i) task(task_context, i, 0);
}

}  // namespace

long allocations_of_runs() {
  constexpr int64_t kHeads = 2, kN = 64, kD = 16;
  std::vector<float> x(kHeads * kN * kD, 0.5F), y(x.size());
  const fastrope_tensor q = tensor(x, kHeads, kN, kD), out = tensor(y, kHeads, kN, kD);
  fastrope_options options = fastrope_options_default();
  options.mask.kind = FASTROPE_MASK_CAUSAL;
  options.executor = {1, in_turn, nullptr};
  const fastrope_shapes shapes = {kHeads, kHeads, kN, kN, kD, kD};
  fastrope_plan* plan = nullptr;
  fastrope_batch* batch = nullptr;
  fastrope_recurrent* recurrent = nullptr;
  bool fine =
      fastrope_plan_create_for_shapes(FASTROPE_F32, &shapes, &options, &plan) == FASTROPE_OK &&
      fastrope_batch_create_for_shapes(FASTROPE_F32, &shapes, 1, &options, nullptr, &batch) == FASTROPE_OK;
  const double kernel[] = {1, 1, 0.5};
  options.kernel = kernel;
  options.kernel_count = 3;
  fine = fine && fastrope_recurrent_create(FASTROPE_F32, kHeads, kHeads, kD, kD, &options, 0, &recurrent) ==
                     FASTROPE_OK;
  if (!fine) return -1;
  std::vector<unsigned char> workspace(fastrope_plan_workspace_bytes(plan)),
      of_batch(fastrope_batch_workspace_bytes(batch));
  const fastrope_sequence sequence = {q, q, q, out, {}};
  fastrope_tensor token = q, answer = out;
  token.rows = answer.rows = 1;

  const long before = fastrope_test::allocations;
  fine = fastrope_plan_run(plan, &q, &q, &q, &out, nullptr, workspace.data(), workspace.size(), nullptr) ==
             FASTROPE_OK &&
         fastrope_plan_run(plan, &token, &q, &q, &answer, nullptr, workspace.data(), workspace.size(),
                           nullptr) == FASTROPE_OK &&
         fastrope_batch_run(batch, &sequence, 1, of_batch.data(), of_batch.size()) == FASTROPE_OK &&
         fastrope_recurrent_step(recurrent, &token, &token, &token, &answer, nullptr, nullptr) == FASTROPE_OK;
  const long after = fastrope_test::allocations;
  fastrope_plan_destroy(plan);
  fastrope_batch_destroy(batch);
  fastrope_recurrent_destroy(recurrent);
  return fine ? after - before : -1;
}
