// Public models whose attention is a polynomial, by the sizes of a layer: what of each its attention needs.
#pragma once

#include <cmath>
#include <fastrope/fastrope.hpp>
#include <stdexcept>
#include <string>

namespace power {

using fastrope::Index;

/// The heads of a layer, and what is done to their rows.
struct Heads {
  Index heads, kv_heads, d, d_v;
  bool rope = false;
  bool norm = false;  ///< rows of q and k are divided by their root mean square
};

struct Model {
  const char* name;
  Heads polynomial;  ///< of a layer whose kernel is a polynomial
  fastrope::Kernel kernel;
  double scale;
  fastrope::Normaliser normaliser = fastrope::Normaliser::row_sum();
  bool gates = false;  ///< a log gate for each key head
  Heads softmax;       ///< of a layer of the same width with softmax
  Index window = 0;    ///< every other layer is softmax over so many tokens; 0: none
};

inline Model model_of(const std::string& name) {
  using fastrope::Kernel, fastrope::Normaliser;
  const double root = 1 / std::sqrt(128.0);
  const Heads powercoder{24, 2, 128, 128, true}, brumby{40, 8, 128, 128, true, true};
  if (name == "powercoder")
    return {.name = "PowerCoder-3B",
            .polynomial = powercoder,
            .kernel = Kernel::power(2),
            .scale = root,
            .gates = true,
            .softmax = powercoder};
  if (name == "brumby")
    return {.name = "Brumby-14B",
            .polynomial = brumby,
            .kernel = Kernel::power(2),
            .scale = root,
            .gates = true,
            .softmax = brumby};
  if (name == "based")
    return {.name = "Based-360M",
            .polynomial = {16, 16, 16, 64},
            .kernel = Kernel::taylor(2),
            .scale = 0.25,
            .normaliser = Normaliser::row_sum(1e-12),
            .softmax = {16, 16, 64, 64},
            .window = 128};
  throw std::runtime_error("unknown model " + name + ": powercoder, brumby or based");
}

}  // namespace power
