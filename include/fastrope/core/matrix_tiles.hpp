// MatrixTiles: the matrix unit (AMX) of processors that have one. It multiplies bfloat16 pairs many times
// faster than vectors do.
//
// A tile register holds 16 rows of 64 bytes. Linux lets a process use them after it has asked once; each
// thread sets their shape before use and releases them after, since a thread with live tiles is slow to
// switch.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"

#if defined(__AMX_BF16__) && defined(__AMX_TILE__) && defined(__linux__)
#define FASTROPE_MATRIX_TILES 1
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#else
#define FASTROPE_MATRIX_TILES 0
#endif

namespace fastrope::inline FASTROPE_TARGET {

/// While it lives, this thread may use the tile registers, if the system lets it.
class MatrixTiles {
 public:
  static constexpr Index kRows = 16;  ///< of a tile
  static constexpr Index kCols = 16;  ///< of a tile, in words of 32 bits

#if FASTROPE_MATRIX_TILES
  MatrixTiles() {
    if (!allowed()) return;
    // Static: GCC's intrinsic does not say that it reads more than the first bytes.
    static constexpr struct alignas(64) {
      std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
      std::uint16_t bytes_per_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } shape;
    _tile_loadconfig(&shape);
  }
  ~MatrixTiles() {
    if (allowed()) _tile_release();
  }
#else
  MatrixTiles() = default;
  ~MatrixTiles() = default;
#endif
  MatrixTiles(const MatrixTiles&) = delete;
  MatrixTiles& operator=(const MatrixTiles&) = delete;

  static bool allowed() {
#if FASTROPE_MATRIX_TILES
    constexpr long kRequestPermission = 0x1023, kTileData = 18;  // asm/prctl.h, arch/x86/xstate
    static const bool granted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
    return granted;
#else
    return false;
#endif
  }
};

#if FASTROPE_MATRIX_TILES
namespace detail {

/// C [rows, kTiles * 16] = A [rows, depth] B [depth, kTiles * 16], plus C if it accumulates, of words that
/// are pairs of bfloat16: c_ij = sum_k a_ik[0] b_kj[0] + a_ik[1] b_kj[1]. Strides in words. Requires rows and
/// depth multiples of 16 and a living MatrixTiles.
template <int kTiles>
void multiply_matrix_tiles(Index rows, Index depth, const float* a, Index a_stride, const float* b,
                           Index b_stride, bool accumulate, float* c, Index c_stride) {
  const auto bytes = [](Index words) { return static_cast<std::size_t>(words) * sizeof(float); };
  constexpr Index kCols = MatrixTiles::kCols;
  // GCC's tile loads do not say that they read memory.
  std::atomic_signal_fence(std::memory_order_seq_cst);
  for (Index i = 0; i < rows;
       i += MatrixTiles::kRows, a += MatrixTiles::kRows * a_stride, c += MatrixTiles::kRows * c_stride) {
    // The registers' numbers are part of the instructions: 0 to 3 sum, 4 is of A, 5 to 7 are of B.
    if (accumulate) {
      _tile_loadd(0, c, bytes(c_stride));
      if constexpr (kTiles > 1) _tile_loadd(1, c + kCols, bytes(c_stride));
      if constexpr (kTiles > 2) _tile_loadd(2, c + 2 * kCols, bytes(c_stride));
      if constexpr (kTiles > 3) _tile_loadd(3, c + 3 * kCols, bytes(c_stride));
    } else {
      _tile_zero(0);
      if constexpr (kTiles > 1) _tile_zero(1);
      if constexpr (kTiles > 2) _tile_zero(2);
      if constexpr (kTiles > 3) _tile_zero(3);
    }
    for (Index k = 0; k < depth; k += MatrixTiles::kCols) {
      const float* row = b + k * b_stride;
      _tile_loadd(4, a + k, bytes(a_stride));
      _tile_loadd(5, row, bytes(b_stride));
      _tile_dpbf16ps(0, 4, 5);
      if constexpr (kTiles > 1) {
        _tile_loadd(6, row + kCols, bytes(b_stride));
        _tile_dpbf16ps(1, 4, 6);
      }
      if constexpr (kTiles > 2) {
        _tile_loadd(7, row + 2 * kCols, bytes(b_stride));
        _tile_dpbf16ps(2, 4, 7);
      }
      if constexpr (kTiles > 3) {
        _tile_loadd(5, row + 3 * kCols, bytes(b_stride));
        _tile_dpbf16ps(3, 4, 5);
      }
    }
    _tile_stored(0, c, bytes(c_stride));
    if constexpr (kTiles > 1) _tile_stored(1, c + kCols, bytes(c_stride));
    if constexpr (kTiles > 2) _tile_stored(2, c + 2 * kCols, bytes(c_stride));
    if constexpr (kTiles > 3) _tile_stored(3, c + 3 * kCols, bytes(c_stride));
  }
}

}  // namespace detail
#endif

}  // namespace fastrope::inline FASTROPE_TARGET
