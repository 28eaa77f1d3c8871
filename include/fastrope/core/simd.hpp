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
// enough.
#if !defined(HWY_DISABLED_TARGETS) && !defined(HWY_WANT_AVX3_DL)
#define HWY_DISABLED_TARGETS HWY_AVX3_DL
#endif
#endif
#include <hwy/contrib/math/math-inl.h>
#include <hwy/highway.h>

#include <limits>

#include "fastrope/core/index.hpp"

#if HWY_TARGET == HWY_SCALAR || HWY_TARGET == HWY_EMU128
#pragma message( \
    "fastrope: no SIMD instructions are enabled (use -march=native or -mavx2 -mfma); kernels will be slow")
#endif
#if HWY_HAVE_SCALABLE
#error \
    "fastrope: vectors of unknown length (SVE, RVV) are not supported; compile for NEON or a fixed-length target"
#endif

namespace fastrope::simd {

namespace hn = hwy::HWY_NAMESPACE;

template <class Real>
using Tag = hn::ScalableTag<Real>;
template <class Real>
using Vec = hn::Vec<Tag<Real>>;

/// Elements in a vector.
template <class Real>
inline constexpr Index kLanes = static_cast<Index>(hn::MaxLanes(Tag<Real>{}));

/// Architectural vector registers; kernels size their tiles by it.
#if HWY_ARCH_X86 && HWY_TARGET != HWY_AVX3
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
/// a * b + c
template <class V>
HWY_INLINE V fma(V a, V b, V c) {
  return hn::MulAdd(a, b, c);
}
/// a or b, whichever is larger; b when either is NaN.
template <class V>
HWY_INLINE V max(V a, V b) {
  return hn::IfThenElse(hn::Gt(a, b), a, b);
}
template <class Real>
HWY_INLINE Real reduce_add(Vec<Real> x) {
  return hn::GetLane(hn::SumOfLanes(Tag<Real>{}, x));
}
template <class Real>
HWY_INLINE Real reduce_max(Vec<Real> x) {
  return hn::GetLane(hn::MaxOfLanes(Tag<Real>{}, x));
}
/// 0 where a < b, else x.
template <class V>
HWY_INLINE V zero_if_less(V a, V b, V x) {
  return hn::IfThenZeroElse(hn::Lt(a, b), x);
}
/// x * 2^n for the integer n in the low bits of `bits`; requires a normal result.
template <class Real>
HWY_INLINE Vec<Real> scale_by_low_bits(Vec<Real> x, Vec<Real> bits) {
  const hn::RebindToSigned<Tag<Real>> integers;
  constexpr int kMantissa = std::numeric_limits<Real>::digits - 1;
  return hn::BitCast(
      Tag<Real>{}, hn::Add(hn::BitCast(integers, x), hn::ShiftLeft<kMantissa>(hn::BitCast(integers, bits))));
}
template <class Real>
HWY_INLINE Vec<Real> tanh(Vec<Real> x) {
  return hn::Tanh(Tag<Real>{}, x);
}

}  // namespace fastrope::simd
