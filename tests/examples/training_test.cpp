// The training example: gradients of the whole model, what its parts promise, and that it learns.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "../../examples/experiments/tasks.hpp"
#include "../../examples/llama2/model.hpp"
#include "../../examples/training/llama_checkpoint.hpp"
#include "../../examples/training/trainer.hpp"

namespace training_test {
namespace {

using experiments::Random;
using training::Absolute;
using training::Batch;
using training::Config;
using training::Index;
using training::Matrix;
using training::Model;
using training::Token;
using training::Trainer;
using training::Vector;

/// 2 layers of 2 heads of 4, 6 tokens of 7 kinds, 3 classes.
Config small_config() {
  return {.vocabulary = 7, .n = 6, .outputs = 3, .layers = 2, .width = 8, .heads = 2, .hidden = 5};
}

struct NamedConfig {
  std::string name;
  Config config;
};

std::vector<NamedConfig> configs() {
  const auto of = [](auto&& change) {
    Config config = small_config();
    change(config);
    return config;
  };
  const auto turn = [](Config& c) { c.attention.rope = fastrope::Rope{.base = 100}; };
  return {
      {"none", small_config()},
      {"rope", of(turn)},
      {"rope_of_a_head", of([=](Config& c) {
         turn(c);
         c.rope_heads = 1;
       })},
      {"rope_of_a_layer", of([=](Config& c) {
         turn(c);
         c.rope_layers = 1;
       })},
      {"alibi",
       of([](Config& c) { c.attention.bias = fastrope::LagBias::alibi(fastrope::alibi_slopes(c.heads)); })},
      {"trained_bias", of([](Config& c) { c.trained_bias = true; })},
      {"sinusoidal", of([](Config& c) { c.absolute = Absolute::sinusoidal; })},
      {"learned", of([](Config& c) { c.absolute = Absolute::learned; })},
      {"decoupled", of([=](Config& c) {
         turn(c);
         c.decoupled = 2;
       })},
      {"decoupled_shared_query", of([=](Config& c) {
         turn(c);
         c.decoupled = 2;
         c.shared_query = true;
       })},
      {"raw_keys", of([=](Config& c) {
         turn(c);
         c.raw_keys = true;
       })},
      {"causal_next_token", of([=](Config& c) {
         turn(c);
         c.attention.mask = fastrope::Mask::causal();
         c.pooled = false;
         c.outputs = c.vocabulary;
       })},
  };
}

/// Three sequences with a label for each row of outputs.
Batch some_batch(const Config& c) {
  Random random(5);
  Batch batch;
  for (Index i = 0; i < 3 * c.n; ++i)
    batch.tokens.push_back(static_cast<Token>(experiments::draw_below(c.vocabulary, random)));
  for (Index i = 0; i < (c.pooled ? 3 : 3 * c.n); ++i)
    batch.labels.push_back(experiments::draw_below(c.outputs, random));
  return batch;
}

/// Of seed 3, and no parameter is left as it starts: gains of 1 and biases of 0 would hide what is missing.
template <class Real>
Model<Real> some_model(const Config& config) {
  Model<Real> model(config, 3);
  std::mt19937_64 random(4);
  std::normal_distribution<double> normal(0, 0.2);
  for (Real& x : model.parameters()) x += static_cast<Real>(normal(random));
  return model;
}

template <class Real>
double loss_of(Model<Real>& model, const Batch& batch) {
  Matrix<Real> d_outputs;
  return training::cross_entropy(model.forward(batch.tokens), batch.labels, Real{1}, d_outputs);
}

template <class Real>
Vector<Real> gradient_of(Model<Real>& model, const Batch& batch) {
  Matrix<Real> d_outputs;
  Vector<Real> gradient = Vector<Real>::Zero(model.layout().size);
  training::cross_entropy(model.forward(batch.tokens), batch.labels, Real{1}, d_outputs);
  model.backward(d_outputs, gradient);
  return gradient;
}

class TrainingGradient : public testing::TestWithParam<NamedConfig> {};

INSTANTIATE_TEST_SUITE_P(Schemes, TrainingGradient, testing::ValuesIn(configs()),
                         [](const auto& named) { return named.param.name; });

TEST_P(TrainingGradient, IsThatOfCentralDifferences) {
  // The truncation is about step^2 = 1e-10 of the third derivative, rounding epsilon / step = 2e-11 of the
  // loss.
  constexpr double kStep = 1e-5, kTolerance = 1e-6;
  Model<double> model = some_model<double>(GetParam().config);
  const Batch batch = some_batch(GetParam().config);
  const Vector<double> gradient = gradient_of(model, batch);
  ASSERT_GT(gradient.cwiseAbs().maxCoeff(), 0.1);
  for (Index i = 0; i < gradient.size(); ++i) {
    const double x = model.parameters()(i);
    model.parameters()(i) = x + kStep;
    const double above = loss_of(model, batch);
    model.parameters()(i) = x - kStep;
    const double below = loss_of(model, batch);
    model.parameters()(i) = x;
    EXPECT_NEAR(gradient(i), (above - below) / (2 * kStep), kTolerance * (1 + std::abs(gradient(i))))
        << "parameter " << i;
  }
}

TEST_P(TrainingGradient, OfFloatIsNearThatOfDouble) {
  Model<double> exact = some_model<double>(GetParam().config);
  Model<float> rounded = some_model<float>(GetParam().config);
  const Batch batch = some_batch(GetParam().config);
  const Vector<double> gradient = gradient_of(exact, batch);
  // Some 30 products and norms after one another, each of which may double a rounding.
  constexpr double kRoundings = 100 * std::numeric_limits<float>::epsilon();
  EXPECT_LT((gradient_of(rounded, batch).cast<double>() - gradient).norm(), kRoundings * gradient.norm());
}

TEST_P(TrainingGradient, AddsToWhatIsThere) {
  Model<double> model = some_model<double>(GetParam().config);
  const Batch batch = some_batch(GetParam().config);
  const Vector<double> once = gradient_of(model, batch);
  Vector<double> twice = once;
  Matrix<double> d_outputs;
  training::cross_entropy(model.forward(batch.tokens), batch.labels, 1.0, d_outputs);
  model.backward(d_outputs, twice);
  EXPECT_LT((twice - 2 * once).norm(), 1e-14 * once.norm());
}

/// The largest change of outputs when the tokens of a sequence change places.
double change_by_permutation(const Config& config) {
  Model<double> model = some_model<double>(config);
  std::vector<Token> tokens = {3, 1, 4, 1, 5, 0};
  const Matrix<double> outputs = model.forward(tokens);
  std::swap(tokens[0], tokens[4]);
  std::swap(tokens[1], tokens[2]);
  return (model.forward(tokens) - outputs).cwiseAbs().maxCoeff();
}

// Why none cannot tell how far apart two tokens are, however long it is trained.
TEST(TrainingModel, WithoutPositionsSeesNoOrder) {
  for (const NamedConfig& c : configs()) {
    if (!c.config.pooled) continue;
    SCOPED_TRACE(c.name);
    const double change = change_by_permutation(c.config);
    if (c.name == "none")
      EXPECT_LT(change, 1e-14);
    else
      EXPECT_GT(change, 1e-3);
  }
}

TEST(TrainingModel, RefusesWhatClashes) {
  const auto error_of = [](auto&& change) -> std::string {
    Config config = small_config();
    change(config);
    try {
      Model<float>(config, 0);
    } catch (const fastrope::Error& error) {
      return error.what();
    }
    return "no error";
  };
  using testing::HasSubstr;
  EXPECT_THAT(error_of([](Config& c) { c.heads = 3; }), HasSubstr("3 heads do not divide the width 8"));
  EXPECT_THAT(error_of([](Config& c) { c.decoupled = 2; }), HasSubstr("need attention.rope"));
  EXPECT_THAT(error_of([](Config& c) { c.shared_query = true; }), HasSubstr("there are none"));
  EXPECT_THAT(error_of([](Config& c) { c.rope_heads = 5; }), HasSubstr("rope_heads = 5 of 2"));
  EXPECT_THAT(error_of([](Config& c) {
                c.rope_heads = 1;
                c.trained_bias = true;
              }),
              HasSubstr("do not go together"));
}

// By hand: at the first step the averages are the gradient and its square, so the step is of its sign.
TEST(TrainingAdamW, TakesTheStepsOfItsFormula) {
  training::AdamW<double> optimiser(1, {.first = 0.9, .second = 0.99, .epsilon = 0, .decay = 0.5});
  Vector<double> x(1), gradient(1);
  x << 1;
  gradient << 2;
  optimiser.step(x, gradient, 0.1);
  EXPECT_NEAR(x(0), 1 - 0.1 * (0.5 + 1), 1e-15);
  gradient << -1;
  optimiser.step(x, gradient, 0.1);
  const double mean = (0.9 * 0.2 - 0.1) / 0.19, square = (0.99 * 0.04 + 0.01) / 0.0199;
  EXPECT_NEAR(x(0), 0.85 - 0.1 * (0.5 * 0.85 + mean / std::sqrt(square)), 1e-14);
}

TEST(TrainingAdamW, ClipsTheNorm) {
  Vector<double> gradient(2);
  gradient << 3, 4;
  EXPECT_EQ(training::clip(gradient, 10), 5);
  EXPECT_EQ(gradient(0), 3);
  EXPECT_EQ(training::clip(gradient, 1), 5);
  EXPECT_NEAR(gradient(0), 0.6, 1e-15);
  EXPECT_NEAR(gradient(1), 0.8, 1e-15);
}

TEST(TrainingAdamW, ScheduleWarmsUpAndEndsAtZero) {
  const training::Schedule rate{.steps = 100, .rate = 2, .warm_up = 0.1};
  EXPECT_NEAR(rate(0), 0.2, 1e-15);
  EXPECT_NEAR(rate(9), 2, 1e-15);
  EXPECT_NEAR(rate(54), 1, 1e-15);  // half of the cosine
  EXPECT_NEAR(rate(99), 0, 1e-15);
}

TEST(TrainingTasks, LabelsAreWhatTheSequencesShow) {
  Random random(2);
  const experiments::Task distance = experiments::distance_task(20), count = experiments::count_task(20);
  std::vector<Token> tokens(20);
  std::vector<int> seen_distance(10), seen_count(11);
  for (int draw = 0; draw < 1000; ++draw) {
    const Index apart = distance.draw(random, tokens) + 1;
    const auto a = std::find(tokens.begin(), tokens.end(), 29),
               b = std::find(tokens.begin(), tokens.end(), 30);
    ASSERT_TRUE(a != tokens.end() && b != tokens.end());
    ASSERT_EQ(b - a, apart);
    ++seen_distance[static_cast<std::size_t>(apart - 1)];
    const Index triggers = count.draw(random, tokens);
    ASSERT_EQ(std::count_if(tokens.begin(), tokens.end(), [](Token t) { return t >= 27; }), triggers);
    ++seen_count[static_cast<std::size_t>(triggers)];
  }
  // Each label comes 91 to 100 times of 1000; six deviations are less than 60.
  EXPECT_THAT(seen_distance, testing::Each(testing::AllOf(testing::Gt(40), testing::Lt(160))));
  EXPECT_THAT(seen_count, testing::Each(testing::AllOf(testing::Gt(31), testing::Lt(151))));
}

/// A Llama with outputs for each token.
Config llama_config() {
  Config config = small_config();
  config.attention.rope = fastrope::Rope{};
  config.attention.mask = fastrope::Mask::causal();
  config.pooled = false;
  config.outputs = config.vocabulary;
  return config;
}

TEST(TrainingCheckpoint, IsReadByLlama2) {
  const std::string path = testing::TempDir() + "fastrope_training_checkpoint.bin";
  Model<float> model = some_model<float>(llama_config());
  training::save_llama(model, path);
  llama2::Model reader(llama2::load_checkpoint(path));
  std::filesystem::remove(path);
  const std::vector<Token> tokens = {3, 1, 4, 1, 5, 0};
  const Matrix<float> outputs = model.forward(tokens);
  EXPECT_LT((reader.forward(tokens) - outputs).cwiseAbs().maxCoeff(),
            40 * std::numeric_limits<float>::epsilon() * outputs.cwiseAbs().maxCoeff());
}

TEST(TrainingCheckpoint, RefusesWhatIsNoLlama) {
  for (const NamedConfig& c : configs())  // the causal one turns by base 100
    EXPECT_THROW(training::save_llama(Model<float>(c.config, 0), testing::TempDir() + "none.bin"),
                 fastrope::Error)
        << c.name;
}

/// Of distance among 12 tokens. Eigen's products of this size do not gain by threads, and lose where cores
/// are busy.
Trainer<float> small_trainer(const experiments::Task& task, Index steps) {
  Eigen::setNbThreads(1);
  Config config{.vocabulary = task.vocabulary,
                .n = task.n,
                .outputs = task.classes,
                .layers = 2,
                .width = 32,
                .heads = 4,
                .hidden = 48};
  config.attention.rope = fastrope::Rope{.base = 100};
  return {config, {.steps = steps, .rate = 3e-3}, 0};
}

TEST(TrainingTrainer, GivesTheSameBitsForASeed) {
  const experiments::Task task = experiments::distance_task(12);
  std::vector<Vector<float>> parameters;
  for (int run = 0; run < 2; ++run) {
    Trainer<float> trainer = small_trainer(task, 10);
    Random stream(1);
    for (int step = 0; step < 3; ++step) trainer.step(experiments::draw_batch(task, 20, stream));
    parameters.push_back(trainer.model().parameters());
  }
  EXPECT_EQ(parameters[0], parameters[1]);
}

TEST(TrainingTrainer, LearnsHowFarTwoTokensAreApart) {
  constexpr Index kSteps = 300, kBatch = 64;
  const experiments::Task task = experiments::distance_task(12);
  Trainer<float> trainer = small_trainer(task, kSteps);
  Random stream(1), other_stream(2);
  const Batch held_out = experiments::draw_batch(task, 500, other_stream);
  EXPECT_LT(trainer.accuracy(held_out), 0.4);
  for (Index step = 0; step < kSteps; ++step) trainer.step(experiments::draw_batch(task, kBatch, stream));
  EXPECT_GT(trainer.accuracy(held_out), 0.9);
}

}  // namespace
}  // namespace training_test
