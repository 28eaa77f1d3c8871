// A view's columns have unit stride; a column-major matrix has none to give.
#include "fastrope/eigen.hpp"

#ifdef FASTROPE_MISUSE
constexpr int kOrder = Eigen::ColMajor;
#else
constexpr int kOrder = Eigen::RowMajor;
#endif

using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, kOrder>;

fastrope::MatrixView<const float> view_of(const Matrix& m) { return fastrope::MatrixView<const float>(m); }
