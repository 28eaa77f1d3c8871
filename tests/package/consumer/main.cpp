// Equal keys have equal weights, so each row of the result is the mean of the values.
#include <cmath>
#include <iostream>
#include <vector>

#include "second_unit.hpp"

int main() {
  constexpr fastrope::Index n = 5;
  constexpr fastrope::Index d = 8;
  const std::vector<float> q(n * d, 0.5f);
  const std::vector<float> k(n * d, 0.25f);
  std::vector<float> v(n * d);
  for (fastrope::Index i = 0; i < n; ++i)
    for (fastrope::Index j = 0; j < d; ++j) v[static_cast<std::size_t>(i * d + j)] = static_cast<float>(i);

  std::vector<float> here(n * d);
  std::vector<float> elsewhere(n * d);
  fastrope::attend(fastrope::contiguous(q.data(), 1, n, d), fastrope::contiguous(k.data(), 1, n, d),
                   fastrope::contiguous(v.data(), 1, n, d), fastrope::contiguous(here.data(), 1, n, d),
                   fastrope::Options{});
  attend_elsewhere(q.data(), k.data(), v.data(), elsewhere.data(), n, d);

  const float mean = (n - 1) / 2.0f;
  for (std::size_t i = 0; i < here.size(); ++i) {
    if (!(std::abs(here[i] - mean) < 1e-5f) || here[i] != elsewhere[i]) {
      std::cerr << "element " << i << ": " << here[i] << " and " << elsewhere[i] << ", not " << mean << '\n';
      return 1;
    }
  }
  std::cout << "fastrope " << fastrope::kVersion << '\n';
}
