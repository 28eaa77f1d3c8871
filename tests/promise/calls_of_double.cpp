#include "support/stored_call.hpp"

namespace fastrope_test::detail {

std::unique_ptr<PromiseCall> double_call(const PromiseProblem& problem) {
  return std::make_unique<StoredCall<double, double, double>>(problem);
}

}  // namespace fastrope_test::detail
