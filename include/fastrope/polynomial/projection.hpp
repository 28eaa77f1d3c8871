// Projection: exact transformations that make the entries small, and few coordinates matter, before a
// polynomial replaces the exponential.
//
// For any mu, nu in the space of rotated queries and keys and any B, C with B^T C = I,
//     s q.k = s q.mu + s nu.(k - mu) + x.y,   x = B s (q - nu),   y = C (k - mu),
// where the first term is common to a row and cancels in the softmax, the second is a positive weight e^(..)
// per key, and only x.y has to be small: |x.y| <= max|x| max|y|. No approximation is made here, but for rows
// of B and C that are left out and for what B^T C misses I by, which certificate.hpp counts.
#pragma once

#include <algorithm>
#include <vector>

#include "fastrope/core/index.hpp"
#include "fastrope/core/simd.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/exact/exp2.hpp"
#include "fastrope/exact/packing.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// The transformations of the query heads that share a key head's features.
struct Projection {
  std::vector<double> key_shift = {};    ///< mu, [d]
  std::vector<double> query_shift = {};  ///< nu, [d]
  double weight_max = 0;  ///< at least max_j s nu.(k_j - mu), taken out of every weight: common to all rows
  std::vector<double> key_axes = {};    ///< C, [variables, d]
  std::vector<double> query_axes = {};  ///< B, [variables, d]
  bool is_none = false;                 ///< no shifts, and B = C = I, which need not be looked at

  /// No shifts; the variables are the columns of rotated queries, times `balance`, and of keys, divided by
  /// it.
  static Projection identity(Index d, double balance) {
    const auto size = static_cast<std::size_t>(d);
    Projection p{.key_shift = std::vector<double>(size),
                 .query_shift = std::vector<double>(size),
                 .key_axes = std::vector<double>(size * size),
                 .query_axes = std::vector<double>(size * size)};
    for (std::size_t c = 0; c < size; ++c) {
      p.query_axes[c * (size + 1)] = balance;
      p.key_axes[c * (size + 1)] = 1 / balance;
    }
    return p;
  }

  /// Rows as they are, without any work: the variables are their columns.
  static Projection none(Index d) {
    Projection p = identity(d, 1);
    p.is_none = true;
    return p;
  }

  Index variables() const {
    return key_shift.empty() ? 0 : static_cast<Index>(key_axes.size() / key_shift.size());
  }
};

namespace detail {

/// to [variables, width], row stride to_stride, = axes [variables, d] from [d, width].
template <class Real>
void apply_axes(const std::vector<double>& axes, Index variables, Index d, const Real* from, Index width,
                Real* to, Index to_stride) {
  using namespace simd;
  for (Index l = 0; l < variables; ++l) {
    const double* axis = axes.data() + l * d;
    Real* row = to + l * to_stride;
    std::fill_n(row, width, Real{0});
    for (Index c = 0; c < d; ++c) {
      const Vec<Real> a = set(static_cast<Real>(axis[c]));
      for (Index i = 0; i < width; i += kLanes<Real>)
        store<Real>(fma(a, load(from + c * width + i), load(row + i)), row + i);
    }
  }
}

}  // namespace detail

/// y [variables, width], row stride y_stride, = C (k - mu) and weight [width] = e^(s nu.(k - mu) -
/// weight_max) for the keys of a panel [d, width], of which the first `count` are keys and the rest padding
/// with weight 0. The panel is overwritten. Requires width a multiple of the vector length.
template <class Real>
void project_keys(const Projection& projection, double scale, Index width, Index count, Real* panel, Real* y,
                  Index y_stride, Real* weight) {
  using namespace simd;
  const Index d = static_cast<Index>(projection.key_shift.size());
  if (projection.is_none) {
    for (Index c = 0; c < d; ++c) std::copy_n(panel + c * width, width, y + c * y_stride);
    std::fill_n(weight, count, Real{1});
    std::fill_n(weight + count, width - count, Real{0});
    return;
  }
  std::fill_n(weight, width, Real{0});
  for (Index c = 0; c < d; ++c) {
    const Vec<Real> mu = set(static_cast<Real>(projection.key_shift[static_cast<std::size_t>(c)]));
    const Vec<Real> nu =
        set(static_cast<Real>(scale * kLog2E * projection.query_shift[static_cast<std::size_t>(c)]));
    for (Index i = 0; i < width; i += kLanes<Real>) {
      const Vec<Real> shifted = sub(load(panel + c * width + i), mu);
      store<Real>(shifted, panel + c * width + i);
      store<Real>(fma(nu, shifted, load(weight + i)), weight + i);
    }
  }
  // Last, so that what is summed before is no larger than it has to be.
  const Vec<Real> most = set(static_cast<Real>(projection.weight_max * kLog2E));
  for (Index i = 0; i < width; i += kLanes<Real>)
    store<Real>(exp2_nonpositive<Real>(sub(load(weight + i), most)), weight + i);
  std::fill(weight + count, weight + width, Real{0});
  detail::apply_axes(projection.key_axes, projection.variables(), d, panel, width, y, y_stride);
}

/// x [variables, width] = B s (q - nu) and row_factor [width] = unit (s q.mu + weight_max), from columns of
/// unit s q: panel [d, width], row stride panel_stride. shifted: [d, width], scratch. Requires width a
/// multiple of the vector length.
template <class Real>
void project_queries(const Projection& projection, double scale, double unit, Index width, const Real* panel,
                     Index panel_stride, Real* shifted, Real* x, Real* row_factor) {
  using namespace simd;
  const Index d = static_cast<Index>(projection.key_shift.size());
  const Vec<Real> natural = set(static_cast<Real>(1 / unit));
  std::fill_n(row_factor, width, static_cast<Real>(projection.weight_max * unit));
  if (projection.is_none) {
    for (Index c = 0; c < d; ++c)
      for (Index i = 0; i < width; i += kLanes<Real>)
        store<Real>(mul(load(panel + c * panel_stride + i), natural), x + c * width + i);
    return;
  }
  for (Index c = 0; c < d; ++c) {
    const Vec<Real> mu = set(static_cast<Real>(projection.key_shift[static_cast<std::size_t>(c)]));
    const Vec<Real> nu = set(static_cast<Real>(-scale * projection.query_shift[static_cast<std::size_t>(c)]));
    for (Index i = 0; i < width; i += kLanes<Real>) {
      const Vec<Real> q = load(panel + c * panel_stride + i);
      store<Real>(fma(q, mu, load(row_factor + i)), row_factor + i);
      store<Real>(fma(q, natural, nu), shifted + c * width + i);
    }
  }
  detail::apply_axes(projection.query_axes, projection.variables(), d, shifted, width, x, width);
}

}  // namespace fastrope::inline FASTROPE_TARGET
