// Columns: consecutive columns of a stored row as vectors, how kernels read keys and values where they lie.
//
// Of one vector, or of a whole block, whose scale is then read once. On AVX-512 a block of Q8_0 costs
// two widening loads, two conversions and two products; one of Q4_0 a widening load, a shift and two lookups
// in its sixteen numbers, which a register holds.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "fastrope/core/index.hpp"
#include "fastrope/core/quantised.hpp"
#include "fastrope/core/simd.hpp"
#include "fastrope/core/target.hpp"

namespace fastrope::inline FASTROPE_TARGET::simd {

/// The block of column c, and its scale.
template <class Block>
HWY_INLINE const Block& block_at(const std::byte* row, Index c) {
  return reinterpret_cast<const Block*>(row)[c / Block::kElements];
}
template <class Real, class Block>
HWY_INLINE Vec<Real> block_scale(const std::byte* row, Index c) {
  return set_half<Real>(&block_at<Block>(row, c).scale);
}

/// [i], i < kVecs: the kLanes elements of a row of T from column c + i kLanes on. Requires c a multiple of
/// kLanes and, in blocks, that these are in c's own.
template <class Real, class T>
class Columns {
 public:
  static constexpr Index kVecs = 1;

  Columns() = default;
  HWY_INLINE Columns(const std::byte* row, Index c) : data_(reinterpret_cast<const T*>(row) + c) {}
  HWY_INLINE Vec<Real> operator[](Index) const { return load_as<Real>(data_); }
  /// The last `count` < kLanes elements of a row, and zeros. Rows of blocks have no such end.
  HWY_INLINE Vec<Real> first(Index count) const { return load_first_as<Real>(data_, count); }

 private:
  const T* data_;
};

template <class Real>
class Columns<Real, Q8_0> {
 public:
  static constexpr Index kVecs = Q8_0::kElements / kLanes<Real>;

  Columns() = default;
  HWY_INLINE Columns(const std::byte* row, Index c) : Columns(row, c, block_scale<Real, Q8_0>(row, c)) {}
  /// With another scale than the block's.
  HWY_INLINE Columns(const std::byte* row, Index c, Vec<Real> scale)
      : scale_(scale), values_(block_at<Q8_0>(row, c).values + c % Q8_0::kElements) {}
  HWY_INLINE Vec<Real> operator[](Index i) const {
    return mul(scale_, load_as<Real>(values_ + i * kLanes<Real>));
  }
  HWY_INLINE Vec<Real> first(Index) const { return zero<Real>(); }

 private:
  Vec<Real> scale_;
  const std::int8_t* values_;
};

template <class Real>
class Columns<Real, Q4_0> {
 public:
  static constexpr Index kVecs = Q4_0::kElements / kLanes<Real>;

  Columns() = default;
  HWY_INLINE Columns(const std::byte* row, Index c) : Columns(row, c, block_scale<Real, Q4_0>(row, c)) {}
  HWY_INLINE Columns(const std::byte* row, Index c, Vec<Real> scale)
      : numbers_(scale), nibbles_(block_at<Q4_0>(row, c).nibbles), first_(c % Q4_0::kElements) {}
  HWY_INLINE Vec<Real> operator[](Index i) const {
    const Index j = first_ + i * kLanes<Real>;
    return j < kHalf ? numbers_.low(nibbles_ + j) : numbers_.high(nibbles_ + j - kHalf);
  }
  HWY_INLINE Vec<Real> first(Index) const { return zero<Real>(); }

 private:
  static constexpr Index kHalf = Q4_0::kElements / 2;
  static_assert(kLanes<Real> <= kHalf);

  Nibbles<Real> numbers_;
  const std::uint8_t* nibbles_;
  Index first_;
};

/// to [count] = the first elements of a row of T, whole blocks of them.
template <class T, class Real>
void convert_row(const std::byte* row, Index count, Real* to) {
  if constexpr (kElementsOf<T> == 1) {
    convert(reinterpret_cast<const T*>(row), count, to);
  } else {
    constexpr Index kVecs = Columns<Real, T>::kVecs;
    for (Index c = 0; c < count; c += kElementsOf<T>) {
      const Columns<Real, T> columns(row, c);
#pragma GCC unroll 8
      for (Index i = 0; i < kVecs; ++i) store<Real>(columns[i], to + c + i * kLanes<Real>);
    }
  }
}

}  // namespace fastrope::inline FASTROPE_TARGET::simd
