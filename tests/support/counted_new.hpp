// Counts allocations: replaces operator new, so it is included by one file of a program.
#pragma once

#include <atomic>
#include <cstdlib>
#include <new>

namespace fastrope_test {

inline std::atomic<long> allocations = 0;

inline void* counted_allocate(std::size_t size, std::size_t alignment) {
  ++allocations;
  void* memory = nullptr;
  if (posix_memalign(&memory, alignment, size > 0 ? size : 1) != 0) throw std::bad_alloc();
  return memory;
}

}  // namespace fastrope_test

// Not inlined: GCC would see free() meet operator new.
[[gnu::noinline]] void* operator new(std::size_t size) {
  return fastrope_test::counted_allocate(size, sizeof(void*) * 2);
}
[[gnu::noinline]] void* operator new(std::size_t size, std::align_val_t alignment) {
  return fastrope_test::counted_allocate(size, static_cast<std::size_t>(alignment));
}
[[gnu::noinline]] void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  return fastrope_test::counted_allocate(size, sizeof(void*) * 2);
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t, std::align_val_t) noexcept {
  std::free(memory);
}
