// The bounded model: gradients of its attention, its file, and that prompts, chunks and steps are one
// network.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <limits>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "../../examples/bounded_model/prompt.hpp"
#include "../../examples/bounded_model/stream.hpp"
#include "../../examples/bounded_model/training_attention.hpp"
#include "../../examples/bounded_model/weights_file.hpp"
#include "../../examples/training/trainer.hpp"

namespace bounded_model_test {
namespace {

using bounded_model::Config;
using bounded_model::Index;
using bounded_model::Network;
using bounded_model::Stream;
using bounded_model::Token;
using testing::HasSubstr;

template <class Real>
using Model = training::Model<Real, bounded_model::TrainingAttention<Real>>;

/// 2 layers of a local and two global heads of 4 columns, 2 or 4 of them in global queries and keys.
Config small_config(Index n, double radius) {
  Config c = bounded_model::config_of(n);
  c.layers = 2;
  c.width = 12;
  c.heads = 3;
  c.hidden = 5;
  c.local_heads = 1;
  c.window = 3;
  c.global_size = radius > 0 ? 2 : 4;
  c.radius = radius;
  return c;
}

std::vector<Token> some_tokens(Index n) {
  std::mt19937_64 random(7);
  std::uniform_int_distribution<Token> byte(0, 255);
  std::vector<Token> tokens(static_cast<std::size_t>(n));
  for (Token& t : tokens) t = byte(random);
  return tokens;
}

template <class Real>
Model<Real> some_model(const Config& config) {
  Model<Real> model(config, 3);
  std::mt19937_64 random(4);
  std::normal_distribution<double> normal(0, 0.2);
  for (Real& x : model.parameters()) x += static_cast<Real>(normal(random));
  return model;
}

class BoundedModelGradient : public testing::TestWithParam<double> {};

INSTANTIATE_TEST_SUITE_P(Radii, BoundedModelGradient, testing::Values(0.0, 1.0, 3.0));

TEST_P(BoundedModelGradient, IsThatOfCentralDifferences) {
  // As in training_test.cpp: truncation and rounding of a central difference.
  constexpr double kStep = 1e-5, kTolerance = 1e-6;
  const Config config = small_config(6, GetParam());
  Model<double> model = some_model<double>(config);
  const std::vector<Token> tokens = some_tokens(2 * config.n);
  const std::vector<Index> labels(tokens.rbegin(), tokens.rend());
  training::Matrix<double> d_outputs;
  training::Vector<double> gradient = training::Vector<double>::Zero(model.layout().size);
  const auto loss = [&] { return training::cross_entropy(model.forward(tokens), labels, 1.0, d_outputs); };
  loss();
  model.backward(d_outputs, gradient);
  ASSERT_GT(gradient.cwiseAbs().maxCoeff(), 0.1);
  // Rows of tokens that do not occur and outputs in the middle tell nothing of attention.
  const Index begin = model.layout().layers.front().rms_attention.begin,
              end = model.layout().layers.back().w2.end();
  for (Index i = begin; i < end; ++i) {
    const double x = model.parameters()(i);
    model.parameters()(i) = x + kStep;
    const double above = loss();
    model.parameters()(i) = x - kStep;
    const double below = loss();
    model.parameters()(i) = x;
    EXPECT_NEAR(gradient(i), (above - below) / (2 * kStep),
                kTolerance * std::max(1.0, gradient.cwiseAbs().maxCoeff()))
        << "parameter " << i;
  }
}

class BoundedModelFile : public testing::Test {
 protected:
  ~BoundedModelFile() override { std::filesystem::remove(path_); }
  const std::string path_ = testing::TempDir() + "bounded_model_test.bin";
};

TEST_F(BoundedModelFile, HoldsWeightsToHalfAStepOfTheirRow) {
  const Config config = small_config(16, 2);
  const auto model = some_model<float>(config);
  bounded_model::write_weights(path_, config, model.parameters());
  const bounded_model::Weights read = bounded_model::read_weights(path_);
  EXPECT_EQ(read.config.projected(), config.projected());
  EXPECT_EQ(read.config.window, config.window);
  EXPECT_EQ(read.config.radius, config.radius);
  EXPECT_EQ(read.config.global_base, config.global_base);
  bounded_model::detail::for_each_block(model.layout(), [&](const training::Block& b) {
    const auto is = training::matrix_of(read.parameters, b);
    const auto was = training::matrix_of(model.parameters(), b);
    for (Index i = 0; i < b.rows; ++i) {
      const float step = b.rows == 1 ? 0 : was.row(i).cwiseAbs().maxCoeff() / 127;
      EXPECT_LE((is.row(i) - was.row(i)).cwiseAbs().maxCoeff(), 0.5001F * step) << "row " << i;
    }
  });
}

TEST_F(BoundedModelFile, ThatIsDamagedIsRefused) {
  const Config config = small_config(16, 2);
  bounded_model::write_weights(path_, config, some_model<float>(config).parameters());
  const auto message = [&] {
    try {
      bounded_model::read_weights(path_);
    } catch (const fastrope::Error& error) {
      return std::string(error.what());
    }
    return std::string("nothing");
  };
  const auto size = std::filesystem::file_size(path_);
  std::filesystem::resize_file(path_, size - 1);
  EXPECT_THAT(message(), HasSubstr("ends early"));
  std::filesystem::resize_file(path_, size + 1);
  EXPECT_THAT(message(), HasSubstr("goes on"));
  {
    std::fstream file(path_, std::ios::in | std::ios::out | std::ios::binary);
    const std::int32_t layers = 60000;
    file.seekp(8).write(reinterpret_cast<const char*>(&layers), sizeof layers);
  }
  EXPECT_THAT(message(), HasSubstr("ends early"));
  {
    std::fstream file(path_, std::ios::in | std::ios::out | std::ios::binary);
    const std::int32_t layers = -1;
    file.seekp(8).write(reinterpret_cast<const char*>(&layers), sizeof layers);
  }
  EXPECT_THAT(message(), HasSubstr("has the size -1"));
  std::filesystem::resize_file(path_, 3);
  EXPECT_THAT(message(), HasSubstr("ends early"));
  std::ofstream(path_) << "something else entirely";
  EXPECT_THAT(message(), HasSubstr("no file of weights"));
  std::filesystem::remove(path_);
  EXPECT_THAT(message(), HasSubstr("cannot be opened"));
}

class BoundedModel : public BoundedModelFile {
 protected:
  BoundedModel() {
    bounded_model::write_weights(path_, config_, model_.parameters());
    model_.parameters() = bounded_model::read_weights(path_).parameters;
  }

  const Config config_ = small_config(700, 2);
  Model<float> model_ = some_model<float>(config_);
  const std::vector<Token> tokens_ = some_tokens(700);
};

/// log softmax at the token.
double log_probability(const bounded_model::Matrix& logits, Index row, Token token) {
  const float most = logits.row(row).maxCoeff();
  return static_cast<double>(logits(row, token) - most -
                             std::log((logits.row(row).array() - most).exp().sum()));
}

TEST_F(BoundedModel, ReadsTextsAsTheTrainedNetwork) {
  const Network network(bounded_model::read_weights(path_));
  const auto exact = bounded_model::read_text(network, tokens_, 0, 0, [](Index) {});
  const auto fast = bounded_model::read_text(network, tokens_, 1e-4, 8, [](Index) {});
  const auto& outputs = model_.forward(tokens_);
  ASSERT_EQ(exact.losses.size(), tokens_.size() - 1);
  for (std::size_t i = 0; i + 1 < tokens_.size(); ++i) {
    const auto loss = -log_probability(outputs, static_cast<Index>(i), tokens_[i + 1]);
    EXPECT_NEAR(static_cast<double>(exact.losses[i]), loss, 1e-4) << i;
    EXPECT_NEAR(static_cast<double>(fast.losses[i]), loss, 1e-2) << i;
  }
  EXPECT_EQ(exact.heads, 4);
  EXPECT_LE(fast.observed, fast.promised);
  EXPECT_LE(fast.promised, 1e-4);
}

TEST_F(BoundedModel, StreamsAsItReads) {
  const Network network(bounded_model::read_weights(path_));
  const auto& outputs = model_.forward(tokens_);
  const std::span all(tokens_);
  for (const std::size_t prompt : {std::size_t{1}, std::size_t{2}, std::size_t{90}, std::size_t{600}}) {
    Stream stream(network, 1e-2);
    EXPECT_LE(stream.error_bound(), 1e-2);
    bounded_model::Matrix logits = stream.take(all.first(prompt));
    for (std::size_t i = prompt; i < std::min(prompt + 80, tokens_.size()); ++i) {
      EXPECT_NEAR(log_probability(logits, 0, tokens_[i]),
                  log_probability(outputs, static_cast<Index>(i - 1), tokens_[i]), 1e-2)
          << "token " << i << " behind " << prompt;
      logits = stream.take(all.subspan(i, 1));
    }
    EXPECT_EQ(stream.tokens(), static_cast<Index>(std::min(prompt + 80, tokens_.size())));
  }
}

TEST_F(BoundedModel, StreamsInMemoryOfOneSize) {
  const Network network(bounded_model::read_weights(path_));
  Stream stream(network, 1e-2);
  stream.take(std::span(tokens_).first(10));
  const std::size_t bytes = stream.bytes();
  for (int i = 0; i < 4; ++i) stream.take(tokens_);
  EXPECT_EQ(stream.bytes(), bytes);
}

TEST(BoundedModelStream, IsOfBoundedHeadsAlone) {
  const Config config = small_config(16, 0);
  const Network network(bounded_model::Weights{config, some_model<float>(config).parameters()});
  EXPECT_THROW(Stream(network, 1e-2), fastrope::Error);
}

}  // namespace
}  // namespace bounded_model_test
