// What is read of a model while it trains: spectra of its logits, gradients of its heads, and what each head
// is worth.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <fastrope/spectral/spectral.hpp>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "../training/trainer.hpp"

namespace experiments {

using fastrope::Index;

/// Of a layer at a step; spectra are means over heads and sequences.
struct Probe {
  Index step, layer;
  double sigma_1 = 0;    // of a head's logits
  double condition = 0;  // sigma_1 / sigma_d, d the columns of a head's queries
  double entropy_rank = 0;
  double lead = 0;  // the largest less the second largest norm of the gradient of a head's W_V
};

namespace detail {

/// The options of one head alone.
inline fastrope::Options of_head(const training::Attention<float>& attention, Index layer, Index head,
                                 Index n) {
  fastrope::Options options = attention.options(layer, head);
  if (options.bias.empty()) return options;
  std::vector<double> values;
  for (Index lag = 1 - n; lag < n; ++lag) values.push_back(options.bias(head, lag));
  options.bias = fastrope::LagBias::table(values, 1, 1 - n);
  return options;
}

inline fastrope::RowMatrix rows_of(const fastrope::TensorView<const float>& x, Index head) {
  fastrope::RowMatrix rows(x.rows, x.cols);
  for (Index i = 0; i < x.rows; ++i)
    for (Index c = 0; c < x.cols; ++c) rows(i, c) = static_cast<double>(x.head(head)(i, c));
  return rows;
}

}  // namespace detail

/// A Probe for each layer, of a few sequences.
inline std::vector<Probe> probe(training::Trainer<float>& trainer, std::span<const training::Token> tokens) {
  training::Model<float>& model = trainer.model();
  const training::Config& c = model.config();
  const Index sequences = static_cast<Index>(tokens.size()) / c.n;
  model.forward(tokens);
  std::vector<Probe> probes;
  for (Index layer = 0; layer < c.layers; ++layer) {
    Probe p{trainer.steps(), layer};
    const double share = 1 / static_cast<double>(sequences * c.heads);
    for (Index s = 0; s < sequences; ++s)
      for (Index h = 0; h < c.heads; ++h) {
        const auto& projected = model.projected(static_cast<std::size_t>(layer));
        const fastrope::RowMatrix q = detail::rows_of(model.attention().queries(projected, s), h),
                                  k = detail::rows_of(model.attention().keys(projected, s), h);
        const Eigen::VectorXd sigma = fastrope::all_singular_values(
            fastrope::logit_matrix(q, k, detail::of_head(model.attention(), layer, h, c.n)));
        p.sigma_1 += share * sigma(0);
        p.condition += share * sigma(0) / sigma(c.row_size() - 1);
        p.entropy_rank += share * fastrope::measures(sigma, c.n, c.n).entropy_rank;
      }
    if (trainer.steps() > 0) {
      const auto d_values =
          training::matrix_of(trainer.gradient(), model.layout().layers[static_cast<std::size_t>(layer)].wv);
      std::vector<double> norms;
      for (Index h = 0; h < c.heads; ++h)
        norms.push_back(static_cast<double>(d_values.middleRows(h * c.head_size(), c.head_size()).norm()));
      std::sort(norms.begin(), norms.end(), std::greater<>());
      p.lead = norms[0] - norms[1];
    }
    probes.push_back(p);
  }
  return probes;
}

/// [layers, heads]: by how much accuracy drops while the head's values, its rows of W_V, are zero.
inline Eigen::MatrixXd ablation(training::Trainer<float>& trainer, const training::Batch& batch,
                                double accuracy) {
  training::Model<float>& model = trainer.model();
  const training::Config& c = model.config();
  const training::Vector<float> trained = model.parameters();
  Eigen::MatrixXd drops(c.layers, c.heads);
  for (Index layer = 0; layer < c.layers; ++layer)
    for (Index h = 0; h < c.heads; ++h) {
      training::matrix_of(model.parameters(), model.layout().layers[static_cast<std::size_t>(layer)].wv)
          .middleRows(h * c.head_size(), c.head_size())
          .setZero();
      drops(layer, h) = accuracy - trainer.accuracy(batch);
      model.parameters() = trained;
    }
  return drops;
}

}  // namespace experiments
