// Neighbouring columns lie side by side: every second column of a matrix is no view.
#include "fastrope/eigen.hpp"

using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Strided = Eigen::Map<const Matrix, 0, Eigen::Stride<Eigen::Dynamic, 2>>;
using Packed = Eigen::Map<const Matrix, 0, Eigen::Stride<Eigen::Dynamic, 1>>;

void use(fastrope::TensorView<const float> view);

void call(const float* data) {
#ifdef FASTROPE_MISUSE
  const Strided m(data, 2, 3, {6, 2});
#else
  const Packed m(data, 2, 3, {6, 1});
#endif
  use(fastrope::TensorView<const float>(m));
}
