// The instruction set in the name of everything here.
//
// Kernels take the vectors of the flags of the file that includes them. All names stand in an inline
// namespace that says which, so that a linker cannot take a function of one file for that of another with
// other flags, and an object that goes from one to the other is an undefined symbol in the place of a wrong
// result.
#pragma once

#if defined(__AMX_BF16__)
#define FASTROPE_TARGET amx_bf16
#elif defined(__AVX512BF16__)
#define FASTROPE_TARGET avx512_bf16
#elif defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define FASTROPE_TARGET avx512
#elif defined(__AVX2__) && defined(__FMA__)
#define FASTROPE_TARGET avx2
#elif defined(__AVX__)
#define FASTROPE_TARGET avx
#elif defined(__SSE4_1__)
#define FASTROPE_TARGET sse4
#elif defined(__SSSE3__)
#define FASTROPE_TARGET ssse3
#else
#define FASTROPE_TARGET baseline
#endif
