#include "support/stored_call.hpp"

namespace fastrope_test::detail {

using fastrope::float16;

std::unique_ptr<PromiseCall> float16_call(const PromiseProblem& problem) {
  return std::make_unique<StoredCall<float16, float16, float16>>(problem);
}

}  // namespace fastrope_test::detail
