// Elements of a type that nothing is stored in are refused where a call is made.
#include "fastrope/core/tensor_view.hpp"

template <fastrope::TensorLike Tensor>
void call(const Tensor&) {}

void use(fastrope::TensorView<const float> floats, fastrope::TensorView<const int> integers) {
#ifdef FASTROPE_MISUSE
  call(integers);
#else
  call(floats);
  (void)integers;
#endif
}
