// Seeded test inputs. Numbers are drawn in double and then rounded, so one seed gives every element type the
// same values.
#pragma once

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "support/tensor.hpp"

namespace fastrope_test {

/// A stream of random tensors [heads, rows, cols]; the same seed and calls give the same numbers.
class Inputs {
 public:
  explicit Inputs(std::uint64_t seed) : random_(seed) {}

  double normal() { return normal_(random_); }
  double uniform(double low, double high) {
    return std::uniform_real_distribution<double>(low, high)(random_);
  }
  /// An integer in [low, high].
  std::int64_t integer(std::int64_t low, std::int64_t high) {
    return std::uniform_int_distribution<std::int64_t>(low, high)(random_);
  }
  std::mt19937_64& random() { return random_; }

  /// Independent entries of standard deviation sigma.
  template <class T>
  Tensor<T> gaussian(Index heads, Index rows, Index cols, double sigma = 1) {
    Tensor<T> x(heads, rows, cols);
    for (T& value : x.values) value = static_cast<T>(sigma * normal());
    return x;
  }

  /// Rows uniform on the sphere of radius `norm`: logits are bounded by the product of the norms.
  template <class T>
  Tensor<T> sphere(Index heads, Index rows, Index cols, double norm) {
    Tensor<T> x(heads, rows, cols);
    for (Index h = 0; h < heads; ++h)
      for (Index i = 0; i < rows; ++i) write_direction(norm, 0, x.view().head(h).row(i), cols);
    return x;
  }

  /// One random direction of length `mean_norm` for each head, plus noise of deviation sigma: what trained
  /// keys look like.
  template <class T>
  Tensor<T> common_mean(Index heads, Index rows, Index cols, double mean_norm, double sigma) {
    Tensor<T> x(heads, rows, cols);
    for (Index h = 0; h < heads; ++h) {
      std::vector<double> mean(static_cast<std::size_t>(cols));
      write_direction(mean_norm, 0, mean.data(), cols);
      for (Index i = 0; i < rows; ++i)
        for (Index c = 0; c < cols; ++c)
          x(h, i, c) = static_cast<T>(mean[static_cast<std::size_t>(c)] + sigma * normal());
    }
    return x;
  }

  /// Rows of random direction whose lengths are norm * exp(|t|), t of Student's distribution with 3 degrees
  /// of freedom: most are near `norm`, a few far beyond.
  template <class T>
  Tensor<T> heavy_tailed(Index heads, Index rows, Index cols, double norm) {
    Tensor<T> x(heads, rows, cols);
    std::student_t_distribution<double> student(3);
    for (Index h = 0; h < heads; ++h)
      for (Index i = 0; i < rows; ++i)
        write_direction(norm, std::abs(student(random_)), x.view().head(h).row(i), cols);
    return x;
  }

 private:
  /// A random direction of length norm * exp(log_stretch).
  template <class T>
  void write_direction(double norm, double log_stretch, T* row, Index cols) {
    std::vector<double> x(static_cast<std::size_t>(cols));
    double squares = 0;
    for (double& value : x) {
      value = normal();
      squares += value * value;
    }
    const double factor = norm * std::exp(log_stretch) / std::sqrt(squares);
    for (Index c = 0; c < cols; ++c) row[c] = static_cast<T>(factor * x[static_cast<std::size_t>(c)]);
  }

  std::mt19937_64 random_;
  std::normal_distribution<double> normal_;
};

}  // namespace fastrope_test
