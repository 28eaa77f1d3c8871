// What needs no FFTW: its header is not included and its libraries are not linked.
#include <fastrope/core.hpp>
#include <iostream>

#ifdef FFTW3_H
#error "fastrope/core.hpp includes fftw3.h"
#endif

int main() {
  Eigen::Matrix<float, 2, 3, Eigen::RowMajor> m;
  m << 0, 1, 2, 3, 4, 5;
  const fastrope::MatrixView<const float> view(m);
  std::cout << "fastrope " << fastrope::kVersion << ", " << fastrope::simd::target_name() << '\n';
  return view(1, 2) == 5 ? 0 : 1;
}
