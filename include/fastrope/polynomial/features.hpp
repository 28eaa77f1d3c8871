// Features: the monomials of a block of rows, one multiplication each, with the rows as vector lanes.
//
// They are made a few at a time, in the order of the set, so that a block of them stays in the first-level
// cache until it is consumed; what a block needs of earlier ones is its first term's ancestors, one for each
// degree.
#pragma once

#include <algorithm>

#include "fastrope/core/index.hpp"
#include "fastrope/core/simd.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/polynomial/monomials.hpp"

namespace fastrope::inline FASTROPE_TARGET {

namespace detail {

/// to = a * b, elementwise over kWidth elements.
template <Index kWidth, class Real>
HWY_INLINE void multiply_rows(const Real* a, const Real* b, Real* to) {
  using namespace simd;
#pragma GCC unroll 8
  for (Index i = 0; i < kWidth; i += kLanes<Real>) store<Real>(mul(load(a + i), load(b + i)), to + i);
}

}  // namespace detail

/// The inner monomials `inner` of a homogeneous set, in which terms have ancestors that are none, become
/// ancestors of theirs.
template <Index kWidth, class Real>
HWY_INLINE void pass_inner(const MonomialSet& set, Range inner, const Real* x, Real* ancestors) {
  for (Index a = inner.begin; a < inner.end; ++a) {
    const Monomial& monomial = set.inner()[static_cast<std::size_t>(a)];
    detail::multiply_rows<kWidth>(ancestors + (monomial.degree - 1) * kWidth, x + monomial.variable * kWidth,
                                  ancestors + monomial.degree * kWidth);
  }
}

/// ancestors [degree + 1, kWidth]: those of term `first`, row p the one of degree p: the empty monomial has
/// the value `root` [kWidth]. x: [variables, kWidth], one row of numbers a column.
template <Index kWidth, class Real>
void find_ancestors(const MonomialSet& set, Index first, const Real* x, const Real* root, Real* ancestors) {
  std::copy_n(root, kWidth, ancestors);
  // From the term upwards: the variable by which each ancestor is reached.
  const auto fill = [&](auto&& self, const Monomial& term) -> void {
    if (term.degree == 0) return;
    self(self, set.parent_of(term));
    detail::multiply_rows<kWidth>(ancestors + (term.degree - 1) * kWidth, x + term.variable * kWidth,
                                  ancestors + term.degree * kWidth);
  };
  fill(fill, set.parent_of(set.terms()[static_cast<std::size_t>(first)]));
}

/// features [block.size(), kWidth] = root(i) x_i^alpha for the terms of `block`, whose sums over the rows are
/// added to ones [block.size(), lanes], lane by lane. `ancestors` hold those of block.begin and then those of
/// block.end. Requires a block that is not empty. Cost kWidth multiplications a feature; relative error of
/// each at most |alpha| roundings beside root's.
template <Index kWidth, class Real>
void evaluate_features(const MonomialSet& set, Range block, const Real* x, Real* ancestors, Real* features,
                       Real* ones) {
  using namespace simd;
  constexpr Index kStep = kLanes<Real>;
  const auto terms = set.terms();
  const bool inner = !set.inner().empty();
  Index f = block.begin;
  if (f < set.constants()) {
    std::copy_n(ancestors, kWidth, features);
    for (Index i = 0; i < kWidth; i += kStep) store<Real>(add(load(ones), load(ancestors + i)), ones);
    ++f;
  }
  for (; f < block.end; ++f) {
    if (f > block.begin) pass_inner<kWidth>(set, set.inner_before(f), x, ancestors);
    const Monomial& term = terms[static_cast<std::size_t>(f)];
    const Real* parent = !inner && term.parent >= block.begin
                             ? features + (term.parent - block.begin) * kWidth
                             : ancestors + (term.degree - 1) * kWidth;
    const Real* variable = x + term.variable * kWidth;
    Real* feature = features + (f - block.begin) * kWidth;
    Real* one = ones + (f - block.begin) * kStep;
    Vec<Real> sum = load(one);
#pragma GCC unroll 16
    for (Index i = 0; i < kWidth; i += kStep) {
      const Vec<Real> value = mul(load(parent + i), load(variable + i));
      store<Real>(value, feature + i);
      sum = add(sum, value);
    }
    store<Real>(sum, one);
  }
  if (block.end == set.rank()) return;
  if (inner) return pass_inner<kWidth>(set, set.inner_before(block.end), x, ancestors);
  for (Index a = terms[static_cast<std::size_t>(block.end)].parent; a >= block.begin;
       a = terms[static_cast<std::size_t>(a)].parent) {
    std::copy_n(features + (a - block.begin) * kWidth, kWidth,
                ancestors + terms[static_cast<std::size_t>(a)].degree * kWidth);
    if (a == 0) break;
  }
}

}  // namespace fastrope::inline FASTROPE_TARGET
