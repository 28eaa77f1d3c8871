#include "support/stored_call.hpp"

namespace fastrope_test::detail {

using fastrope::bfloat16;

std::unique_ptr<PromiseCall> bfloat16_call(const PromiseProblem& problem) {
  return std::make_unique<StoredCall<bfloat16, bfloat16, bfloat16>>(problem);
}

std::unique_ptr<PromiseCall> bfloat16_to_float_call(const PromiseProblem& problem) {
  return std::make_unique<StoredCall<bfloat16, bfloat16, float>>(problem);
}

}  // namespace fastrope_test::detail
