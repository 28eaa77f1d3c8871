// What the gradients of parameters sum up while pairs are met.
#pragma once

#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/workspace.hpp"
#include "fastrope/exact/query_rows.hpp"
#include "fastrope/gradient/gate_gradients.hpp"
#include "fastrope/gradient/parameter_gradients.hpp"
#include "fastrope/position/lag_bias.hpp"
#include "fastrope/problem/problem.hpp"

namespace fastrope::inline FASTROPE_TARGET {

template <class Real>
struct ParameterSums {
  BiasGradient bias;
  GateGradients<Real> gates;

  /// The bias must outlive it.
  ParameterSums(const Problem& problem, const LagBias& of_call, const ParameterGradients& wanted,
                Workspace& workspace)
      : bias(problem, of_call, !wanted.bias.empty(), workspace),
        gates(problem, !wanted.log_gates.empty() || !wanted.log_input_gates.empty(), workspace) {}

  void clear() const {
    bias.clear();
    gates.clear();
  }

  /// Adds `terms`, the gradients of the logs of a tile's weights: laid out as its scores, 0 where those are
  /// masked.
  void add(const Problem& problem, Index h, const ScoreTile<Real>& tile, const Real* terms,
           Index stride) const {
    if (gates.wanted()) gates.add(h, tile.rows, tile.panels, terms, stride);
    if (!bias.wanted()) return;
    for (Index r = 0; r < tile.rows.size(); ++r)
      bias.add(problem, h, tile.rows.begin + r, tile.keys,
               terms + r * stride + (tile.keys.begin - tile.panels.begin));
  }

  void write(const Problem& problem, const ParameterGradients& to) const {
    if (bias.wanted()) bias.write(problem, to.bias);
    if (!to.log_gates.empty()) gates.write_gates(problem, problem.gates.log, to.log_gates);
    if (!to.log_input_gates.empty())
      gates.write_input_gates(problem, problem.gates.log_input, to.log_input_gates);
  }
};

}  // namespace fastrope::inline FASTROPE_TARGET
