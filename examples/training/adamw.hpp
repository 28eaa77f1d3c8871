// AdamW (Loshchilov & Hutter 2019) with a warm-up, a cosine and clipping.
#pragma once

#include <algorithm>
#include <cmath>
#include <numbers>

#include "config.hpp"

namespace training {

/// How far a step goes: up to `rate` over the first `warm_up` of `steps`, then down to 0 along a cosine.
struct Schedule {
  Index steps = 4000;
  double rate = 1e-3, warm_up = 0.05;

  /// Of step 0, 1, ..
  double operator()(Index step) const {
    const double done = static_cast<double>(step + 1) / static_cast<double>(steps);
    if (done < warm_up) return rate * done / warm_up;
    return rate / 2 * (1 + std::cos(std::numbers::pi * std::min(1.0, (done - warm_up) / (1 - warm_up))));
  }
};

/// gradient times at most 1, so that its norm is at most `largest`. Returns the norm that it had.
template <class Real>
double clip(Vector<Real>& gradient, double largest) {
  const auto norm = static_cast<double>(gradient.norm());
  if (norm > largest) gradient *= static_cast<Real>(largest / norm);
  return norm;
}

struct AdamWOptions {
  double first = 0.9, second = 0.99, epsilon = 1e-8, decay = 0.01;
};

/// Averages m of the gradient and s of its square, begun at 0, over what their weights add up to:
///     x -= rate (decay x + m / (1 - first^t) / (sqrt(s / (1 - second^t)) + epsilon)).
template <class Real>
class AdamW {
 public:
  explicit AdamW(Index size, const AdamWOptions& options = {})
      : options_(options), mean_(Vector<Real>::Zero(size)), square_(mean_) {}

  void step(Vector<Real>& parameters, const Vector<Real>& gradient, double rate) {
    const auto real = [](double x) { return static_cast<Real>(x); };
    const AdamWOptions& o = options_;
    ++steps_;
    mean_ = real(o.first) * mean_ + real(1 - o.first) * gradient;
    square_ = real(o.second) * square_ + real(1 - o.second) * gradient.cwiseAbs2();
    const Real of_mean = real(1 / (1 - std::pow(o.first, steps_)));
    const Real of_square = real(1 / (1 - std::pow(o.second, steps_)));
    parameters.array() -=
        real(rate) * (real(o.decay) * parameters.array() +
                      of_mean * mean_.array() / ((of_square * square_.array()).sqrt() + real(o.epsilon)));
  }

 private:
  AdamWOptions options_;
  double steps_ = 0;
  Vector<Real> mean_, square_;
};

}  // namespace training
