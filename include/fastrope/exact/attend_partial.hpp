// attend_partial: exact attention over part of the keys, in the form that merge() joins.
//
// Split-K, a prefix shared by many requests, and keys spread over machines: each part gives (out, lse), and
// merge(out, lse, other_out, other_lse) of online_softmax.hpp makes the whole.
#pragma once

#include <vector>

#include "fastrope/core/paged_view.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/tensor_view.hpp"
#include "fastrope/core/workspace.hpp"
#include "fastrope/exact/exact_call.hpp"
#include "fastrope/problem/options.hpp"
#include "fastrope/problem/problem.hpp"

namespace fastrope::inline FASTROPE_TARGET {

namespace detail {

/// attend_partial() of tensors whose types are known when the program runs. Operand: as OperandOf has it;
/// allow_pairs: whether products may be of bfloat16 where it is that.
template <class Operand>
void attend_part(const ExactTensors<ArithmeticOf<Operand>>& x, const Options& options,
                 bool allow_pairs = true) {
  const Shapes shapes = shapes_of(x.q, x.k, x.v);
  require_output(shapes, x.out);
  require_lse(shapes, x.lse);
  if (!options.kernel.is_softmax())
    fail(
        "attend_partial gives the log of a sum of exponentials, and options.kernel is a polynomial of "
        "degree ",
        options.kernel.degree());
  if (options.log_gates.rows > 0 || options.log_input_gates.rows > 0)
    fail("attend_partial has no gates: those of other parts' keys, ", options.log_gates.cols,
         " are given here, weigh on this one's");
  const Problem problem(shapes, options);

  std::vector<std::byte> memory(exact_workspace_bytes<ArithmeticOf<Operand>>(problem));
  run_exact<Operand>(problem, x, memory, allow_pairs);
}

}  // namespace detail

/// out [heads, n_q, d_v] = attention over these keys alone; lse [heads, n_q] = natural log of the sum of
/// exponentials, -infinity where the mask leaves no key (out is 0 there). The default positions are those of
/// these keys: give options.key_positions and query_positions for a part of a longer sequence. A sink belongs
/// to one part only. options.tolerance and path are not looked at: partial states are exact. Allocates the
/// workspace. Throws Error, naming the values, for tensors and options that clash, for a polynomial
/// kernel and for gates.
template <TensorLike Q, RowsLike K, RowsLike V, TensorLike Out>
void attend_partial(const Q& q, const K& k, const V& v, Out&& out, MatrixView<ArithmeticOf<ElementOf<Q>>> lse,
                    const Options& options) {
  using Real = ArithmeticOf<ElementOf<Q>>;
  detail::attend_part<OperandOf<Real, Q, K, V>>({as_tensor(q), k, v, as_tensor(out), lse}, options);
}

}  // namespace fastrope::inline FASTROPE_TARGET
