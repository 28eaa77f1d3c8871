// What one writes with a BLAS: products of 128 queries with all the keys that they may see, exp between.
// Compiled with -Ofast, so that the compiler takes its vector exp.
#include <cblas.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "case.hpp"

namespace peers {

namespace {

constexpr Index kRows = 128;

blasint size(Index n) { return static_cast<blasint>(n); }

/// x = exp(x - max x), their sum.
float exponentials(float* x, Index count) {
  float most = std::numeric_limits<float>::lowest(), sum = 0;
  for (Index j = 0; j < count; ++j) most = std::max(most, x[j]);
  for (Index j = 0; j < count; ++j) x[j] = std::exp(x[j] - most);
  for (Index j = 0; j < count; ++j) sum += x[j];
  return sum;
}

void attend(const Case& c, float* scores, float* out) {
  for (Index h = 0; h < c.heads; ++h) {
    const float* k = c.k.data() + h / c.group() * c.n_k * c.d;
    const float* v = c.v.data() + h / c.group() * c.n_k * c.d;
    for (Index i = 0; i < c.n_q; i += kRows) {
      const Index rows = std::min(kRows, c.n_q - i), keys = c.seen(i + rows - 1);
      const Index at = (h * c.n_q + i) * c.d;
      cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, size(rows), size(keys), size(c.d), c.scale(),
                  c.q.data() + at, size(c.d), k, size(c.d), 0, scores, size(c.n_k));
      float inverse[kRows];
      for (Index r = 0; r < rows; ++r) {
        float* x = scores + r * c.n_k;
        inverse[r] = 1 / exponentials(x, c.seen(i + r));
        std::fill(x + c.seen(i + r), x + keys, 0.0F);
      }
      cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, size(rows), size(c.d), size(keys), 1, scores,
                  size(c.n_k), v, size(c.d), 0, out + at, size(c.d));
      for (Index r = 0; r < rows; ++r)
        for (Index m = 0; m < c.d; ++m) out[at + r * c.d + m] *= inverse[r];
    }
  }
}

}  // namespace

Peer openblas() {
  openblas_set_num_threads(1);
  const std::string config = openblas_get_config();  // "OpenBLAS 0.3.21 ..."
  const auto begin = config.find(' ') + 1;
  return {"openblas", config.substr(begin, config.find(' ', begin) - begin) + " " + openblas_get_corename(),
          [](const Case& c, std::vector<float>& out) -> Run {
            return
                [&c, &out, scores = std::vector<float>(static_cast<std::size_t>(kRows * c.n_k))]() mutable {
                  attend(c, scores.data(), out.data());
                };
          }};
}

}  // namespace peers
