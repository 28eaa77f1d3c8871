// The file of a model's weights: 8 bits each, a scale a row.
//
//     "FRBM", then little-endian int32: version 1, layers, width, heads, hidden, local_heads, window,
//     global_size, n (of training); float32: radius, global_base;
//     then each matrix of training::Layout in its order, a row after the other: float32 scale, int8 [cols]
//     for weights scale * int8; rows of gains, which are one-row matrices, float32 [cols].
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <string>
#include <vector>

#include "config.hpp"

namespace bounded_model {

static_assert(std::endian::native == std::endian::little, "files of weights are little-endian");

/// What a file holds.
struct Weights {
  Config config;
  training::Vector<float> parameters;  // laid out as training::Layout has it
};

namespace detail {

inline constexpr std::array<char, 4> kMagic{'F', 'R', 'B', 'M'};
inline constexpr std::int32_t kVersion = 1;

/// visit(matrix) for all matrices, in the order of the file.
template <class Visit>
void for_each_block(const training::Layout& layout, Visit&& visit) {
  visit(layout.embedding);
  for (const training::LayerBlocks& b : layout.layers)
    for (const training::Block& block :
         {b.rms_attention, b.wq, b.wk, b.wv, b.wo, b.rms_ffn, b.w1, b.w3, b.w2})
      visit(block);
  visit(layout.rms_final);
  visit(layout.classifier);
}

/// f(number) for those of a configuration.
template <class AnyConfig, class F>
void for_each_size(AnyConfig& c, F&& f) {
  for (auto* size :
       {&c.layers, &c.width, &c.heads, &c.hidden, &c.local_heads, &c.window, &c.global_size, &c.n})
    f(*size);
}

}  // namespace detail

/// Rounds parameters to the file's 8 bits and writes them. Throws Error if the file cannot be written.
inline void write_weights(const std::string& path, const Config& config,
                          const training::Vector<float>& parameters) {
  std::ofstream file(path, std::ios::binary);
  const auto put = [&](const auto* data, Index count) {
    file.write(reinterpret_cast<const char*>(data), count * static_cast<Index>(sizeof *data));
  };
  put(detail::kMagic.data(), std::ssize(detail::kMagic));
  put(&detail::kVersion, 1);
  detail::for_each_size(config, [&](Index size) {
    const auto number = static_cast<std::int32_t>(size);
    put(&number, 1);
  });
  for (const double x : {config.radius, config.global_base}) {
    const auto number = static_cast<float>(x);
    put(&number, 1);
  }
  std::vector<std::int8_t> row;
  detail::for_each_block(training::Layout(config), [&](const training::Block& b) {
    const auto m = training::matrix_of(parameters, b);
    if (b.rows == 1) return put(m.data(), b.cols);
    for (Index i = 0; i < b.rows; ++i) {
      const float scale = std::max(m.row(i).cwiseAbs().maxCoeff() / 127, 1e-20f);
      put(&scale, 1);
      row.resize(static_cast<std::size_t>(b.cols));
      for (Index c = 0; c < b.cols; ++c)
        row[static_cast<std::size_t>(c)] = static_cast<std::int8_t>(std::lround(m(i, c) / scale));
      put(row.data(), b.cols);
    }
  });
  if (!file.flush()) throw fastrope::Error("write_weights: cannot write " + path);
}

/// Throws Error, naming the file and what is wrong with it.
inline Weights read_weights(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const auto require = [&](bool holds, const std::string& what) {
    if (!holds) throw fastrope::Error("read_weights: " + path + " " + what);
  };
  const auto get = [&](auto* data, Index count) {
    file.read(reinterpret_cast<char*>(data), count * static_cast<Index>(sizeof *data));
    require(static_cast<bool>(file), "ends early");
  };
  require(static_cast<bool>(file), "cannot be opened");
  std::array<char, 4> magic{};
  std::int32_t version = 0;
  get(magic.data(), std::ssize(magic));
  get(&version, 1);
  require(magic == detail::kMagic && version == detail::kVersion, "is no file of weights of version 1");

  Weights w{.config = config_of(1), .parameters = {}};
  detail::for_each_size(w.config, [&](Index& size) {
    std::int32_t number = 0;
    get(&number, 1);
    require(number >= 0 && number <= 1 << 16, "has the size " + std::to_string(number));
    size = number;
  });
  for (double* x : {&w.config.radius, &w.config.global_base}) {
    float number = 0;
    get(&number, 1);
    *x = static_cast<double>(number);
  }
  consistent(w.config);
  require(w.config.local_heads <= w.config.heads, "has " + std::to_string(w.config.local_heads) +
                                                      " local heads of " + std::to_string(w.config.heads));
  const training::Layout layout(w.config);
  require(layout.size <= static_cast<Index>(std::filesystem::file_size(path)), "ends early");
  w.parameters.resize(layout.size);
  std::vector<std::int8_t> row;
  detail::for_each_block(layout, [&](const training::Block& b) {
    auto m = training::matrix_of(w.parameters, b);
    if (b.rows == 1) return get(m.data(), b.cols);
    row.resize(static_cast<std::size_t>(b.cols));
    for (Index i = 0; i < b.rows; ++i) {
      float scale = 0;
      get(&scale, 1);
      get(row.data(), b.cols);
      for (Index c = 0; c < b.cols; ++c)
        m(i, c) = scale * static_cast<float>(row[static_cast<std::size_t>(c)]);
    }
  });
  require(file.peek() == std::ifstream::traits_type::eof(), "goes on after the last weight");
  return w;
}

}  // namespace bounded_model
