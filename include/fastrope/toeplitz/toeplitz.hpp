// ToeplitzOperator: a Toeplitz matrix times the columns of a matrix, in O(n log n) a column.
//
//   apply            Y = T X
//   apply_transpose  Y = T' X
//   apply_hadamard   Y = (T o U V') X = sum_l diag(U_l) T diag(V_l) X,  U_l and V_l the columns of U and V
//
// The columns ("channels") of X are transposed, a block at a time, into contiguous padded vectors, sent
// through CirculantEmbedding and transposed back: FFTs over the strided columns would cost several times as
// much. A block of channels is a task for the executor.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <complex>
#include <cstddef>
#include <cstdlib>
#include <memory>
#include <span>
#include <vector>

#include "fastrope/core/error.hpp"
#include "fastrope/core/executor.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/tensor_view.hpp"
#include "fastrope/core/workspace.hpp"
#include "fastrope/toeplitz/circulant.hpp"

namespace fastrope {

namespace detail {

/// Channels of one length as contiguous vectors, each aligned to kAlignment.
template <class Real>
class Channels {
 public:
  Channels(Workspace& workspace, Index count, Index length)
      : length_(length),
        stride_(round_up(length, kAlignment / sizeof(Real))),
        data_(workspace.take<Real>(count * stride_).data()) {}

  Real* operator[](Index c) const { return data_ + c * stride_; }

  auto array(Index c) const { return Eigen::Map<Eigen::ArrayX<Real>>((*this)[c], length_); }

  /// Column columns.begin + c of x becomes the start of channel c, with zeros behind it.
  void gather(MatrixView<const Real> x, Range columns) const {
    for_each_tile(x.rows, columns.size(), [&](Index c, Range rows) {
      for (Index i = rows.begin; i < rows.end; ++i) (*this)[c][i] = x(i, columns.begin + c);
    });
    for (Index c = 0; c < columns.size(); ++c) std::fill((*this)[c] + x.rows, (*this)[c] + length_, Real(0));
  }

  /// The start of channel c becomes column columns.begin + c of y.
  void scatter(MatrixView<Real> y, Range columns) const {
    for_each_tile(y.rows, columns.size(), [&](Index c, Range rows) {
      for (Index i = rows.begin; i < rows.end; ++i) y(i, columns.begin + c) = (*this)[c][i];
    });
  }

 private:
  /// Tiles of rows that stay in the L1 cache while their channels are visited one after the other.
  template <class F>
  static void for_each_tile(Index rows, Index channels, F&& f) {
    constexpr Index kTileRows = 64;
    for (Index i = 0; i < rows; i += kTileRows) {
      for (Index c = 0; c < channels; ++c) f(c, Range{i, std::min(rows, i + kTileRows)});
    }
  }

  Index length_;
  Index stride_;
  Real* data_;
};

}  // namespace detail

/// The n_rows x n_cols matrix T_ij = generator[i - j + n_cols - 1], kept as its transform.
/// Real is float or double. Copies share their FFT plans. All functions are thread-safe and their results do
/// not depend on the executor.
///
/// Error of apply, for each channel x of X: |y - T x|_max <= 10 eps (1 + log2 N) |generator|_2 |x|_2 with
/// N = fft_length(n_rows + n_cols - 1); see CirculantEmbedding. A non-finite value spoils its channel alone.
template <class Real>
class ToeplitzOperator {
 public:
  /// generator: [n_rows + n_cols - 1], the value of lag = row - col at [lag + n_cols - 1]: the upper right
  /// corner comes first, the lower left one last. n_rows or n_cols may be 0. Throws Error when a size is
  /// negative or the generator has another length. Cost: O(N log N).
  ToeplitzOperator(Index n_rows, Index n_cols, std::span<const Real> generator)
      : embedding_(embed(n_rows, n_cols, generator)),
        spectrum_(static_cast<std::size_t>(embedding_.spectrum_size())) {
    for_each_block<Buffers>(1, Executor::serial(), [&](Range, const Buffers& b) {
      embedding_.transform_generator(generator.data(), b.padded[0], b.spectrum.data());
      std::copy(b.spectrum.begin(), b.spectrum.end(), spectrum_.begin());
    });
  }

  Index n_rows() const { return embedding_.n_rows(); }
  Index n_cols() const { return embedding_.n_cols(); }

  /// Y = T X.  x: [n_cols, c], y: [n_rows, c]; they must not overlap.
  /// Throws Error when the shapes clash. Cost: 2 c transforms of length N. Allocates some 64 / sizeof(Real)
  /// vectors of length N for each worker, fewer when there are fewer channels.
  void apply(MatrixView<const Real> x, MatrixView<Real> y,
             const Executor& executor = Executor::serial()) const {
    check("apply", x, n_cols(), y, n_rows());
    product(&Embedding::multiply, x, y, executor);
  }

  /// Y = T' X.  x: [n_rows, c], y: [n_cols, c]; otherwise as apply().
  void apply_transpose(MatrixView<const Real> x, MatrixView<Real> y,
                       const Executor& executor = Executor::serial()) const {
    check("apply_transpose", x, n_rows(), y, n_cols());
    product(&Embedding::multiply_transpose, x, y, executor);
  }

  /// Y = (T o U V') X, without forming an n_rows x n_cols matrix.
  ///   u: [n_rows, r], v: [n_cols, r], x: [n_cols, c], y: [n_rows, c]; y must not overlap the others
  /// Throws Error when the shapes clash. Error for each channel x: the sum over l of |U_l|_max times the
  /// bound of apply for V_l o x, on top of the rounding of a sum of r terms. Cost: 2 r c transforms of length
  /// N; memory as for apply(), whatever r is.
  void apply_hadamard(MatrixView<const Real> u, MatrixView<const Real> v, MatrixView<const Real> x,
                      MatrixView<Real> y, const Executor& executor = Executor::serial()) const {
    check("apply_hadamard", x, n_cols(), y, n_rows());
    check_factors(u, v);
    for_each_block<HadamardBuffers>(x.cols, executor, [&](Range block, const HadamardBuffers& b) {
      b.x.gather(x, block);
      for (Index c = 0; c < block.size(); ++c) b.y.array(c).setZero();
      for (Index l = 0; l < u.cols; ++l) {
        b.u.gather(u, {l, l + 1});
        b.v.gather(v, {l, l + 1});
        for (Index c = 0; c < block.size(); ++c) {
          auto padded = b.padded.array(0);
          padded.head(n_cols()) = b.v.array(0) * b.x.array(c);
          padded.tail(padded.size() - n_cols()).setZero();
          embedding_.multiply(spectrum_.data(), padded.data(), padded.data(), b.spectrum.data());
          b.y.array(c) += b.u.array(0) * padded.head(n_rows());
        }
      }
      b.y.scatter(y, block);
    });
  }

 private:
  using Embedding = CirculantEmbedding<Real>;
  using Complex = std::complex<Real>;
  using Multiply = void (Embedding::*)(const Complex*, const Real*, Real*, Complex*) const noexcept;

  /// What a worker needs to multiply a block of `width` channels.
  struct Buffers {
    detail::Channels<Real> padded;  // [width, N]
    std::span<Complex> spectrum;    // [N/2 + 1]

    Buffers(Workspace& w, const Embedding& e, Index width)
        : padded(w, width, e.length()), spectrum(w.take<Complex>(e.spectrum_size())) {}
  };

  /// The same for the Hadamard form: only one channel at a time is padded.
  struct HadamardBuffers {
    detail::Channels<Real> x, y;    // [width, n_cols], [width, n_rows]
    detail::Channels<Real> u, v;    // [n_rows], [n_cols]: column l of the factors
    detail::Channels<Real> padded;  // [N]
    std::span<Complex> spectrum;    // [N/2 + 1]

    HadamardBuffers(Workspace& w, const Embedding& e, Index width)
        : x(w, width, e.n_cols()),
          y(w, width, e.n_rows()),
          u(w, 1, e.n_rows()),
          v(w, 1, e.n_cols()),
          padded(w, 1, e.length()),
          spectrum(w.take<Complex>(e.spectrum_size())) {}
  };

  static Embedding embed(Index n_rows, Index n_cols, std::span<const Real> generator) {
    const Index size = Embedding::generator_size(n_rows, n_cols);
    if (std::ssize(generator) != size) {
      detail::fail("ToeplitzOperator: a ", n_rows, " x ", n_cols, " matrix needs a generator of ", size,
                   " values, got ", generator.size());
    }
    return {n_rows, n_cols};
  }

  void check(const char* call, MatrixView<const Real> x, Index x_rows, MatrixView<Real> y,
             Index y_rows) const {
    if (x.rows != x_rows || y.rows != y_rows || x.cols != y.cols) {
      fail(call, "x is ", x.rows, " x ", x.cols, " and y is ", y.rows, " x ", y.cols, ", but x must be ",
           x_rows, " x c and y ", y_rows, " x c");
    }
    if (is_null(x)) fail(call, "x is a null pointer with size ", x.rows, " x ", x.cols);
    if (is_null(y)) fail(call, "y is a null pointer with size ", y.rows, " x ", y.cols);
    if (y.rows > 1 && std::abs(y.row_stride) < y.cols) {
      fail(call, "y has row stride ", y.row_stride, ", so that its rows of ", y.cols, " values overlap");
    }
  }

  void check_factors(MatrixView<const Real> u, MatrixView<const Real> v) const {
    if (u.rows != n_rows() || v.rows != n_cols() || u.cols != v.cols) {
      fail("apply_hadamard", "u is ", u.rows, " x ", u.cols, " and v is ", v.rows, " x ", v.cols,
           ", but u must be ", n_rows(), " x r and v ", n_cols(), " x r");
    }
    if (is_null(u)) fail("apply_hadamard", "u is a null pointer with size ", u.rows, " x ", u.cols);
    if (is_null(v)) fail("apply_hadamard", "v is a null pointer with size ", v.rows, " x ", v.cols);
  }

  static bool is_null(MatrixView<const Real> m) { return m.data == nullptr && m.rows * m.cols != 0; }

  template <class... Parts>
  [[noreturn]] void fail(const char* call, const Parts&... parts) const {
    detail::fail("ToeplitzOperator of ", n_rows(), " x ", n_cols(), ", ", call, ": ", parts...);
  }

  void product(Multiply multiply, MatrixView<const Real> x, MatrixView<Real> y,
               const Executor& executor) const {
    for_each_block<Buffers>(x.cols, executor, [&](Range block, const Buffers& b) {
      b.padded.gather(x, block);
      for (Index c = 0; c < block.size(); ++c) {
        (embedding_.*multiply)(spectrum_.data(), b.padded[c], b.padded[c], b.spectrum.data());
      }
      b.padded.scatter(y, block);
    });
  }

  /// task(block, buffers) for all blocks of channels: equally many a worker, none wider than a cache line.
  template <class BuffersOfTask, class Task>
  void for_each_block(Index channels, const Executor& executor, const Task& task) const {
    if (channels == 0) return;
    constexpr Index kMaxWidth = kAlignment / sizeof(Real);
    const Index width = ceil_div(channels, round_up(ceil_div(channels, kMaxWidth), executor.workers()));

    Workspace counted;
    BuffersOfTask(counted, embedding_, width);
    const std::size_t bytes = counted.bytes();
    const auto memory =
        std::make_unique_for_overwrite<std::byte[]>(bytes * static_cast<std::size_t>(executor.workers()));

    executor.parallel_for(ceil_div(channels, width), [&](Index i, Index worker) {
      Workspace workspace({memory.get() + static_cast<std::size_t>(worker) * bytes, bytes});
      const BuffersOfTask buffers(workspace, embedding_, width);
      task(intersect({i * width, (i + 1) * width}, {0, channels}), buffers);
    });
  }

  Embedding embedding_;
  std::vector<Complex> spectrum_;  // [N/2 + 1], from transform_generator
};

}  // namespace fastrope
