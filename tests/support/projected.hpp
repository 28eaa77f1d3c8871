// Rows in a projection's axes, in double.
#pragma once

#include <cmath>
#include <vector>

#include "fastrope/core/index.hpp"
#include "support/row_matrix.hpp"

namespace fastrope_test {

/// factor (x_i - shift), [d].
template <class Real>
std::vector<double> shifted(const RowMatrix<Real>& x, Index i, const std::vector<double>& shift,
                            double factor = 1) {
  std::vector<double> row = point_of(x, i);
  for (std::size_t c = 0; c < row.size(); ++c) row[c] = factor * (row[c] - shift[c]);
  return row;
}

/// A row, [variables]; axes: A, [variables, d].
inline std::vector<double> projected(const std::vector<double>& axes, const std::vector<double>& row) {
  std::vector<double> x(row.empty() ? 0 : axes.size() / row.size());
  for (std::size_t l = 0; l < x.size(); ++l)
    for (std::size_t c = 0; c < row.size(); ++c) x[l] += axes[l * row.size() + c] * row[c];
  return x;
}

inline double dot(const std::vector<double>& x, const std::vector<double>& y) {
  double sum = 0;
  for (std::size_t l = 0; l < x.size(); ++l) sum += x[l] * y[l];
  return sum;
}

}  // namespace fastrope_test
