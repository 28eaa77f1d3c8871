// Explicit instantiation: compiles planned calls once for a program of many files.
//
// A file that plans takes a minute to compile, nearly all of it for templates that every other such file
// compiles again. A program can have a header of its own, for its files to include in place of fastrope.hpp,
//     #include <fastrope/instances.hpp>
//     FASTROPE_PLANS(extern, float);
// and in one file that includes it repeat that without extern, FASTROPE_PLANS(, float).
#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "fastrope/fastrope.hpp"

// The macros' arguments are keywords and types, which take no parentheses.
// NOLINTBEGIN(bugprone-macro-parentheses)

/// Planning, running and verifying with arithmetic in Real, float or double, whatever tensors are stored as;
/// products of bfloat16 pairs are compiled where they stand. prefix: extern or nothing.
#define FASTROPE_PLANS(prefix, Real)                                                                     \
  prefix template fastrope::Plan<Real>::Plan(fastrope::Problem, double, const fastrope::Storage&,        \
                                             std::vector<fastrope::GroupPlan>);                          \
  prefix template fastrope::GroupPlan fastrope::Planner<Real>::plan(fastrope::Index,                     \
                                                                    fastrope::GroupLook<Real>&);         \
  prefix template fastrope::GroupPlan fastrope::Planner<Real>::plan_exact(                               \
      fastrope::Index, const std::string&, fastrope::GroupLook<Real>*) const;                            \
  prefix template fastrope::GroupPlan fastrope::Planner<Real>::plan_kernel(fastrope::Index);             \
  prefix template std::optional<fastrope::ProjectionChoice<Real>> fastrope::choose_projection(           \
      const fastrope::LowRankRows<Real>&, const fastrope::LowRankRequest&, std::string&);                \
  prefix template std::optional<fastrope::LowRankFit> fastrope::fit_low_rank(                            \
      const fastrope::ProjectionChoice<Real>&, const fastrope::LowRankBounds<Real>&,                     \
      std::span<const fastrope::FarPairs>, const fastrope::LowRankRequest&, std::string&);               \
  prefix template fastrope::Plan<Real> fastrope::make_plan<Real>(                                        \
      const fastrope::Shapes&, const fastrope::Options&, const fastrope::CostModel&);                    \
  prefix template fastrope::RunStatus fastrope::Plan<Real>::run_tensors<Real>(                           \
      const fastrope::ExactTensors<Real>&, std::span<std::byte>, const fastrope::RunDetails&)            \
      const noexcept;                                                                                    \
  prefix template fastrope::Report fastrope::Plan<Real>::verify_rows(                                    \
      const fastrope::StoredRows&, const fastrope::KeyRows<double>&, const fastrope::ValueRows<double>&, \
      const fastrope::StoredRows&, fastrope::Index) const;                                               \
  prefix template void fastrope::run_exact<Real>(                                                        \
      const fastrope::Problem&, const fastrope::ExactTensors<Real>&, std::span<std::byte>, bool);        \
  prefix template std::size_t fastrope::exact_workspace_bytes<Real>(const fastrope::Problem&)

// NOLINTEND(bugprone-macro-parentheses)
