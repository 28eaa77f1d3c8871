// A view of a matrix that dies at the end of the expression would dangle.
#include "fastrope/eigen.hpp"

using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

void use(fastrope::TensorView<const float> view);

void call(const Matrix& m) {
#ifdef FASTROPE_MISUSE
  use(fastrope::TensorView<const float>(Matrix(m)));
#else
  use(fastrope::TensorView<const float>(m));
#endif
}
