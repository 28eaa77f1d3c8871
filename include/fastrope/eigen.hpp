// Eigen's objects as views: row-major matrices, arrays, maps and blocks with unit inner stride convert to
// MatrixView and TensorView, and may stand for q, k, v and out, in files that include this.
#pragma once

#include <Eigen/Core>
#include <type_traits>

#include "fastrope/core/target.hpp"
#include "fastrope/core/tensor_view.hpp"

namespace fastrope::inline FASTROPE_TARGET {

namespace detail {

template <class Object>
requires std::is_base_of_v<Eigen::DenseBase<Object>, Object>
inline constexpr bool kEigenHppKnows<Object> = true;

template <class Object>
requires std::is_base_of_v<Eigen::PlainObjectBase<Object>, Object>
inline constexpr bool kOwnsItsMemory<Object> = true;

}  // namespace detail

}  // namespace fastrope::inline FASTROPE_TARGET
