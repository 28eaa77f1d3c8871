// SavedState: a recurrence's past as bytes, for sessions that are stored, moved or resumed.
//
//     header [SavedStateHeader], the arrays of the past one after the other, zeros up to a whole word
// Numbers are as the machine has them; the magic number tells another order of bytes. The header names what
// the past depends on, and its last word sums up all the others, so that bytes of another recurrence, too few
// of them and changed ones are refused.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <utility>

#include "fastrope/core/error.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/shared_array.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/position/lag_grid.hpp"
#include "fastrope/position/rope.hpp"
#include "fastrope/problem/normaliser.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// What a saved state begins with, in words.
struct SavedStateHeader {
  static constexpr std::uint64_t kMagic = 0x65'74'61'74'73'2d'72'66;  ///< "fr-state"
  static constexpr std::uint64_t kVersion = 2;

  std::uint64_t magic = kMagic;
  std::uint64_t version = kVersion;
  std::uint64_t bytes = 0;       ///< of all, the header among them
  std::uint64_t real_bytes = 0;  ///< of a number of the arithmetic type
  std::uint64_t heads = 0, kv_heads = 0, d = 0, d_v = 0;
  std::uint64_t rank = 0;
  std::uint64_t block = 0;       ///< tokens that enter the state together
  std::uint64_t kernel = 0;      ///< fingerprint of the coefficients
  std::uint64_t rope = 0;        ///< of the frequencies and columns that are turned; 0: none are
  std::uint64_t scale = 0;       ///< the bits of a double
  std::uint64_t states = 0;      ///< key heads, or query heads that are gated apart
  std::uint64_t normaliser = 0;  ///< fingerprint of it and of ALiBi's slopes
  std::uint64_t radius = 0;      ///< the bits of a double
  std::uint64_t gated = 0;       ///< whether any token had gates
  std::uint64_t tokens = 0;
  std::uint64_t checksum = 0;  ///< of every word but this

  /// Throws Error, naming what differs and both values, where `other` is not of a recurrence like this one's.
  void require_like(const SavedStateHeader& other) const {
    if (other.magic != kMagic)
      detail::fail("load: the bytes are of no saved state of this machine's byte order");
    if (other.version != kVersion)
      detail::fail("load: the state is of version ", other.version, ", this library reads version ",
                   kVersion);
    const auto compare = [](const char* name, auto theirs, auto ours) {
      if (theirs != ours)
        detail::fail("load: the state's ", name, " is ", theirs, ", the recurrence's ", ours);
    };
    compare("bytes of a number", other.real_bytes, real_bytes);
    compare("heads", other.heads, heads);
    compare("kv_heads", other.kv_heads, kv_heads);
    compare("d", other.d, d);
    compare("d_v", other.d_v, d_v);
    compare("rank", other.rank, rank);
    compare("block of tokens", other.block, block);
    compare("kernel, by a fingerprint of its coefficients,", other.kernel, kernel);
    compare("rope, by a fingerprint of its frequencies and columns,", other.rope, rope);
    if (other.scale != scale)
      detail::fail("load: the state's scale is ", std::bit_cast<double>(other.scale), ", the recurrence's ",
                   std::bit_cast<double>(scale));
    compare("number of states", other.states, states);
    compare("normaliser and slopes, by a fingerprint,", other.normaliser, normaliser);
    if (other.radius != radius)
      detail::fail("load: the state's radius is ", std::bit_cast<double>(other.radius), ", the recurrence's ",
                   std::bit_cast<double>(radius));
    compare("size in bytes", other.bytes, bytes);
    if (other.tokens > static_cast<std::uint64_t>(LagGrid::kMaxPosition))
      detail::fail("load: the state is of ", other.tokens, " tokens, more than 2^40");
  }
};

/// Sums up words: every change of one of them changes the sum.
class Fingerprint {
 public:
  void add(std::uint64_t word) {
    sum_ = (sum_ ^ word) * 0x9e3779b97f4a7c15;
    sum_ ^= sum_ >> 32;
  }
  void add(double x) { add(std::bit_cast<std::uint64_t>(x + 0.0)); }  // -0 is 0
  /// Whole words.
  void add(std::span<const std::byte> bytes) {
    for (std::size_t at = 0; at + sizeof(std::uint64_t) <= bytes.size(); at += sizeof(std::uint64_t)) {
      std::uint64_t word;
      std::memcpy(&word, bytes.data() + at, sizeof word);
      add(word);
    }
  }
  std::uint64_t sum() const { return sum_; }

 private:
  std::uint64_t sum_ = 0x6a09e667f3bcc908;
};

/// Of how rows are turned; 0 where they are not. Frequencies count as floats: the powers of another machine's
/// library may differ in the last place of a double.
inline std::uint64_t fingerprint(const RopeFrequencies& rope) {
  if (rope.pairs() == 0) return 0;
  Fingerprint print;
  for (const double theta : rope.theta) print.add(static_cast<double>(static_cast<float>(theta)));
  print.add(static_cast<double>(static_cast<float>(rope.attention_factor)));
  print.add(static_cast<std::uint64_t>(rope.begin));
  print.add(static_cast<std::uint64_t>(rope.pairing));
  return print.sum();
}
inline std::uint64_t fingerprint(const Normaliser& normaliser, const SharedArray<double>& slopes) {
  Fingerprint print;
  print.add(static_cast<std::uint64_t>(normaliser.kind()));
  print.add(normaliser.constant());
  for (const double slope : slopes) print.add(slope);
  return print.sum();
}
inline std::uint64_t fingerprint(std::span<const double> coefficients) {
  Fingerprint print;
  for (const double c : coefficients) print.add(c);
  return print.sum();
}

/// Writes a state to memory of header.bytes, the arrays in the order of put(); finish() last.
class StateWriter {
 public:
  explicit StateWriter(std::span<std::byte> to) : to_(to) {}

  /// `kept` of `count` elements, then zeros.
  template <class T>
  void put(const T* data, Index kept, Index count) {
    const std::size_t bytes = static_cast<std::size_t>(kept) * sizeof(T);
    const std::size_t all = static_cast<std::size_t>(count) * sizeof(T);
    if (bytes > 0) std::memcpy(to_.data() + at_, data, bytes);
    if (all > bytes) std::memset(to_.data() + at_ + bytes, 0, all - bytes);
    at_ += all;
  }
  void finish(SavedStateHeader header) {
    if (at_ < to_.size()) std::memset(to_.data() + at_, 0, to_.size() - at_);
    header.checksum = checksum(header, to_);
    std::memcpy(to_.data(), &header, sizeof header);
  }

  /// Of a whole state, its header given apart.
  static std::uint64_t checksum(const SavedStateHeader& header, std::span<const std::byte> state) {
    Fingerprint print;
    print.add(std::as_bytes(std::span(&header, 1)).first(offsetof(SavedStateHeader, checksum)));
    print.add(state.subspan(sizeof header));
    return print.sum();
  }

 private:
  std::span<std::byte> to_;
  std::size_t at_ = sizeof(SavedStateHeader);
};

/// Reads what StateWriter has written.
class StateReader {
 public:
  /// Throws Error, naming what differs, unless `from` is a state like `expected`, whole and unchanged.
  StateReader(std::span<const std::byte> from, const SavedStateHeader& expected) : from_(from) {
    if (from.size() < sizeof header_)
      detail::fail("load: ", from.size(), " bytes are fewer than the ", sizeof header_, " of a header");
    std::memcpy(&header_, from.data(), sizeof header_);
    expected.require_like(header_);
    if (from.size() != expected.bytes)
      detail::fail("load: ", from.size(), " bytes are given, the state has ", expected.bytes);
    if (StateWriter::checksum(header_, from) != header_.checksum)
      detail::fail("load: the state's bytes are not those that were saved: their checksum differs");
  }

  const SavedStateHeader& header() const { return header_; }

  template <class T>
  void get(T* data, Index count) {
    const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(T);
    if (bytes > 0) std::memcpy(data, from_.data() + at_, bytes);
    at_ += bytes;
  }

 private:
  std::span<const std::byte> from_;
  SavedStateHeader header_ = {};
  std::size_t at_ = sizeof(SavedStateHeader);
};

}  // namespace fastrope::inline FASTROPE_TARGET
