#include "support/promise_call.hpp"

namespace fastrope_test {

std::unique_ptr<PromiseCall> make_promise_call(const PromiseProblem& problem) {
  switch (problem.storage) {
    case Storage::float32:
      return detail::float_call(problem);
    case Storage::float64:
      return detail::double_call(problem);
    case Storage::bfloat16:
      return detail::bfloat16_call(problem);
    case Storage::bfloat16_to_float:
      return detail::bfloat16_to_float_call(problem);
    case Storage::float16:
      return detail::float16_call(problem);
    case Storage::narrow_keys:
      return detail::narrow_keys_call(problem);
    case Storage::narrow_keys_and_out:
      return detail::narrow_keys_and_out_call(problem);
  }
  return nullptr;
}

}  // namespace fastrope_test
