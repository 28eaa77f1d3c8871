// The ONNX project's node tests for Attention and RotaryEmbedding: manifest.txt and tensors.bin in the folder
// onnx/ of FASTROPE_CONFORMANCE_DIR, which is not part of the project. manifest.txt has one record a line:
//     case NAME OP
//     opset N
//     attr KEY VALUE
//     in  INDEX NAME DTYPE NDIM DIM... OFFSET        (omitted: in INDEX - none 0)
//     out INDEX NAME DTYPE NDIM DIM... OFFSET
//     end
// OFFSET counts bytes of tensors.bin: row-major, little-endian, float32 for DTYPE float32 and float16, int64,
// one byte for a bool.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <fstream>
#include <functional>
#include <iterator>
#include <map>
#include <numeric>
#include <ostream>
#include <span>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "fastrope/core/index.hpp"
#include "fastrope/core/tensor_view.hpp"

namespace fastrope_test {

using fastrope::Index;
using fastrope::TensorView;

#define SKIP_WITHOUT_CONFORMANCE()                                                            \
  if (std::string(FASTROPE_CONFORMANCE_DIR).empty())                                          \
  GTEST_SKIP() << "set the CMake variable FASTROPE_CONFORMANCE_DIR to the folder that holds " \
                  "onnx/manifest.txt"

/// One input or output of a case.
struct OnnxTensor {
  std::string dtype = {};
  std::vector<Index> shape = {};
  std::vector<char> bytes = {};

  /// The elements, T being float for float32 and float16, std::int64_t or bool.
  template <class T>
  std::span<const T> values() const {
    const auto count =
        static_cast<std::size_t>(std::accumulate(shape.begin(), shape.end(), Index{1}, std::multiplies<>()));
    if (dtype != dtype_of(T{}) && !(dtype == "float16" && dtype_of(T{}) == "float32"))
      throw std::logic_error("a tensor of " + dtype + " is read as " + dtype_of(T{}));
    return {reinterpret_cast<const T*>(bytes.data()), count};
  }

 private:
  static std::string dtype_of(float) { return "float32"; }
  static std::string dtype_of(std::int64_t) { return "int64"; }
  static std::string dtype_of(bool) { return "bool"; }
};

/// One case of the manifest, without the tensors it omits.
struct OnnxCase {
  std::string name = {};
  std::string op = {};
  std::map<std::string, double> attributes = {};
  std::map<std::string, OnnxTensor> inputs = {};
  std::map<std::string, OnnxTensor> outputs = {};

  double attribute(const std::string& key, double otherwise) const {
    const auto found = attributes.find(key);
    return found == attributes.end() ? otherwise : found->second;
  }
  Index integer(const std::string& key, Index otherwise) const {
    return static_cast<Index>(attribute(key, static_cast<double>(otherwise)));
  }

  friend std::ostream& operator<<(std::ostream& out, const OnnxCase& c) { return out << c.name; }
};

/// Reads what follows INDEX of an `in` or `out` record into `tensors`.
inline void read_onnx_tensor(std::istream& record, const std::vector<char>& data,
                             std::map<std::string, OnnxTensor>& tensors) {
  std::string name;
  OnnxTensor tensor;
  std::size_t dimensions = 0, offset = 0;
  record >> name >> tensor.dtype >> dimensions;
  if (tensor.dtype == "none") return;
  tensor.shape.resize(dimensions);
  std::size_t size = tensor.dtype == "bool" ? 1 : tensor.dtype == "int64" ? 8 : 4;
  for (Index& n : tensor.shape) {
    record >> n;
    size *= static_cast<std::size_t>(n);
  }
  record >> offset;
  if (!record || offset + size > data.size()) throw std::runtime_error("tensor " + name + " cannot be read");
  const auto first = data.begin() + static_cast<std::ptrdiff_t>(offset);
  tensor.bytes.assign(first, first + static_cast<std::ptrdiff_t>(size));
  tensors[name] = std::move(tensor);
}

/// The cases in FASTROPE_CONFORMANCE_DIR, in the manifest's order; none where that is empty. Throws
/// std::runtime_error where the files are missing or not as described above.
inline std::vector<OnnxCase> onnx_cases() {
  const std::string folder = FASTROPE_CONFORMANCE_DIR;
  std::vector<OnnxCase> cases;
  if (folder.empty()) return cases;
  std::ifstream manifest(folder + "/onnx/manifest.txt");
  std::ifstream tensors(folder + "/onnx/tensors.bin", std::ios::binary);
  if (!manifest || !tensors) throw std::runtime_error("no onnx/manifest.txt and tensors.bin in " + folder);
  const std::vector<char> data{std::istreambuf_iterator<char>(tensors), {}};
  for (std::string line; std::getline(manifest, line);) {
    std::istringstream record(line);
    std::string kind, key;
    record >> kind;
    if (kind == "case") {
      record >> cases.emplace_back().name >> cases.back().op;
    } else if (kind == "attr") {
      record >> key >> cases.back().attributes[key];
    } else if (kind == "in" || kind == "out") {
      record >> key;
      read_onnx_tensor(record, data, kind == "in" ? cases.back().inputs : cases.back().outputs);
    } else if (kind != "opset" && kind != "end") {
      throw std::runtime_error("unknown record in manifest.txt: " + line);
    }
    if (!record) throw std::runtime_error("broken record in manifest.txt: " + line);
  }
  return cases;
}

/// The cases of one operator.
inline std::vector<OnnxCase> onnx_cases(const std::string& op) {
  std::vector<OnnxCase> cases = onnx_cases();
  std::erase_if(cases, [&](const OnnxCase& c) { return c.op != op; });
  return cases;
}

/// A batch of [heads, rows, cols] tensors in one of ONNX's layouts: [batch, heads, rows, cols], or
/// [batch, rows, heads * cols] where the shape has three sizes.
template <class T>
struct OnnxBatch {
  Index count, heads, rows, cols;
  bool token_major;
  std::vector<T> values;

  /// Zeros. token_major_heads is read only where the shape does not say how many heads there are.
  OnnxBatch(const std::vector<Index>& shape, Index token_major_heads)
      : count(shape.front()),
        heads(shape.size() == 3 ? token_major_heads : shape[1]),
        rows(shape[shape.size() - 2]),
        cols(shape.size() == 3 ? shape[2] / heads : shape[3]),
        token_major(shape.size() == 3),
        values(count * heads * rows * cols) {}
  OnnxBatch(const OnnxTensor& tensor, Index token_major_heads) : OnnxBatch(tensor.shape, token_major_heads) {
    std::ranges::transform(tensor.values<float>(), values.begin(), [](float x) { return static_cast<T>(x); });
  }

  TensorView<const T> operator[](Index b) const { return view(values.data(), b); }
  TensorView<T> operator[](Index b) { return view(values.data(), b); }

 private:
  template <class Pointee>
  TensorView<Pointee> view(Pointee* data, Index b) const {
    data += b * heads * rows * cols;
    if (token_major) return {data, heads, rows, cols, cols, heads * cols};
    return fastrope::contiguous(data, heads, rows, cols);
  }
};

/// |actual - expected| <= 1e-7 + 1e-3 |expected| for every element, in double. A float16's last place is at
/// most 2^-10 = 0.98e-3 of the value (6e-8 for the smallest values): float16 outputs may differ by one.
template <class T>
testing::AssertionResult agrees(const std::vector<T>& actual, const OnnxTensor& expected) {
  const auto values = expected.values<float>();
  if (actual.size() != values.size())
    return testing::AssertionFailure() << actual.size() << " elements instead of " << values.size();
  for (std::size_t i = 0; i < values.size(); ++i) {
    const double a = static_cast<double>(actual[i]), e = static_cast<double>(values[i]);
    if (!(std::abs(a - e) <= 1e-7 + 1e-3 * std::abs(e)))
      return testing::AssertionFailure() << "element " << i << " is " << a << " instead of " << e;
  }
  return testing::AssertionSuccess();
}

}  // namespace fastrope_test
