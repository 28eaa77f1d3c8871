// Training steps and evaluation of a model on batches, in parts whose activations stay in the cache.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "adamw.hpp"
#include "model.hpp"

namespace training {

/// Sequences one after the other, and a label for each row of outputs.
struct Batch {
  std::vector<Token> tokens;
  std::vector<Index> labels;
};

template <class Real, class AnyAttention = Attention<Real>>
class Trainer {
 public:
  using AnyModel = Model<Real, AnyAttention>;
  Trainer(const typename AnyModel::Config& config, const Schedule& schedule, std::uint64_t seed)
      : model_(config, seed), schedule_(schedule), optimiser_(model_.layout().size) {}

  AnyModel& model() { return model_; }
  Index steps() const { return steps_; }
  /// Of the last step, clipped.
  const Vector<Real>& gradient() const { return gradient_; }

  /// One step on a batch. Returns the mean loss before it.
  double step(const Batch& batch) {
    const double weight = 1 / static_cast<double>(batch.labels.size());
    double loss = 0;
    gradient_.setZero(model_.layout().size);
    for_each_part(batch, [&](const Matrix<Real>& outputs, std::span<const Index> labels) {
      loss += cross_entropy(outputs, labels, static_cast<Real>(weight), d_outputs_);
      model_.backward(d_outputs_, gradient_);
    });
    clip(gradient_, kLargestGradient);
    optimiser_.step(model_.parameters(), gradient_, schedule_(steps_++));
    return loss * weight;
  }

  /// The share of labels whose outputs are the largest.
  double accuracy(const Batch& batch) {
    Index right = 0, best = 0;
    for_each_part(batch, [&](const Matrix<Real>& outputs, std::span<const Index> labels) {
      for (Index i = 0; i < outputs.rows(); ++i) {
        outputs.row(i).maxCoeff(&best);
        right += best == labels[static_cast<std::size_t>(i)];
      }
    });
    return static_cast<double>(right) / static_cast<double>(batch.labels.size());
  }

 private:
  static constexpr double kLargestGradient = 1;  // norm
  static constexpr std::size_t kPart = 768;      // tokens, or those of a sequence

  /// f(outputs, labels) of a few sequences after the other.
  template <class F>
  void for_each_part(const Batch& batch, F&& f) {
    const auto n = static_cast<std::size_t>(model_.config().n);
    const std::size_t sequences = batch.tokens.size() / n, labels = batch.labels.size() / sequences,
                      part = std::max(kPart / n, std::size_t{1});
    for (std::size_t first = 0; first < sequences; first += part) {
      const std::size_t count = std::min(part, sequences - first);
      f(model_.forward(std::span(batch.tokens).subspan(first * n, count * n)),
        std::span(batch.labels).subspan(first * labels, count * labels));
    }
  }

  AnyModel model_;
  Schedule schedule_;
  AdamW<Real> optimiser_;
  Index steps_ = 0;
  Vector<Real> gradient_;
  Matrix<Real> d_outputs_;
};

}  // namespace training
