// A look at a key head of a case's tensors.
#pragma once

#include "fastrope/core/storage.hpp"
#include "fastrope/plan/look.hpp"
#include "support/attention_case.hpp"

namespace fastrope_test {

/// Valid while the problem and the tensors live.
template <class T, class KV>
fastrope::GroupLook look_at(const fastrope::Problem& problem, const AttentionInputs<T, KV>& in, Index kv) {
  return fastrope::group_look<fastrope::ArithmeticOf<T>>(problem, kv, in.q.view(), in.k.view(), in.v.view());
}

}  // namespace fastrope_test
