// The instruction set in the name of everything here.
//
// Kernels take the vectors of the flags of the file that includes them. All names stand in an inline
// namespace that says which, so that a linker cannot take a function of one file for that of another with
// other flags, and an object that goes from one to the other is an undefined symbol in the place of a wrong
// result.
//
// What the library promises rests on the arithmetic of IEEE 754 as it is written, so flags that let the
// compiler pretend otherwise are refused. Where clang is given one such flag without the others it defines
// nothing that could be looked at.
#pragma once

#if (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__) || defined(__ASSOCIATIVE_MATH__) || \
    defined(__RECIPROCAL_MATH__) || defined(__FAST_MATH__)
#error \
    "fastrope does not compile with -ffast-math, -Ofast or a part of them (-ffinite-math-only, \
-fassociative-math, -freciprocal-math, -funsafe-math-optimizations): a compiler that assumes that NaN and \
infinity do not occur removes the checks that keep them in their rows and take the exact path, and one that \
reorders sums or rounds otherwise breaks the proof of every error bound"
#endif

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
#define FASTROPE_WITH_VNNI(target) target##_vnni
#else
#define FASTROPE_WITH_VNNI(target) target
#endif

#if defined(__AMX_BF16__)
#define FASTROPE_TARGET FASTROPE_WITH_VNNI(amx_bf16)
#elif defined(__AVX512BF16__)
#define FASTROPE_TARGET FASTROPE_WITH_VNNI(avx512_bf16)
#elif defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define FASTROPE_TARGET FASTROPE_WITH_VNNI(avx512)
#elif defined(__AVX2__) && defined(__FMA__)
#define FASTROPE_TARGET FASTROPE_WITH_VNNI(avx2)
#elif defined(__AVX__)
#define FASTROPE_TARGET avx
#elif defined(__SSE4_1__)
#define FASTROPE_TARGET sse4
#elif defined(__SSSE3__)
#define FASTROPE_TARGET ssse3
#else
#define FASTROPE_TARGET baseline
#endif

#define FASTROPE_QUOTE_(x) #x
#define FASTROPE_QUOTE(x) FASTROPE_QUOTE_(x)

namespace fastrope::inline FASTROPE_TARGET {

/// The instruction set as names have it, such as "avx2".
inline constexpr const char* kTargetName = FASTROPE_QUOTE(FASTROPE_TARGET);

}  // namespace fastrope::inline FASTROPE_TARGET

#undef FASTROPE_QUOTE
#undef FASTROPE_QUOTE_
