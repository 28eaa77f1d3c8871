// The vector vocabulary of the kernels, and the only include of Highway.
//
// Static dispatch: the vectors are those of the flags that the including file is compiled with. A kernel uses
// Vec<Real>, kLanes<Real> and the functions below, nothing else of Highway.
#pragma once

#ifdef HIGHWAY_HWY_DETECT_TARGETS_H_
#if !defined(HWY_DISABLE_PCLMUL_AES) && defined(__AVX2__) && !defined(__AES__)
#error \
    "fastrope: Highway was included before fastrope without HWY_DISABLE_PCLMUL_AES, which hides AVX2 at -march=x86-64-v3"
#endif
#else
// Highway 1.0.3 asks for AES instructions, which no kernel here uses, before it offers SSE4 and AVX2;
// x86-64-v3 does not imply them.
#ifndef HWY_DISABLE_PCLMUL_AES
#define HWY_DISABLE_PCLMUL_AES
#endif
// Highway 1.0.3 fails to compile when the flags imply its "AVX3_DL" target (-march=sapphirerapids); AVX3 is
// enough. Vectors of SVE have no length that is known to the compiler: NEON serves such processors too.
#if !defined(HWY_DISABLED_TARGETS) && !defined(HWY_WANT_AVX3_DL)
#define HWY_DISABLED_TARGETS (HWY_AVX3_DL | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128)
#endif
// With GCC, Highway 1.0.3 compiles its NEON for processors with AES whatever the flags, to choose among
// targets when the program runs, and then cannot be inlined into code without. It does not where the system
// cannot tell what processor it is.
#if defined(__aarch64__) && !defined(__ARM_FEATURE_AES) && !defined(TOOLCHAIN_MISS_SYS_AUXV_H)
#define TOOLCHAIN_MISS_SYS_AUXV_H
#endif
#endif
#include <hwy/contrib/math/math-inl.h>
#include <hwy/highway.h>

#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/tensor_view.hpp"

#if HWY_TARGET == HWY_SCALAR || HWY_TARGET == HWY_EMU128
#pragma message( \
    "fastrope: no SIMD instructions are enabled (use -march=native or -mavx2 -mfma); kernels will be slow")
#endif
#if HWY_HAVE_SCALABLE
#error \
    "fastrope: vectors of unknown length (SVE, RVV) are not supported; include fastrope before Highway, which then takes NEON, or compile for a target of fixed length"
#endif
#if HWY_ARCH_ARM_A64 && HWY_HAVE_RUNTIME_DISPATCH && !defined(__ARM_FEATURE_AES)
#error \
    "fastrope: Highway was included before fastrope, and needs a processor with AES: add +crypto to -march, define TOOLCHAIN_MISS_SYS_AUXV_H, or include fastrope first"
#endif
#if defined(__ARM_FEATURE_SVE) && !defined(__clang__)  // which makes a warning of it
#pragma message("fastrope: the flags allow SVE, whose vectors have no fixed length; kernels are of NEON")
#endif

namespace fastrope::inline FASTROPE_TARGET::simd {

namespace hn = hwy::HWY_NAMESPACE;

template <class Real>
using Tag = hn::ScalableTag<Real>;
template <class Real>
using Vec = hn::Vec<Tag<Real>>;

/// Elements in a vector.
template <class Real>
inline constexpr Index kLanes = static_cast<Index>(hn::MaxLanes(Tag<Real>{}));

/// Whether vectors are those of AVX-512, whichever of Highway's targets has them: better ones have lower
/// bits.
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3
#define FASTROPE_AVX512 1
#else
#define FASTROPE_AVX512 0
#endif

/// Architectural vector registers; kernels size their tiles by it.
#if HWY_ARCH_X86 && !FASTROPE_AVX512
inline constexpr int kRegisters = 16;
#else
inline constexpr int kRegisters = 32;
#endif

/// Name of the instruction set in use, such as "AVX3".
inline const char* target_name() { return hwy::TargetName(HWY_TARGET); }

template <class Real>
HWY_INLINE Vec<Real> zero() {
  return hn::Zero(Tag<Real>{});
}
template <class Real>
HWY_INLINE Vec<Real> set(Real x) {
  return hn::Set(Tag<Real>{}, x);
}
template <class Real>
HWY_INLINE Vec<Real> load(const Real* p) {
  return hn::LoadU(Tag<Real>{}, p);
}
template <class Real>
HWY_INLINE void store(Vec<Real> x, Real* p) {
  hn::StoreU(x, Tag<Real>{}, p);
}

/// Whether there are instructions that convert float16: Highway's own code takes its infinity and NaN for
/// numbers.
inline constexpr bool kConvertsHalves =
    (HWY_ARCH_X86 && HWY_TARGET < HWY_SSE4) || (HWY_ARCH_ARM_A64 && HWY_TARGET < HWY_EMU128);
/// float16 numbers, given by their bits, as float.
template <class V>
HWY_INLINE Vec<float> from_half_words(V bits) {
  return hn::PromoteTo(Tag<float>{}, hn::BitCast(hn::Rebind<hwy::float16_t, Tag<float>>{}, bits));
}
/// Small integers, as words of 32 bits.
template <class Real, class T>
HWY_INLINE auto load_integers(const T* p) {
  const hn::Rebind<std::int32_t, Tag<Real>> words;
  return hn::PromoteTo(words, hn::LoadU(hn::Rebind<T, Tag<Real>>{}, p));
}
/// Integers, of load_integers, as Real.
template <class Real, class V>
HWY_INLINE Vec<Real> from_integers(V words) {
  if constexpr (std::is_same_v<Real, float>)
    return hn::ConvertTo(Tag<float>{}, words);
  else
    return hn::PromoteTo(Tag<double>{}, words);
}

/// Elements of any storage type, converted to Real.
template <class Real, class T>
HWY_INLINE Vec<Real> load_as(const T* p) {
  if constexpr (std::is_same_v<T, Real>) {
    return load(p);
  } else if constexpr (std::is_same_v<Real, float> && std::is_same_v<T, bfloat16>) {
    const hn::Rebind<std::uint16_t, Tag<float>> half_words;
    const hn::RebindToUnsigned<Tag<float>> words;
    const auto bits = hn::LoadU(half_words, reinterpret_cast<const std::uint16_t*>(p));
    return hn::BitCast(Tag<float>{}, hn::ShiftLeft<16>(hn::PromoteTo(words, bits)));
  } else if constexpr (kConvertsHalves && std::is_same_v<Real, float> && std::is_same_v<T, float16>) {
    const hn::Rebind<hwy::float16_t, Tag<float>> halves;
    return hn::PromoteTo(Tag<float>{}, hn::LoadU(halves, reinterpret_cast<const hwy::float16_t*>(p)));
  } else if constexpr (std::is_same_v<Real, double> && std::is_same_v<T, float>) {
    const hn::Rebind<float, Tag<double>> halves;
    return hn::PromoteTo(Tag<double>{}, hn::LoadU(halves, p));
  } else if constexpr (std::is_same_v<T, std::int8_t>) {
    return from_integers<Real>(load_integers<Real>(p));
  } else if constexpr (kConvertsHalves && std::is_same_v<Real, float> && std::is_same_v<T, float8_e5m2>) {
    const hn::Rebind<std::uint16_t, Tag<float>> half_words;
    const auto bits = hn::LoadU(hn::Rebind<std::uint8_t, Tag<float>>{}, &p->bits);
    return from_half_words(hn::ShiftLeft<8>(hn::PromoteTo(half_words, bits)));
  } else if constexpr (kConvertsHalves && std::is_same_v<Real, float> && std::is_same_v<T, float8_e4m3>) {
    // As halves these are 2^8 times smaller, and their NaN is 480.
    const hn::Rebind<std::int16_t, Tag<float>> half_words;
    const auto bits =
        hn::LoadU(hn::Rebind<std::int8_t, Tag<float>>{}, reinterpret_cast<const std::int8_t*>(&p->bits));
    const auto halves = hn::And(hn::ShiftLeft<7>(hn::PromoteTo(half_words, bits)),
                                hn::Set(half_words, static_cast<std::int16_t>(0xbf80)));
    const Vec<float> x =
        hn::Mul(from_half_words(hn::BitCast(hn::Rebind<std::uint16_t, Tag<float>>{}, halves)), set(256.0F));
    return hn::Or(x, hn::VecFromMask(Tag<float>{}, hn::Eq(hn::Abs(x), set(480.0F))));
  } else {
    alignas(64) Real converted[kLanes<Real>];
    for (Index i = 0; i < kLanes<Real>; ++i) converted[i] = static_cast<Real>(p[i]);
    return load(converted);
  }
}
/// x towards 0, as integers. Requires |x| < 2^31.
HWY_INLINE void store_integers(Vec<float> x, std::int32_t* to) {
  const hn::RebindToSigned<Tag<float>> words;
  hn::StoreU(hn::ConvertTo(words, x), words, to);
}
template <class V>
HWY_INLINE V clamp(V x, V lowest, V highest) {
  return hn::Clamp(x, lowest, highest);
}
/// |x| with the sign of y.
template <class V>
HWY_INLINE V copy_sign(V x, V y) {
  return hn::CopySign(x, y);
}
/// *p in every lane. Reads 8 bytes, as a block of quantised numbers has: a narrower load would cost more.
template <class Real>
HWY_INLINE Vec<Real> set_half(const float16* p) {
  if constexpr (kConvertsHalves) {
    const hn::CappedTag<float, 4> some;
    const hn::Rebind<hwy::float16_t, decltype(some)> halves;
    const auto x = hn::PromoteTo(some, hn::LoadU(halves, reinterpret_cast<const hwy::float16_t*>(p)));
    return set(static_cast<Real>(hn::GetLane(x)));
  } else {
    return set(static_cast<Real>(*p));
  }
}
/// The numbers (n - 8) scale, n a half of a byte. A register of AVX-512 holds all sixteen.
template <class Real>
class Nibbles {
 public:
  Nibbles() = default;
  HWY_INLINE explicit Nibbles(Vec<Real> scale) : numbers_(scale) {
    if constexpr (kLooksUp) numbers_ = hn::Mul(scale, hn::Iota(Tag<Real>{}, Real{-8}));
  }
  /// By the low halves of p[0 .. kLanes), and by the high ones.
  HWY_INLINE Vec<Real> low(const std::uint8_t* p) const {
    const auto bytes = load_integers<Real>(p);
    if constexpr (kLooksUp)
      return look_up(bytes);
    else
      return number(hn::And(bytes, hn::Set(hn::DFromV<decltype(bytes)>{}, 15)));
  }
  HWY_INLINE Vec<Real> high(const std::uint8_t* p) const {
    const auto halves = hn::ShiftRight<4>(load_integers<Real>(p));
    if constexpr (kLooksUp)
      return look_up(halves);
    else
      return number(halves);
  }

 private:
  static constexpr bool kLooksUp = FASTROPE_AVX512 == 1 && std::is_same_v<Real, float>;

#if FASTROPE_AVX512
  /// By the low four bits of words.
  HWY_INLINE Vec<float> look_up(Vec<std::int32_t> words) const {
    return Vec<float>{_mm512_permutexvar_ps(words.raw, numbers_.raw)};
  }
#endif
  template <class V>
  HWY_INLINE Vec<Real> number(V n) const {
    return hn::Mul(numbers_, from_integers<Real>(hn::Sub(n, hn::Set(hn::DFromV<V>{}, 8))));
  }

  Vec<Real> numbers_;  // all of them, or scale
};
/// Asks for the cache line of p[offset], into the second level; that element need not exist.
template <class T>
HWY_INLINE void prefetch(const T* p, Index offset) {
  // As an integer: p + offset may be past the end of its array, where a pointer may not point.
  const auto address = reinterpret_cast<std::uintptr_t>(p) + static_cast<std::uintptr_t>(offset) * sizeof(T);
  __builtin_prefetch(reinterpret_cast<const void*>(address), 0, 2);  // NOLINT(performance-no-int-to-ptr)
}
/// The first `count` < kLanes elements, zeros after them; nothing past them is read.
template <class Real, class T>
HWY_INLINE Vec<Real> load_first_as(const T* p, Index count) {
  alignas(64) Real converted[kLanes<Real>] = {};
  for (Index i = 0; i < count; ++i) converted[i] = static_cast<Real>(p[i]);
  return load(converted);
}
/// a = p[0], p[2], .., b = p[1], p[3], ..
template <class Real>
HWY_INLINE void load_pairs(const Real* p, Vec<Real>& a, Vec<Real>& b) {
  hn::LoadInterleaved2(Tag<Real>{}, p, a, b);
}
/// Elements of x, converted to Real, to p.
template <class Real, class T>
HWY_INLINE void store_as(Vec<T> x, Real* p) {
  if constexpr (std::is_same_v<T, Real>) {
    store<Real>(x, p);
  } else {
    static_assert(std::is_same_v<T, double> && std::is_same_v<Real, float>);
    const hn::Rebind<float, Tag<double>> halves;
    hn::StoreU(hn::DemoteTo(halves, x), halves, p);
  }
}
/// to[i] += factor x[i] for i < kCount, a power of two that is at most a vector of doubles, in double.
template <Index kCount, class Real>
HWY_INLINE void add_scaled(double factor, const Real* x, double* to) {
  const hn::CappedTag<double, static_cast<std::size_t>(kCount)> tag;
  const hn::Rebind<Real, decltype(tag)> from;
  const auto more = [&] {
    if constexpr (std::is_same_v<Real, double>)
      return hn::LoadU(from, x);
    else
      return hn::PromoteTo(tag, hn::LoadU(from, x));
  }();
  hn::StoreU(hn::MulAdd(more, hn::Set(tag, factor), hn::LoadU(tag, to)), tag, to);
}
/// p[0 .. kGroup) over and over. Requires kGroup a power of two of at most 16 bytes, p aligned to a group.
template <int kGroup, class Real>
HWY_INLINE Vec<Real> repeat(const Real* p) {
  if constexpr (kGroup == 1) {
    return set(*p);
  } else if constexpr (kGroup * sizeof(Real) == 8) {
    const hn::Repartition<double, Tag<Real>> pairs;
    double pair;
    std::memcpy(&pair, p, sizeof(pair));
    return hn::BitCast(Tag<Real>{}, hn::Set(pairs, pair));
  } else {
    static_assert(kGroup * sizeof(Real) == 16);
    return hn::LoadDup128(Tag<Real>{}, p);
  }
}
/// Lane i < kLanes / kGroup: the sum of x[i kGroup .. (i + 1) kGroup); the other lanes have no meaning.
template <int kGroup, class Real>
HWY_INLINE Vec<Real> add_groups(Vec<Real> x) {
#if HWY_TARGET == HWY_SCALAR
  static_assert(kGroup == 1);
  return x;
#else
  if constexpr (kGroup == 1) {
    return x;
  } else {
    const Tag<Real> tag;
    const Vec<Real> pairs = hn::Add(x, hn::Reverse2(tag, x));
    return add_groups<kGroup / 2, Real>(hn::ConcatEven(tag, pairs, pairs));
  }
#endif
}
template <class V, class Real>
HWY_INLINE void store_pairs(V a, V b, Real* p) {
  hn::StoreInterleaved2(a, b, Tag<Real>{}, p);
}
/// to[0 .. count) = from[0 .. count) in Real.
template <class Real, class T>
HWY_INLINE void convert(const T* from, Index count, Real* to) {
  const Index whole = count - count % kLanes<Real>;
  for (Index i = 0; i < whole; i += kLanes<Real>) store<Real>(load_as<Real>(from + i), to + i);
  for (Index i = whole; i < count; ++i) to[i] = static_cast<Real>(from[i]);
}

template <class V>
HWY_INLINE V add(V a, V b) {
  return hn::Add(a, b);
}
template <class V>
HWY_INLINE V sub(V a, V b) {
  return hn::Sub(a, b);
}
template <class V>
HWY_INLINE V mul(V a, V b) {
  return hn::Mul(a, b);
}
/// to = x o y, [count] each, which may be one and the same.
template <class Real>
void multiply_elements(const Real* x, const Real* y, Index count, Real* to) {
  Index i = 0;
  for (; i + kLanes<Real> <= count; i += kLanes<Real>) store<Real>(mul(load(x + i), load(y + i)), to + i);
  for (; i < count; ++i) to[i] = x[i] * y[i];
}
/// to += x o y, [count] each: products in Real, sums in Sum, Real or double.
template <class Real, class Sum>
void add_products(const Real* x, const Real* y, Index count, Sum* to) {
  constexpr Index kStep = kLanes<Real>;
  alignas(64) Real product[kStep];
  Index i = 0;
  for (; i + kStep <= count; i += kStep) {
    store<Real>(mul(load(x + i), load(y + i)), product);
    for (Index l = 0; l < kStep; l += kLanes<Sum>)
      store<Sum>(add(load(to + i + l), load_as<Sum>(product + l)), to + i + l);
  }
  for (; i < count; ++i) to[i] += static_cast<Sum>(x[i] * y[i]);
}
template <class V>
HWY_INLINE V sqrt(V a) {
  return hn::Sqrt(a);
}
template <class V>
HWY_INLINE V neg(V a) {
  return hn::Neg(a);
}
/// a * b + c
template <class V>
HWY_INLINE V fma(V a, V b, V c) {
  return hn::MulAdd(a, b, c);
}
/// Whether there are vector instructions for products of bfloat16 pairs.
#if FASTROPE_AVX512 && defined(__AVX512BF16__)
#define FASTROPE_BFLOAT16_PRODUCTS 1
inline constexpr bool kBfloat16Products = true;
/// sum + the products of both halves of a word, rounded once; words are pairs of bfloat16.
HWY_INLINE Vec<float> fma_pairs(Vec<float> a, Vec<float> b, Vec<float> sum) {
  return Vec<float>{
      _mm512_dpbf16_ps(sum.raw, reinterpret_cast<__m512bh>(a.raw), reinterpret_cast<__m512bh>(b.raw))};
}
/// to[0 .. kLanes) = words of the bfloat16 nearest to from[0 .. 2 kLanes), two by two. They may overlap.
HWY_INLINE void store_nearest_pairs(const float* from, float* to) {
  const Vec<float> low = load(from), high = load(from + kLanes<float>);
  store<float>(Vec<float>{reinterpret_cast<__m512>(_mm512_cvtne2ps_pbh(high.raw, low.raw))}, to);
}
/// The bfloat16 nearest to each element, as store_nearest_pairs has it.
HWY_INLINE Vec<float> round_to_bfloat16(Vec<float> x) {
  const __m512i words = _mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x.raw)));
  return Vec<float>{_mm512_castsi512_ps(_mm512_slli_epi32(words, 16))};
}
/// Words of a and b, lane by lane; both must be bfloat16 numbers.
HWY_INLINE Vec<float> pair_up(Vec<float> a, Vec<float> b) {
  const hn::RebindToUnsigned<Tag<float>> words;
  return hn::BitCast(Tag<float>{}, hn::Or(hn::ShiftRight<16>(hn::BitCast(words, a)), hn::BitCast(words, b)));
}
#else
#define FASTROPE_BFLOAT16_PRODUCTS 0
inline constexpr bool kBfloat16Products = false;
#endif
/// a or b, whichever is larger; either when one is NaN.
template <class V>
HWY_INLINE V max(V a, V b) {
  return hn::Max(a, b);
}
/// a, or b where a is larger; NaN where a is.
template <class V>
HWY_INLINE V at_most(V a, V b) {
  return hn::IfThenElse(hn::Gt(a, b), b, a);
}
/// a = b ? yes : no, lane by lane.
template <class V>
HWY_INLINE V if_equal(V a, V b, V yes, V no) {
  return hn::IfThenElse(hn::Eq(a, b), yes, no);
}
/// Whether a > b in some lane; NaN is not greater.
template <class Real>
HWY_INLINE bool any_greater(Vec<Real> a, Vec<Real> b) {
  return !hn::AllFalse(Tag<Real>{}, hn::Gt(a, b));
}
template <class Real>
HWY_INLINE Real reduce_add(Vec<Real> x) {
  return hn::GetLane(hn::SumOfLanes(Tag<Real>{}, x));
}
#if HWY_TARGET != HWY_SCALAR
/// The sum of a vector's 128-bit blocks.
template <class D, class V>
HWY_INLINE auto add_blocks(D, V x) {
  if constexpr (hn::MaxLanes(D{}) * sizeof(hn::TFromD<D>) <= 16) {
    return x;
  } else {
    const hn::Half<D> half;
    return add_blocks(half, hn::Add(hn::LowerHalf(half, x), hn::UpperHalf(half, x)));
  }
}
#endif
/// The rows of a square block that transpose_block takes: the elements of 128 bits.
template <class Real>
inline constexpr Index kBlockRows = HWY_TARGET == HWY_SCALAR ? 1 : 16 / sizeof(Real);

#if HWY_TARGET != HWY_SCALAR
/// Block b of x, 128 bits, to p + b * stride.
template <class D, class V, class Real>
HWY_INLINE void store_blocks(D tag, V x, Real* p, Index stride) {
  if constexpr (hn::MaxLanes(D{}) * sizeof(Real) <= 16) {
    hn::StoreU(x, tag, p);
  } else {
    const hn::Half<D> half;
    store_blocks(half, hn::LowerHalf(half, x), p, stride);
    store_blocks(half, hn::UpperHalf(half, x),
                 p + static_cast<Index>(hn::MaxLanes(half)) / kBlockRows<Real> * stride, stride);
  }
}
#endif
/// to[l * to_stride + r] = from[r * from_stride + l] for r < kBlockRows and l < kCols, a power of two from
/// kBlockRows to kLanes.
template <class Real, Index kCols = kLanes<Real>>
HWY_INLINE void transpose_block(const Real* from, [[maybe_unused]] Index from_stride, Real* to,
                                [[maybe_unused]] Index to_stride) {
#if HWY_TARGET == HWY_SCALAR
  *to = *from;
#else
  const hn::CappedTag<Real, static_cast<std::size_t>(kCols)> tag;
  const Index step = kBlockRows<Real> * to_stride;
  const auto a = hn::LoadU(tag, from), b = hn::LoadU(tag, from + from_stride);
  if constexpr (sizeof(Real) == 8) {
    store_blocks(tag, hn::InterleaveLower(tag, a, b), to, step);
    store_blocks(tag, hn::InterleaveUpper(tag, a, b), to + to_stride, step);
  } else {
    const auto c = hn::LoadU(tag, from + 2 * from_stride), d = hn::LoadU(tag, from + 3 * from_stride);
    const hn::Repartition<double, decltype(tag)> wide;
    const auto ab = hn::BitCast(wide, hn::InterleaveLower(tag, a, b)),
               ab2 = hn::BitCast(wide, hn::InterleaveUpper(tag, a, b));
    const auto cd = hn::BitCast(wide, hn::InterleaveLower(tag, c, d)),
               cd2 = hn::BitCast(wide, hn::InterleaveUpper(tag, c, d));
    store_blocks(tag, hn::BitCast(tag, hn::InterleaveLower(wide, ab, cd)), to, step);
    store_blocks(tag, hn::BitCast(tag, hn::InterleaveUpper(wide, ab, cd)), to + to_stride, step);
    store_blocks(tag, hn::BitCast(tag, hn::InterleaveLower(wide, ab2, cd2)), to + 2 * to_stride, step);
    store_blocks(tag, hn::BitCast(tag, hn::InterleaveUpper(wide, ab2, cd2)), to + 3 * to_stride, step);
  }
#endif
}
/// The same for l < cols, in blocks as wide as there is room for.
template <class Real, Index kCols = kLanes<Real>>
HWY_INLINE void transpose_strip(const Real* from, Index from_stride, Index cols, Real* to, Index to_stride) {
  Index l = 0;
  for (; l + kCols <= cols; l += kCols)
    transpose_block<Real, kCols>(from + l, from_stride, to + l * to_stride, to_stride);
  if constexpr (kCols > kBlockRows<Real>) {
    transpose_strip<Real, kCols / 2>(from + l, from_stride, cols - l, to + l * to_stride, to_stride);
  } else {
    for (; l < cols; ++l)
      for (Index r = 0; r < kBlockRows<Real>; ++r) to[l * to_stride + r] = from[r * from_stride + l];
  }
}
/// The sums of four vectors, to sums[0..3].
template <class Real>
HWY_INLINE void reduce_add4(Vec<Real> a, Vec<Real> b, Vec<Real> c, Vec<Real> d, Real* sums) {
#if HWY_TARGET != HWY_SCALAR
  if constexpr (sizeof(Real) == 4) {
    // Per 128-bit block: [a0+a2, b0+b2, a1+a3, b1+b3], then [a, b, c, d]; then the blocks are added.
    const Tag<Real> tag;
    const auto ab = add(hn::InterleaveLower(tag, a, b), hn::InterleaveUpper(tag, a, b));
    const auto cd = add(hn::InterleaveLower(tag, c, d), hn::InterleaveUpper(tag, c, d));
    const hn::Repartition<double, Tag<Real>> wide;
    const auto ab2 = hn::BitCast(wide, ab), cd2 = hn::BitCast(wide, cd);
    const auto abcd = add(hn::BitCast(tag, hn::InterleaveLower(wide, ab2, cd2)),
                          hn::BitCast(tag, hn::InterleaveUpper(wide, ab2, cd2)));
    hn::StoreU(add_blocks(tag, abcd), hn::FixedTag<Real, 4>{}, sums);
    return;
  }
#endif
  sums[0] = reduce_add<Real>(a);
  sums[1] = reduce_add<Real>(b);
  sums[2] = reduce_add<Real>(c);
  sums[3] = reduce_add<Real>(d);
}
template <class Real>
HWY_INLINE Real reduce_max(Vec<Real> x) {
  return hn::GetLane(hn::MaxOfLanes(Tag<Real>{}, x));
}
/// The largest of x [count], -infinity without any; NaN may or may not count.
template <class Real>
HWY_INLINE Real largest(const Real* x, Index count) {
  Vec<Real> most = set(-std::numeric_limits<Real>::infinity());
  Index i = 0;
  for (; i + kLanes<Real> <= count; i += kLanes<Real>) most = max(load(x + i), most);
  Real last = reduce_max<Real>(most);
  for (; i < count; ++i) last = x[i] > last ? x[i] : last;
  return last;
}
/// Whether all x [count] are finite. Requires count a multiple of kLanes.
template <class Real>
HWY_INLINE bool all_finite(const Real* x, Index count) {
  Vec<Real> marks = zero<Real>();  // x * 0 is 0 for finite x and NaN otherwise, whose bits stay
  for (Index i = 0; i < count; i += kLanes<Real>) marks = hn::Or(mul(load(x + i), zero<Real>()), marks);
  return hn::AllFalse(Tag<Real>{}, hn::IsNaN(marks));
}
/// x - floor(x), in [0, 1]; finite for x = -infinity where the hardware has an instruction for it.
template <class Real>
HWY_INLINE Vec<Real> fraction(Vec<Real> x) {
#if FASTROPE_AVX512
  constexpr int kToFloor = _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC;
  if constexpr (sizeof(Real) == 4)
    return Vec<Real>{_mm512_reduce_ps(x.raw, kToFloor)};
  else
    return Vec<Real>{_mm512_reduce_pd(x.raw, kToFloor)};
#else
  return hn::Sub(x, hn::Floor(x));
#endif
}
/// p * 2^floor(x) for x < max_exponent and p in [1, 2]; 0 where x < lowest, which is at least min_exponent.
template <class Real>
HWY_INLINE Vec<Real> scale_by_floor(Vec<Real> p, Vec<Real> x, Vec<Real> lowest) {
#if FASTROPE_AVX512
  if constexpr (sizeof(Real) == 4)
    return Vec<Real>{
        _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(x.raw, lowest.raw, _CMP_NLT_UQ), p.raw, x.raw)};
  else
    return Vec<Real>{
        _mm512_maskz_scalef_pd(_mm512_cmp_pd_mask(x.raw, lowest.raw, _CMP_NLT_UQ), p.raw, x.raw)};
#else
  // Added to this number, whose unit is 1, the floor and the exponent's bias are the last bits of the sum;
  // those of an x that is too small have no meaning. Multiplied by the power, not added to the exponent: NaN
  // stays NaN.
  constexpr int kMantissa = std::numeric_limits<Real>::digits - 1;
  constexpr Real kUnit = Real{3} * (std::uint64_t{1} << (kMantissa - 1));
  constexpr Real kBias = std::numeric_limits<Real>::max_exponent - 1;
  const hn::RebindToUnsigned<Tag<Real>> bits;
  const auto biased = hn::BitCast(bits, hn::Add(hn::Floor(x), set(kUnit + kBias)));
  const auto power = hn::BitCast(Tag<Real>{}, hn::ShiftLeft<kMantissa>(biased));
  return hn::IfThenZeroElse(hn::Lt(x, lowest), hn::Mul(p, power));
#endif
}
template <class Real>
HWY_INLINE Vec<Real> tanh(Vec<Real> x) {
  return hn::Tanh(Tag<Real>{}, x);
}

}  // namespace fastrope::inline FASTROPE_TARGET::simd
