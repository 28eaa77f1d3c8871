#include "support/stored_call.hpp"

namespace fastrope_test::detail {

std::unique_ptr<PromiseCall> float_call(const PromiseProblem& problem) {
  return std::make_unique<StoredCall<float, float, float>>(problem);
}

}  // namespace fastrope_test::detail
