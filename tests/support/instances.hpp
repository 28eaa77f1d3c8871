// Planning and running, compiled once for all tests, benchmarks and examples.
#pragma once

#include <cstddef>
#include <span>

#include "fastrope/fastrope.hpp"

// The macro's arguments are keywords and types, which take no parentheses.
// NOLINTBEGIN(bugprone-macro-parentheses)

/// prefix: extern or nothing.
#define FASTROPE_INSTANCES(prefix, Real)                                                          \
  prefix template class fastrope::Plan<Real>;                                                     \
  prefix template fastrope::Plan<Real> fastrope::make_plan<Real>(                                 \
      const fastrope::Shapes&, const fastrope::Options&, const fastrope::CostModel&);             \
  prefix template fastrope::Plan<Real> fastrope::detail::plan_tensors<Real>(                      \
      const fastrope::StoredRows&, const fastrope::StoredRows&, const fastrope::StoredRows&,      \
      const fastrope::Storage&, const fastrope::Options&, fastrope::CacheBounds<Real>*,           \
      const fastrope::CostModel&);                                                                \
  prefix template fastrope::RunStatus fastrope::Plan<Real>::run_tensors<Real>(                    \
      const fastrope::ExactTensors<Real>&, std::span<std::byte>, const fastrope::RunDetails&)     \
      const noexcept;                                                                             \
  prefix template void fastrope::run_exact<Real>(                                                 \
      const fastrope::Problem&, const fastrope::ExactTensors<Real>&, std::span<std::byte>, bool); \
  prefix template std::size_t fastrope::exact_workspace_bytes<Real>(const fastrope::Problem&)

// NOLINTEND(bugprone-macro-parentheses)

FASTROPE_INSTANCES(extern, float);
FASTROPE_INSTANCES(extern, double);
