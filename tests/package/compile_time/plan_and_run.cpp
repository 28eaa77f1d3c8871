// A file that makes a plan and runs it.
#include <cstddef>
#include <fastrope/fastrope.hpp>
#include <vector>

bool attention(fastrope::TensorView<const float> q, fastrope::TensorView<const float> k,
               fastrope::TensorView<const float> v, fastrope::TensorView<float> out) {
  const auto plan = fastrope::make_plan(q, k, v, {.tolerance = 1e-3});
  std::vector<std::byte> workspace(plan.workspace_bytes());
  return plan.run(q, k, v, out, workspace) == fastrope::RunStatus::ok;
}
