// Heads and positional schemes for the tests of spectral/, and their matrices written out.
#pragma once

#include <Eigen/Core>
#include <cmath>
#include <string>
#include <vector>

#include "fastrope/problem/options.hpp"
#include "fastrope/spectral/hadamard_sum.hpp"
#include "support/inputs.hpp"
#include "support/reference.hpp"

namespace fastrope_test {

using fastrope::RowMatrix;

/// A scheme with the bias that its options have, written again.
struct Scheme {
  std::string name;
  fastrope::Options options;
  BiasFunction bias = {};
};

inline std::vector<Scheme> schemes(Index d) {
  using fastrope::LagBias;
  using fastrope::Rope;
  std::vector<Scheme> list = {
      {"none", {}},
      {"rope", {.rope = Rope{}}},
      {"half split", {.rope = Rope{.base = 100, .pairing = fastrope::RopePairing::half_split}}},
      {"partial", {.rope = Rope{.rotary_dim = d / 4 * 2}, .scale = 0.7}},
      {"last columns", {.rope = Rope{.rotary_dim = d / 4 * 2, .rotary_begin = d - d / 4 * 2}}},
      {"yarn", {.rope = Rope{.scaling = fastrope::YarnScaling{.factor = 4, .original_context = 64}}}},
      {"alibi",
       {.bias = LagBias::alibi(std::vector{0.3})},
       [](Index, Position lag) { return -0.3 * static_cast<double>(std::abs(lag)); }},
      {"t5",
       {.rope = Rope{},
        .bias = LagBias::t5(std::vector{0.5, -1.0, 2.0, 0.1, 0.7, -0.3, 1.5, -2.0}, 1, /*bidirectional=*/true,
                            9)},
       [](Index, Position lag) {
         const double buckets[] = {0.5, -1.0, 2.0, 0.1, 0.7, -0.3, 1.5, -2.0};
         const Position distance =
             std::abs(lag);  // 2 + 2 log(distance / 2) / log(9 / 2) from 2 on, at most 3
         return buckets[(lag < 0 ? 4 : 0) + (distance < 2 ? distance : distance * distance < 18 ? 2 : 3)];
       }},
      {"table",
       {.rope = Rope{}, .bias = LagBias::table(std::vector{-1.0, 0.5, 2.0}, 1, -1)},
       [](Index, Position lag) { return lag == -1  ? -1.0
                                        : lag == 0 ? 0.5
                                                   : 2.0; }}};
  list.back().options.mask = fastrope::Mask::lags(-1, 1);
  return list;
}

/// The logits of a head, entry by entry; 0 where the mask leaves a pair out.
inline Eigen::MatrixXd written_logits(const Tensor<double>& q, const Tensor<double>& k,
                                      const Scheme& scheme) {
  const fastrope::Options& o = scheme.options;
  Tensor<double> turned_q = q, turned_k = k;
  const Index first = k.rows - q.rows;  // queries stand at the end of the keys
  if (o.rope) {
    reference_rotate(
        *o.rope, [&](Index i) { return first + i; }, turned_q);
    reference_rotate(
        *o.rope, [](Index j) { return j; }, turned_k);
  }
  Eigen::MatrixXd logits = Eigen::MatrixXd::Zero(q.rows, k.rows);
  for (Index i = 0; i < q.rows; ++i)
    for (Index j = 0; j < k.rows; ++j) {
      const Position lag = first + i - j;
      if (lag < o.mask.first || lag > o.mask.last) continue;
      double x = 0;
      for (Index c = 0; c < q.cols; ++c) x += turned_q(0, i, c) * turned_k(0, j, c);
      logits(i, j) = o.scale.value_or(1 / std::sqrt(static_cast<double>(q.cols))) * x;
      if (scheme.bias) logits(i, j) += scheme.bias(0, lag);
    }
  return logits;
}

inline fastrope::MatrixView<const double> head_of(const Tensor<double>& x) { return x.view().head(0); }

inline Eigen::VectorXd random_vector(Inputs& inputs, Index n) {
  Eigen::VectorXd x(n);
  for (double& value : x) value = inputs.normal();
  return x;
}

}  // namespace fastrope_test
