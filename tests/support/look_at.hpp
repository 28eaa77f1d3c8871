// A look at a key head of a case's tensors.
#pragma once

#include "fastrope/attend/plan.hpp"
#include "fastrope/core/storage.hpp"
#include "fastrope/plan/look.hpp"
#include "support/attention_case.hpp"

namespace fastrope_test {

/// Valid while the problem and the tensors live.
template <class T, class KV>
fastrope::GroupLook look_at(const fastrope::Problem& problem, const AttentionInputs<T, KV>& in, Index kv) {
  return fastrope::detail::group_look<fastrope::ArithmeticOf<T>>(
      problem, kv, TensorView<const T>(in.q.view()), TensorView<const KV>(in.k.view()),
      TensorView<const KV>(in.v.view()));
}

}  // namespace fastrope_test
