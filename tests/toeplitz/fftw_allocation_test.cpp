// FFTW allocates below operator new, in executions of some plans: none of those that RealFft makes.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdlib>

#include "fastrope/toeplitz/fftw.hpp"

#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define COUNTS_MALLOC 1
#endif
#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#undef COUNTS_MALLOC
#endif
#endif

#ifdef COUNTS_MALLOC
namespace {
bool counting = false;
long allocations = 0;
}  // namespace

extern "C" {
void* __libc_malloc(std::size_t size);
void* __libc_memalign(std::size_t alignment, std::size_t size);
void* malloc(std::size_t size) {
  allocations += counting ? 1 : 0;
  return __libc_malloc(size);
}
void* memalign(std::size_t alignment, std::size_t size) {
  allocations += counting ? 1 : 0;
  return __libc_memalign(alignment, size);
}
int posix_memalign(void** p, std::size_t alignment, std::size_t size) {
  *p = memalign(alignment, size);
  return *p == nullptr ? 12 : 0;
}
void* aligned_alloc(std::size_t alignment, std::size_t size) { return memalign(alignment, size); }
}
#endif

namespace fastrope {
namespace {

template <class Real>
class RealFftAllocation : public testing::Test {};
using Reals = testing::Types<float, double>;
TYPED_TEST_SUITE(RealFftAllocation, Reals);

TYPED_TEST(RealFftAllocation, TransformsOfEveryLengthHaveNone) {
#ifdef COUNTS_MALLOC
  counting = true;
  void* volatile seen = std::malloc(100);  // volatile, or it could be optimised away
  counting = false;
  std::free(seen);
  ASSERT_GE(allocations, 1) << "malloc is not counted";
  for (Index n = 1; n <= 40000; n = fft_length(n) + 1) {
    const RealFft<TypeParam> fft(fft_length(n));
    const auto x = detail::aligned_array<TypeParam>(fft.buffer_size()),
               y = detail::aligned_array<TypeParam>(fft.buffer_size());
    auto *a = reinterpret_cast<TypeParam*>(x.get()), *b = reinterpret_cast<TypeParam*>(y.get());
    std::fill_n(a, fft.buffer_size(), TypeParam(1));
    allocations = 0;
    counting = true;
    TypeParam* const spectrum = fft.forward(a, b);
    fft.inverse(spectrum, spectrum == a ? b : a);
    counting = false;
    EXPECT_EQ(allocations, 0) << "length " << fft.length();
  }
#else
  GTEST_SKIP() << "malloc cannot be counted here";
#endif
}

}  // namespace
}  // namespace fastrope
