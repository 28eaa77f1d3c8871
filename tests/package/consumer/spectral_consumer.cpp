// The spectral part from an installed package: the largest singular value of a matrix of ones.
#include <cmath>
#include <fastrope/spectral/spectral.hpp>

int main() {
  const fastrope::RowMatrix ones = fastrope::RowMatrix::Ones(40, 1);
  const double sigma =
      fastrope::singular_values(fastrope::logit_matrix(ones, ones, {.scale = 1.0}), 1).values(0);
  return std::abs(sigma - 40) < 1e-9 ? 0 : 1;
}
