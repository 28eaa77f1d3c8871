// Integer vectors: products of small integers, where the processor has them, and what lays bytes of rows out
// for them.
//
// Four products of bytes in a lane, and their sum, are one instruction (AVX512_VNNI, AVX_VNNI). Elsewhere
// kIntegerProducts is false.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "fastrope/core/index.hpp"
#include "fastrope/core/simd.hpp"
#include "fastrope/core/target.hpp"

#if FASTROPE_AVX512 && defined(__AVX512VNNI__)
#define FASTROPE_INTEGER_PRODUCTS 1
#define FASTROPE_DOT_BYTES _mm512_dpbusd_epi32
#elif HWY_TARGET == HWY_AVX2 && defined(__AVXVNNI__)
#define FASTROPE_INTEGER_PRODUCTS 1
#define FASTROPE_DOT_BYTES _mm256_dpbusd_avx_epi32
#else
#define FASTROPE_INTEGER_PRODUCTS 0
#endif

namespace fastrope::inline FASTROPE_TARGET::simd {

inline constexpr bool kIntegerProducts = FASTROPE_INTEGER_PRODUCTS;

#if FASTROPE_INTEGER_PRODUCTS

using IntegerTag = hn::RebindToSigned<Tag<float>>;
/// kLanes<float> integers of 32 bits, or four bytes in the place of each.
using Integers = hn::Vec<IntegerTag>;
/// sum + the products of each lane's four bytes, those of a unsigned.
HWY_INLINE Integers add_byte_products(Integers sum, Integers a, Integers b) {
  return Integers{FASTROPE_DOT_BYTES(sum.raw, a.raw, b.raw)};
}
HWY_INLINE Integers set_integer(std::int32_t x) { return hn::Set(IntegerTag{}, x); }
/// The four bytes at p in every lane.
HWY_INLINE Integers repeat_bytes(const std::int8_t* p) {
  std::int32_t lane;
  std::memcpy(&lane, p, sizeof(lane));
  return set_integer(lane);
}
/// 2^16 high + 2^8 middle + low, as floats. Requires |high| < 2^24, |middle| < 2^22.
HWY_INLINE Vec<float> join_parts(Integers high, Integers middle, Integers low) {
  const Tag<float> tag;
  const auto rest = hn::ConvertTo(tag, hn::Add(hn::ShiftLeft<8>(middle), low));
  return fma(hn::ConvertTo(tag, high), set(65536.0F), rest);
}
/// Each byte with its highest bit turned over: a signed byte plus 128, unsigned.
HWY_INLINE Integers to_unsigned_bytes(Integers x) {
  return hn::Xor(x, set_integer(static_cast<std::int32_t>(0x80808080)));
}
/// The low or high half of each byte.
HWY_INLINE Integers low_nibbles(Integers x) { return hn::And(x, set_integer(0x0f0f0f0f)); }
HWY_INLINE Integers high_nibbles(Integers x) { return low_nibbles(hn::ShiftRight<4>(x)); }

/// 16 bytes, at `offset`, of every fourth row: those of rows[4 m] in block m.
template <class D>
HWY_INLINE hn::Vec<D> load_row_blocks(D tag, const std::byte* const* rows, Index offset) {
  if constexpr (hn::MaxLanes(D{}) == 16) {
    return hn::LoadU(tag, reinterpret_cast<const std::uint8_t*>(rows[0] + offset));
  } else {
    const hn::Half<D> half;
    constexpr auto kRows = static_cast<Index>(hn::MaxLanes(D{}) / 16 / 2 * 4);
    return hn::Combine(tag, load_row_blocks(half, rows + kRows, offset), load_row_blocks(half, rows, offset));
  }
}
/// columns[i], i < 4: of each of kLanes<float> rows a lane, bytes 4 i .. 4 i + 3 after `offset`.
HWY_INLINE void transpose_bytes(const std::byte* const* rows, Index offset, Integers* columns) {
  const IntegerTag tag;
  const hn::Repartition<std::uint8_t, IntegerTag> bytes;
  const hn::Repartition<std::int64_t, IntegerTag> wide;
  const auto row = [&](Index r)
                       HWY_ATTR { return hn::BitCast(tag, load_row_blocks(bytes, rows + r, offset)); };
  const Integers a = row(0), b = row(1), c = row(2), d = row(3);
  const auto ab = hn::BitCast(wide, hn::InterleaveLower(tag, a, b)),
             ab2 = hn::BitCast(wide, hn::InterleaveUpper(tag, a, b));
  const auto cd = hn::BitCast(wide, hn::InterleaveLower(tag, c, d)),
             cd2 = hn::BitCast(wide, hn::InterleaveUpper(tag, c, d));
  columns[0] = hn::BitCast(tag, hn::InterleaveLower(wide, ab, cd));
  columns[1] = hn::BitCast(tag, hn::InterleaveUpper(wide, ab, cd));
  columns[2] = hn::BitCast(tag, hn::InterleaveLower(wide, ab2, cd2));
  columns[3] = hn::BitCast(tag, hn::InterleaveUpper(wide, ab2, cd2));
}

#endif

}  // namespace fastrope::inline FASTROPE_TARGET::simd
