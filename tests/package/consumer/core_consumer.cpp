// What needs neither FFTW nor Eigen: their headers are not included and no library is linked.
#include <fastrope/core.hpp>
#include <iostream>

#if defined(FFTW3_H) || defined(EIGEN_WORLD_VERSION)
#error "fastrope/core.hpp includes fftw3.h or Eigen"
#endif

int main() {
  const float numbers[] = {0, 1, 2, 3, 4, 5};
  const fastrope::MatrixView<const float> view(numbers, 2, 3);
  std::cout << "fastrope " << fastrope::kVersion << ", " << fastrope::simd::target_name() << '\n';
  return view(1, 2) == 5 ? 0 : 1;
}
