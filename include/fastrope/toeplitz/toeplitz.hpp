// ToeplitzOperator: a Toeplitz matrix times the columns of a matrix, in O(n log n) a column.
//
//   apply            Y = T X
//   apply_transpose  Y = T' X
//   apply_hadamard   Y = (T o U V') X = sum_l diag(U_l) T diag(V_l) X,  U_l and V_l the columns of U and V
//
// The columns ("channels") of X are transposed, a cache line of them at a time, into contiguous vectors,
// which are multiplied by transforms or directly and transposed back: FFTs over the strided columns would
// cost several times as much. A block of channels is a task for the executor.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "fastrope/core/error.hpp"
#include "fastrope/core/executor.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/row_overlap.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/tensor_view.hpp"
#include "fastrope/core/transpose.hpp"
#include "fastrope/core/workspace.hpp"
#include "fastrope/toeplitz/circulant.hpp"
#include "fastrope/toeplitz/direct.hpp"
#include "fastrope/toeplitz/segments.hpp"

namespace fastrope::inline FASTROPE_TARGET {

namespace detail {

/// Channels as contiguous vectors, each aligned to kAlignment.
template <class Real>
class Channels {
 public:
  Channels() = default;
  Channels(Workspace& workspace, Index count, Index length)
      : stride_(stride_of(length)), data_(workspace.take<Real>(count * stride_).data()) {}

  Real* operator[](Index c) const { return data_ + c * stride_; }

  /// Channel c becomes column columns.begin + c of x.
  void gather(MatrixView<const Real> x, Range columns) const {
    transpose(x.data + columns.begin, x.rows, columns.size(), x.row_stride, data_, stride_);
  }

  /// Column columns.begin + c of y becomes channel c.
  void scatter(MatrixView<Real> y, Range columns) const {
    transpose<Real>(data_, columns.size(), y.rows, stride_, y.data + columns.begin, y.row_stride);
  }

 private:
  /// An odd number of cache lines, so that channels do not share cache sets.
  static constexpr Index stride_of(Index length) {
    constexpr Index kLine = kAlignment / sizeof(Real);
    return (ceil_div(length, kLine) | 1) * kLine;
  }

  Index stride_ = 0;
  Real* data_ = nullptr;
};

}  // namespace detail

/// The n_rows x n_cols matrix T_ij = generator[i - j + n_cols - 1], kept as its transform; or one such matrix
/// for each channel. Real is float or double. Copies share their FFT plans. All functions are thread-safe and
/// their results do not depend on the executor.
///
/// Generators that are zero from some lag on, triangular and banded ones, take shorter transforms (N is at
/// least n_rows, n_cols and n_cols + the largest lag), or blocks of a few times the band's width
/// (segments.hpp); small matrices and very narrow bands are multiplied directly (direct.hpp).
///
/// Error of apply, for each channel x of X: |y - T x|_max <= 10 eps (1 + log2 N) |generator|_2 |x|_2 with N =
/// fft_length(n_rows + n_cols - 1); see CirculantEmbedding. A non-finite value spoils its channel alone.
template <class Real>
class ToeplitzOperator {
 public:
  /// generator: [n_rows + n_cols - 1], the value of lag = row - col at [lag + n_cols - 1]: the upper right
  /// corner comes first, the lower left one last. n_rows or n_cols may be 0. effort: see FftEffort. Throws
  /// Error when a size is negative or the generator has another length. Cost: O(N log N).
  ToeplitzOperator(Index n_rows, Index n_cols, std::span<const Real> generator,
                   FftEffort effort = FftEffort::estimate)
      : ToeplitzOperator(MatrixView<const Real>{generator.data(), 1, std::ssize(generator)}, n_rows, n_cols,
                         effort) {}

  /// A matrix for each channel: generators: [channels, n_rows + n_cols - 1], each as above. x and y then have
  /// as many columns. Long convolutions are such an operator, causal where the generators are zero for lag <
  /// 0.
  static ToeplitzOperator per_channel(Index n_rows, Index n_cols, MatrixView<const Real> generators,
                                      FftEffort effort = FftEffort::estimate) {
    return {generators, n_rows, n_cols, effort};
  }

  Index n_rows() const { return segments_.n_rows(); }
  Index n_cols() const { return segments_.n_cols(); }
  /// Channels that x must have; 0 when every number will do.
  Index channels() const { return matrices_ > 1 ? matrices_ : 0; }
  /// The lags from the first to the last that is not zero.
  LagSupport support() const { return segments_.support(); }

  /// Y = T X.  x: [n_cols, c], y: [n_rows, c]; they must not overlap.
  /// Throws Error when the shapes clash. Cost: 2 c transforms of length N. Allocates some 64 / sizeof(Real)
  /// channels for each worker, fewer when x has fewer.
  void apply(MatrixView<const Real> x, MatrixView<Real> y,
             const Executor& executor = Executor::serial()) const {
    check("apply", x, n_cols(), y, n_rows());
    product<false>(x, y, executor);
  }

  /// Y = T' X.  x: [n_rows, c], y: [n_cols, c]; otherwise as apply().
  void apply_transpose(MatrixView<const Real> x, MatrixView<Real> y,
                       const Executor& executor = Executor::serial()) const {
    check("apply_transpose", x, n_rows(), y, n_cols());
    product<true>(x, y, executor);
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
      for (Index c = 0; c < block.size(); ++c) std::fill_n(b.y[c], n_rows(), Real{0});
      for (Index l = 0; l < u.cols; l += kMaxWidth) {
        const Range terms{l, std::min(l + kMaxWidth, u.cols)};
        b.u.gather(u, terms);
        b.v.gather(v, terms);
        for (Index c = 0; c < block.size(); ++c)
          for (Index k = 0; k < terms.size(); ++k) {
            simd::multiply_elements(b.v[k], b.x[c], n_cols(), b.v_x[0]);
            multiply<false>(block.begin + c, b.v_x[0], b.product[0], b.transform);
            simd::add_products(b.u[k], b.product[0], n_rows(), b.y[c]);
          }
      }
      b.y.scatter(y, block);
    });
  }

 private:
  /// Channels of a block at most: a cache line of them.
  static constexpr Index kMaxWidth = kAlignment / sizeof(Real);

  ToeplitzOperator(MatrixView<const Real> generators, Index n_rows, Index n_cols, FftEffort effort)
      : matrices_(generators.rows),
        segments_(n_rows, n_cols, support_of(n_rows, n_cols, generators), effort),
        is_direct_(DirectToeplitz<Real>::suits(n_rows, n_cols, support())) {
    const Index first = support().first + n_cols - 1, size = support().size();
    kept_.resize(static_cast<std::size_t>(matrices_ * generator_size()));
    const auto memory = detail::aligned_array<Real>(embedding().buffer_size()),
               scratch = detail::aligned_array<Real>(embedding().buffer_size());
    auto* const spectrum = reinterpret_cast<Real*>(memory.get());
    for (Index m = 0; m < matrices_ && size > 0; ++m) {
      const Real* values = generators.row(m) + first;
      Real* kept = kept_.data() + m * generator_size();
      if (is_direct_) {
        DirectToeplitz<Real>(n_cols, support()).lay_out(values, kept);
      } else {
        embedding().transform_generator(values, spectrum, reinterpret_cast<Real*>(scratch.get()));
        std::copy_n(spectrum, generator_size(), kept);
      }
    }
  }

  /// What a worker needs to multiply a channel.
  struct Transform {
    Real* padded;  // [N + 2]
    Real* other;   // [N + 2]

    Transform(Workspace& w, const ToeplitzOperator& t)
        : padded(w.take<Real>(t.is_direct_ ? 0 : t.embedding().buffer_size()).data()),
          other(w.take<Real>(t.is_direct_ ? 0 : t.embedding().buffer_size()).data()) {}
  };

  /// The same for a block of `width` channels.
  struct Buffers {
    detail::Channels<Real> x, y;  // [width, channel_size], one array where a result may overwrite its input
    Transform transform;

    Buffers(Workspace& w, const ToeplitzOperator& t, Index width)
        : x(w, width, t.channel_size()),
          y(t.overwrites() ? x : detail::Channels<Real>(w, width, t.channel_size())),
          transform(w, t) {}
  };

  /// The same for the Hadamard form.
  struct HadamardBuffers {
    detail::Channels<Real> x, y;          // [width, n_cols], [width, n_rows]
    detail::Channels<Real> u, v;          // [kMaxWidth, n_rows], [kMaxWidth, n_cols]: columns of the factors
    detail::Channels<Real> v_x, product;  // [channel_size]: a term of a channel
    Transform transform;

    HadamardBuffers(Workspace& w, const ToeplitzOperator& t, Index width)
        : x(w, width, t.n_cols()),
          y(w, width, t.n_rows()),
          u(w, kMaxWidth, t.n_rows()),
          v(w, kMaxWidth, t.n_cols()),
          v_x(w, 1, t.channel_size()),
          product(w, 1, t.channel_size()),
          transform(w, t) {}
  };

  const CirculantEmbedding<Real>& embedding() const { return segments_.embedding(); }

  /// Reals that are kept of a generator: its spectrum, or its values.
  Index generator_size() const {
    return is_direct_ ? DirectToeplitz<Real>(n_cols(), support()).generator_size()
                      : embedding().buffer_size();
  }
  /// Room for a channel of either side, which a direct product fills in steps.
  Index channel_size() const {
    return round_up(std::max(n_rows(), n_cols()), DirectToeplitz<Real>::kOutputs);
  }

  /// Whether y may be x in multiply().
  bool overwrites() const { return !is_direct_ && segments_.product().count() <= 1; }

  /// y = T x or T' x for one channel; x is destroyed.
  template <bool kTranspose>
  void multiply(Index channel, Real* x, Real* y, const Transform& b) const noexcept {
    const Real* kept = kept_.data() + (matrices_ > 1 ? channel : 0) * generator_size();
    if (is_direct_) return multiply_directly<kTranspose>(kept, x, y);
    const SegmentedProduct& parts = kTranspose ? segments_.transposed() : segments_.product();
    const Index n_in = kTranspose ? n_rows() : n_cols(), n_out = kTranspose ? n_cols() : n_rows();
    for (Index s = 0; s < parts.count(); ++s) {
      const Range window = parts.inputs(s), inside = intersect(window, {0, n_in}), outputs = parts.outputs(s);
      std::fill_n(b.padded, inside.begin - window.begin, Real{0});
      Real* end = std::copy_n(x + inside.begin, inside.size(), b.padded + (inside.begin - window.begin));
      std::fill(end, b.padded + embedding().length(), Real{0});
      const Real* result = kTranspose ? embedding().multiply_transpose(kept, b.padded, b.other)
                                      : embedding().multiply(kept, b.padded, b.other);
      std::copy_n(result + parts.offset, outputs.size(), y + outputs.begin);
    }
    std::fill(y, y + parts.output.begin, Real{0});
    std::fill(y + parts.output.end, y + n_out, Real{0});
  }

  template <bool kTranspose>
  void multiply_directly(const Real* kept, Real* x, Real* y) const noexcept {
    if constexpr (!kTranspose)
      return DirectToeplitz<Real>(n_cols(), support()).multiply(kept, x, n_rows(), y);
    // Both sides reversed, it is a Toeplitz matrix again.
    const Index shift = n_rows() - n_cols();
    std::reverse(x, x + n_rows());
    DirectToeplitz<Real>(n_rows(), {support().first - shift, support().last - shift})
        .multiply(kept, x, n_cols(), y);
    std::reverse(y, y + n_cols());
  }

  template <bool kTranspose>
  void product(MatrixView<const Real> x, MatrixView<Real> y, const Executor& executor) const {
    for_each_block<Buffers>(x.cols, executor, [&](Range block, const Buffers& b) {
      b.x.gather(x, block);
      for (Index c = 0; c < block.size(); ++c)
        multiply<kTranspose>(block.begin + c, b.x[c], b.y[c], b.transform);
      b.y.scatter(y, block);
    });
  }

  /// The lags of any generator's values that are not zero, after a look at the shapes.
  static LagSupport support_of(Index n_rows, Index n_cols, MatrixView<const Real> generators) {
    if (n_rows < 0 || n_cols < 0) detail::fail("a Toeplitz matrix cannot be ", n_rows, " x ", n_cols);
    const Index size = std::max<Index>(0, saturating_sum(n_rows, n_cols) - 1);
    if (generators.cols != size)
      detail::fail("ToeplitzOperator: a ", n_rows, " x ", n_cols, " matrix needs a generator of ", size,
                   " values, got ", generators.cols);
    if (generators.rows < 1) detail::fail("ToeplitzOperator: ", generators.rows, " generators");
    if (is_null(generators))
      detail::fail("ToeplitzOperator: the generator is a null pointer with size ", generators.rows, " x ",
                   generators.cols);
    Index first = size, last = -1;
    for (Index m = 0; m < generators.rows; ++m) {
      const Real* values = generators.row(m);
      const auto nonzero = [&](Index i) { return values[i] != 0; };
      Index i = 0, j = size - 1;
      while (i < first && !nonzero(i)) ++i;
      while (j > last && !nonzero(j)) --j;
      first = std::min(first, i);
      last = std::max(last, j);
    }
    if (n_rows == 0 || n_cols == 0 || first > last) return {};
    return {first - n_cols + 1, last - n_cols + 1};
  }

  void check(const char* call, MatrixView<const Real> x, Index x_rows, MatrixView<Real> y,
             Index y_rows) const {
    if (x.rows != x_rows || y.rows != y_rows || x.cols != y.cols || x.cols < 0) {
      fail(call, "x is ", x.rows, " x ", x.cols, " and y is ", y.rows, " x ", y.cols, ", but x must be ",
           x_rows, " x c and y ", y_rows, " x c");
    }
    if (matrices_ > 1 && x.cols != matrices_)
      fail(call, "x has ", x.cols, " channels for ", matrices_, " generators");
    if (is_null(x)) fail(call, "x is a null pointer with size ", x.rows, " x ", x.cols);
    if (is_null(y)) fail(call, "y is a null pointer with size ", y.rows, " x ", y.cols);
    if (rows_overlap(1, y.rows, y.cols, 0, y.row_stride)) {
      fail(call, "y has row stride ", y.row_stride, ", so that its rows of ", y.cols, " values overlap");
    }
  }
  void check_factors(MatrixView<const Real> u, MatrixView<const Real> v) const {
    if (u.rows != n_rows() || v.rows != n_cols() || u.cols != v.cols || u.cols < 0) {
      fail("apply_hadamard", "u is ", u.rows, " x ", u.cols, " and v is ", v.rows, " x ", v.cols,
           ", but u must be ", n_rows(), " x r and v ", n_cols(), " x r");
    }
    if (is_null(u)) fail("apply_hadamard", "u is a null pointer with size ", u.rows, " x ", u.cols);
    if (is_null(v)) fail("apply_hadamard", "v is a null pointer with size ", v.rows, " x ", v.cols);
  }

  static bool is_null(MatrixView<const Real> m) { return m.data == nullptr && m.rows != 0 && m.cols != 0; }

  template <class... Parts>
  [[noreturn]] void fail(const char* call, const Parts&... parts) const {
    detail::fail("ToeplitzOperator of ", n_rows(), " x ", n_cols(), ", ", call, ": ", parts...);
  }

  /// task(block, buffers) for all blocks of channels: equally many a worker, none wider than a cache line.
  template <class BuffersOfTask, class Task>
  void for_each_block(Index channels, const Executor& executor, const Task& task) const {
    if (channels == 0) return;
    const Index width = ceil_div(channels, round_up(ceil_div(channels, kMaxWidth), executor.workers()));

    Workspace counted;
    BuffersOfTask(counted, *this, width);
    const std::size_t bytes = counted.bytes();
    const auto memory =
        std::make_unique_for_overwrite<std::byte[]>(bytes * static_cast<std::size_t>(executor.workers()));

    executor.parallel_for(ceil_div(channels, width), [&](Index i, Index worker) {
      Workspace workspace({memory.get() + static_cast<std::size_t>(worker) * bytes, bytes});
      const BuffersOfTask buffers(workspace, *this, width);
      task(intersect({i * width, (i + 1) * width}, {0, channels}), buffers);
    });
  }

  Index matrices_;  // one, or as many as channels
  ToeplitzSegments<Real> segments_;
  bool is_direct_;
  std::vector<Real> kept_ = {};  // [matrices, generator_size]
};

}  // namespace fastrope::inline FASTROPE_TARGET
