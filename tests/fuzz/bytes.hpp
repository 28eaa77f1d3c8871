// Bytes: what a fuzz target reads its choices from.
#pragma once

#include <bit>
#include <cstdint>
#include <initializer_list>
#include <iterator>
#include <span>

#include "fastrope/core/index.hpp"

namespace fastrope_test {

/// Choices read from bytes; zeros past the end.
class Bytes {
 public:
  explicit Bytes(std::span<const std::uint8_t> bytes) : bytes_(bytes) {}

  std::uint32_t next() {
    if (bytes_.empty()) return 0;
    const std::uint8_t byte = bytes_.front();
    bytes_ = bytes_.subspan(1);
    return byte;
  }
  /// first .. last
  fastrope::Index integer(fastrope::Index first, fastrope::Index last) {
    return first + static_cast<fastrope::Index>(next()) % (last - first + 1);
  }
  bool one_in(fastrope::Index n) { return integer(1, n) == n; }
  template <class T>
  T one_of(std::initializer_list<T> list) {
    return list.begin()[integer(0, std::ssize(list) - 1)];
  }
  /// Any 64 bits.
  std::uint64_t word() {
    std::uint64_t bits = 0;
    for (int i = 0; i < 8; ++i) bits = bits << 8 | next();
    return bits;
  }
  /// Any double at all, mostly one that makes sense.
  double number(std::initializer_list<double> likely) {
    return one_in(16) ? std::bit_cast<double>(word()) : one_of(likely);
  }

 private:
  std::span<const std::uint8_t> bytes_;
};

}  // namespace fastrope_test
