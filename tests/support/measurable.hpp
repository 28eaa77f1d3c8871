// Whether what a test measures of its own process says something about the library.
#pragma once

namespace fastrope_test {

/// False where code is not optimised or a sanitizer instruments it: its times and its memory are not the
/// library's.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || !defined(__OPTIMIZE__)
inline constexpr bool kMeasurable = false;
#elif !defined(__has_feature)
inline constexpr bool kMeasurable = true;
#else
inline constexpr bool kMeasurable = !__has_feature(address_sanitizer) && !__has_feature(thread_sanitizer);
#endif

}  // namespace fastrope_test
