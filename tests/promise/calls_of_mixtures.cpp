#include "support/stored_call.hpp"

namespace fastrope_test::detail {

using fastrope::bfloat16;

std::unique_ptr<PromiseCall> narrow_keys_call(const PromiseProblem& problem) {
  return std::make_unique<StoredCall<float, bfloat16, float>>(problem);
}

std::unique_ptr<PromiseCall> narrow_keys_and_out_call(const PromiseProblem& problem) {
  return std::make_unique<StoredCall<float, bfloat16, bfloat16>>(problem);
}

}  // namespace fastrope_test::detail
