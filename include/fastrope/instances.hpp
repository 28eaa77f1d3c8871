// Explicit instantiation: compiles planned calls once for a program of many files.
//
// A file that plans takes a minute or two to compile, nearly all of it for templates that every other such
// file compiles again. A program can name the types of its calls in a header of its own, for its files to
// include in place of fastrope.hpp,
//     #include <fastrope/instances.hpp>
//     FASTROPE_PLANS(extern, float);
//     FASTROPE_CALLS(extern, float, fastrope::TensorView<const fastrope::bfloat16>, float);
// and in one file that includes it repeat them without extern, FASTROPE_PLANS(, float); and so on. Calls of
// other types are compiled where they stand, as ever.
#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "fastrope/fastrope.hpp"

// The macros' arguments are keywords and types, which take no parentheses.
// NOLINTBEGIN(bugprone-macro-parentheses)

/// What all plans with arithmetic in Real, float or double, have in common. prefix: extern or nothing.
#define FASTROPE_PLANS(prefix, Real)                                                              \
  prefix template fastrope::Plan<Real>::Plan(fastrope::Problem, double, const fastrope::Storage&, \
                                             std::vector<fastrope::GroupPlan>);                   \
  prefix template fastrope::GroupPlan fastrope::Planner<Real>::plan(fastrope::Index,              \
                                                                    fastrope::GroupLook<Real>&);  \
  prefix template fastrope::GroupPlan fastrope::Planner<Real>::plan_exact(                        \
      fastrope::Index, const std::string&, fastrope::GroupLook<Real>*) const;                     \
  prefix template fastrope::GroupPlan fastrope::Planner<Real>::plan_kernel(fastrope::Index);      \
  prefix template std::optional<fastrope::ProjectionChoice<Real>> fastrope::choose_projection(    \
      const fastrope::LowRankRows<Real>&, const fastrope::LowRankRequest&, std::string&);         \
  prefix template std::optional<fastrope::LowRankFit> fastrope::fit_low_rank(                     \
      const fastrope::ProjectionChoice<Real>&, const fastrope::LowRankBounds<Real>&,              \
      std::span<const fastrope::FarPairs>, const fastrope::LowRankRequest&, std::string&);        \
  prefix template fastrope::Plan<Real> fastrope::make_plan<Real>(                                 \
      const fastrope::Shapes&, const fastrope::Options&, const fastrope::CostModel&);             \
  prefix template std::size_t fastrope::exact_workspace_bytes<Real>(const fastrope::Problem&)

/// make_plan, Plan::run and verify, attend and attend_partial for q of elements Q, k and v of type Rows,
/// which is fastrope::TensorView<const T> (of Eigen objects too) or a view of pages, and out of elements Out.
/// Where Q is 16-bit, plans are of float. prefix: extern or nothing.
#define FASTROPE_CALLS(prefix, Q, Rows, Out)                                                        \
  prefix template fastrope::Plan<fastrope::ArithmeticOf<Q>>                                         \
  fastrope::detail::plan_tensors<fastrope::ArithmeticOf<Q>>(                                        \
      fastrope::TensorView<const Q>, const Rows&, const Rows&, const fastrope::Options&,            \
      fastrope::CacheBounds<fastrope::ArithmeticOf<Q>>*, const fastrope::CostModel&, double, bool); \
  prefix template fastrope::RunStatus fastrope::Plan<fastrope::ArithmeticOf<Q>>::run_views(         \
      fastrope::TensorView<const Q>, const Rows&, const Rows&, fastrope::TensorView<Out>,           \
      std::span<std::byte>, const fastrope::RunDetails&) const noexcept;                            \
  prefix template void fastrope::run_exact(const fastrope::Problem&, fastrope::TensorView<const Q>, \
                                           const Rows&, const Rows&, fastrope::TensorView<Out>,     \
                                           fastrope::MatrixView<fastrope::ArithmeticOf<Q>>,         \
                                           std::span<std::byte>, bool);                             \
  prefix template std::vector<double> fastrope::observed_errors(                                    \
      const fastrope::Problem&, fastrope::TensorView<const Q>, const Rows&, const Rows&,            \
      fastrope::TensorView<Out>, fastrope::Index)

// NOLINTEND(bugprone-macro-parentheses)
