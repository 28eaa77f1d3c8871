// The llama2 example against a plain double-precision forward pass, on a made-up model and on a trained one.
#include "../../examples/llama2/model.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "fastrope/eigen.hpp"
#include "support/plain_llama.hpp"

namespace {

using fastrope_test::PlainLlama;
using llama2::Matrix;
using llama2::Model;
using llama2::Token;
using llama2::Tokenizer;

constexpr float kEpsilon = std::numeric_limits<float>::epsilon();

// The models' folder is given by cmake -DFASTROPE_MODELS_DIR=...; it is not part of the project.
const std::string kModelsDir = FASTROPE_MODELS_DIR;
const std::string kStories = kModelsDir + "/stories260K.bin";
const std::string kStoriesTokenizer = kModelsDir + "/tok512.bin";

#define SKIP_WITHOUT_MODELS() \
  if (kModelsDir.empty())     \
  GTEST_SKIP() << "set the CMake variable FASTROPE_MODELS_DIR to the folder of stories260K.bin"

/// A file of `bytes`, removed when the guard goes.
class TemporaryFile {
 public:
  explicit TemporaryFile(const std::string& bytes) {
    const auto* test = testing::UnitTest::GetInstance()->current_test_info();
    path_ = testing::TempDir() + "fastrope_llama2_" + test->name() + ".bin";
    std::ofstream(path_, std::ios::binary) << bytes;
  }
  ~TemporaryFile() { std::filesystem::remove(path_); }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

template <class T>
void append(std::string& bytes, T value) {
  bytes.append(reinterpret_cast<const char*>(&value), sizeof value);
}

/// A checkpoint of random weights: dim 24, hidden 40, 2 layers, 4 heads of 6 over 2 key heads, 37 tokens,
/// context 32.
std::string made_up_checkpoint() {
  constexpr std::int32_t dim = 24, hidden = 40, layers = 2, kv_dim = 12, vocab = 37, context = 32, d = 6;
  std::string bytes;
  for (std::int32_t size : {dim, hidden, layers, 4, 2, vocab, context}) append(bytes, size);
  constexpr std::int32_t weights = vocab * dim +
                                   layers * (2 * dim + 2 * dim * dim + 2 * kv_dim * dim + 3 * hidden * dim) +
                                   dim + context * d;
  std::mt19937_64 random(20240611);
  std::normal_distribution<float> normal(0.0f, 0.5f);
  for (std::int32_t i = 0; i < weights; ++i) append(bytes, normal(random));
  return bytes;
}

const std::vector<Token> kMadeUpText = {1, 5, 36, 0, 17, 17, 2, 9, 30, 11, 4, 8, 23};

std::string error_of_checkpoint(const std::string& path) {
  try {
    llama2::load_checkpoint(path);
  } catch (const llama2::Error& error) {
    return error.what();
  }
  return "no error";
}

/// The logits after each token, given one token a call: [n, vocab].
Matrix token_by_token(Model& model, const std::vector<Token>& tokens) {
  Matrix logits(static_cast<Eigen::Index>(tokens.size()), model.config().vocab_size);
  for (std::size_t i = 0; i < tokens.size(); ++i)
    logits.row(static_cast<Eigen::Index>(i)) = model.forward({&tokens[i], 1});
  return logits;
}

/// The same from the plain forward pass, rounded to float.
Matrix plain_logits(const std::string& path, const std::vector<Token>& tokens) {
  PlainLlama plain(path);
  Matrix logits;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    const std::vector<double> row = plain.step(tokens[i]);
    logits.conservativeResize(static_cast<Eigen::Index>(i) + 1, static_cast<Eigen::Index>(row.size()));
    logits.row(static_cast<Eigen::Index>(i)) =
        Eigen::Map<const Eigen::RowVectorXd>(row.data(), logits.cols()).cast<float>();
  }
  return logits;
}

/// A forward pass is a chain of some 10 roundings a layer on values of the logits' size, each amplified a
/// little.
float rounding_bound(const Matrix& logits) { return 40 * kEpsilon * logits.cwiseAbs().maxCoeff(); }

float largest_difference(const Matrix& a, const Matrix& b) { return (a - b).cwiseAbs().maxCoeff(); }

std::vector<Token> greedy(Model& model, const std::vector<Token>& prompt, std::size_t count) {
  Matrix logits = model.forward(prompt);
  std::vector<Token> tokens;
  while (tokens.size() < count) {
    tokens.push_back(llama2::likeliest(logits));
    logits = model.forward({&tokens.back(), 1});
  }
  return tokens;
}

TEST(Llama2Model, LogitsMatchThePlainForwardPass) {
  const TemporaryFile file(made_up_checkpoint());
  Model model(llama2::load_checkpoint(file.path()));
  const Matrix expected = plain_logits(file.path(), kMadeUpText);
  EXPECT_LE(largest_difference(model.forward(kMadeUpText), expected), rounding_bound(expected));
}

TEST(Llama2Model, ShowsWhatAttentionIsGiven) {
  const TemporaryFile file(made_up_checkpoint());
  Model model(llama2::load_checkpoint(file.path()));
  const std::span<const Token> text(kMadeUpText);
  std::vector<std::size_t> layers;
  fastrope::Index keys = 0;
  const auto observe = [&](std::size_t layer, const auto& q, const auto& k, const auto& v) {
    layers.push_back(layer);
    EXPECT_EQ(q.heads, 4);
    EXPECT_EQ(k.heads, 2);
    EXPECT_EQ(v.heads, 2);
    keys = k.rows;
    EXPECT_EQ(q.rows, keys == 4 ? 4 : std::ssize(text) - 4);
    EXPECT_EQ(v.rows, keys);
  };
  model.forward(text.first(4), observe);
  EXPECT_EQ(keys, 4);
  model.forward(text.subspan(4), observe);
  EXPECT_EQ(keys, std::ssize(text));
  EXPECT_EQ(layers, (std::vector<std::size_t>{0, 1, 0, 1}));
}

TEST(Llama2Model, AnySplitOfATextGivesTheSameLogits) {
  const TemporaryFile file(made_up_checkpoint());
  const Matrix expected = Model(llama2::load_checkpoint(file.path())).forward(kMadeUpText);
  Model stepwise(llama2::load_checkpoint(file.path()));
  EXPECT_LE(largest_difference(token_by_token(stepwise, kMadeUpText), expected), rounding_bound(expected));

  Model chunked(llama2::load_checkpoint(file.path()));
  const std::span<const Token> text(kMadeUpText);
  chunked.forward(text.first(4));
  const Matrix rest = chunked.forward(text.subspan(4));
  EXPECT_LE(largest_difference(rest, expected.bottomRows(rest.rows())), rounding_bound(expected));
}

// Both query heads of a key head silent, or its values zero: the same.
TEST(Llama2Model, ASilentHeadIsOneWhoseValuesAreZero) {
  const TemporaryFile file(made_up_checkpoint());
  const llama2::Checkpoint whole = llama2::load_checkpoint(file.path());
  llama2::Checkpoint silent = whole, without_values = whole, half = whole;
  llama2::silence_head(silent, 1, 2);
  half = silent;
  llama2::silence_head(silent, 1, 3);
  without_values.layers[1].wv.bottomRows(6).setZero();  // key head 1, which heads 2 and 3 read
  const Matrix expected = Model(without_values).forward(kMadeUpText);
  EXPECT_LE(largest_difference(Model(silent).forward(kMadeUpText), expected), rounding_bound(expected));
  EXPECT_GT(largest_difference(Model(half).forward(kMadeUpText), expected), 1e-2f);
  EXPECT_GT(largest_difference(Model(whole).forward(kMadeUpText), expected), 1e-2f);
  EXPECT_THROW(llama2::silence_head(silent, 2, 0), llama2::Error);
  EXPECT_THROW(llama2::silence_head(silent, 0, 4), llama2::Error);
}

TEST(Llama2Model, LossIsTheMeanOfWhatTheNextTokensSurprise) {
  const TemporaryFile file(made_up_checkpoint());
  const Matrix logits = Model(llama2::load_checkpoint(file.path())).forward(kMadeUpText);
  double sum = 0;
  for (std::size_t i = 0; i + 1 < kMadeUpText.size(); ++i) {
    double total = 0;
    for (Eigen::Index t = 0; t < logits.cols(); ++t)
      total += std::exp(static_cast<double>(logits(static_cast<Eigen::Index>(i), t)));
    sum -= std::log(std::exp(static_cast<double>(logits(static_cast<Eigen::Index>(i), kMadeUpText[i + 1]))) /
                    total);
  }
  EXPECT_NEAR(llama2::mean_loss(logits, kMadeUpText), sum / static_cast<double>(kMadeUpText.size() - 1),
              1e-12);
  EXPECT_THROW(llama2::mean_loss(logits, std::span(kMadeUpText).first(1)), llama2::Error);
}

TEST(Llama2Model, WritesUntilItsContextIsFull) {
  const TemporaryFile file(made_up_checkpoint());
  Model model(llama2::load_checkpoint(file.path()));
  const std::vector<Token> text = llama2::written_on(model, {1, 5, 36});
  EXPECT_EQ(std::ssize(text), model.config().context);
  const std::vector<Token> rest = PlainLlama(file.path()).greedy({1, 5, 36}, text.size() - 3);
  EXPECT_EQ(std::vector<Token>(text.begin() + 3, text.end()), rest);
}

TEST(Llama2Model, RefusesWhatItCannotHold) {
  const TemporaryFile file(made_up_checkpoint());
  Model model(llama2::load_checkpoint(file.path()));
  model.forward(kMadeUpText);
  const auto length = model.length();
  const std::vector<Token> too_many(20, 3), unknown = {3, 37}, negative = {-1};
  EXPECT_THROW(model.forward(too_many), llama2::Error);
  EXPECT_THROW(model.forward(unknown), llama2::Error);
  EXPECT_THROW(model.forward(negative), llama2::Error);
  EXPECT_EQ(model.length(), length);
  model.forward(std::span(too_many).first(19));
  EXPECT_EQ(model.length(), model.config().context);
}

TEST(Llama2Checkpoint, MissingFile) {
  const std::string path = testing::TempDir() + "no_such_checkpoint.bin";
  EXPECT_THAT(error_of_checkpoint(path), testing::HasSubstr(path));
  EXPECT_THAT(error_of_checkpoint(testing::TempDir()), testing::HasSubstr("cannot be"));
}

TEST(Llama2Checkpoint, WrongLength) {
  const std::string bytes = made_up_checkpoint();
  for (const std::size_t size : {std::size_t{0}, std::size_t{27}, std::size_t{28}, bytes.size() - 1}) {
    const TemporaryFile file(bytes.substr(0, size));
    EXPECT_THAT(error_of_checkpoint(file.path()), testing::HasSubstr("ends early")) << size << " bytes";
  }
  const TemporaryFile file(bytes + "more");
  EXPECT_THAT(error_of_checkpoint(file.path()), testing::HasSubstr("4 bytes after its last weight"));
}

TEST(Llama2Checkpoint, SizesThatMakeNoSense) {
  // Position in the header and the value to put there.
  const std::pair<std::size_t, std::int32_t> changes[] = {{0, 0}, {0, 1634415666}, {2, -1},
                                                          {3, 5}, {3, 8},          {4, 3}};
  for (const auto& [field, value] : changes) {
    std::string bytes = made_up_checkpoint();
    bytes.replace(4 * field, 4, reinterpret_cast<const char*>(&value), 4);
    const TemporaryFile file(bytes);
    EXPECT_THAT(error_of_checkpoint(file.path()), testing::HasSubstr("not a llama2.c checkpoint"))
        << "field " << field << " = " << value;
  }
}

TEST(Llama2Checkpoint, ClassifierOfItsOwn) {
  std::string bytes = made_up_checkpoint();
  const std::int32_t vocab = -37;
  bytes.replace(4 * 5, 4, reinterpret_cast<const char*>(&vocab), 4);
  for (int i = 0; i < 37 * 24; ++i) append(bytes, static_cast<float>(i));
  const TemporaryFile file(bytes);
  const llama2::Checkpoint checkpoint = llama2::load_checkpoint(file.path());
  EXPECT_EQ(checkpoint.config.vocab_size, 37);
  EXPECT_EQ(checkpoint.classifier()(2, 3), 51.0f);
}

/// A tokenizer file of the given pieces after <unk>, BOS and EOS; later pieces score worse.
std::string made_up_tokenizer(const std::vector<std::string>& pieces) {
  std::string bytes;
  append(bytes, std::int32_t{6});
  float score = 0;
  const auto add = [&](const std::string& piece) {
    append(bytes, score--);
    append(bytes, static_cast<std::int32_t>(piece.size()));
    bytes += piece;
  };
  for (const char* special : {"<unk>", "\n<s>\n", "\n</s>\n"}) add(special);
  for (const std::string& piece : pieces) add(piece);
  return bytes;
}

TEST(Llama2Tokenizer, MergesTheBestPairFirst) {
  // "bc" (5) scores better than "ab" (6), so "abc" is a + bc.
  const TemporaryFile file(made_up_tokenizer({" ", "<0xC3>", "bc", "ab", "a", "b", "c", "<0xA9>"}));
  const Tokenizer tokenizer(file.path());
  EXPECT_THAT(tokenizer.encode("abc"), testing::ElementsAre(1, 3, 7, 5));
  EXPECT_THAT(tokenizer.encode("ab"), testing::ElementsAre(1, 3, 6));
  EXPECT_THAT(tokenizer.encode("\xC3\xA9"),
              testing::ElementsAre(1, 3, 4, 10));  // no such character: its bytes
  EXPECT_EQ(tokenizer.decode(tokenizer.encode("\xC3\xA9")), "\xC3\xA9");
  EXPECT_THAT(tokenizer.encode(""), testing::ElementsAre(1));
  EXPECT_THROW(tokenizer.encode("z"), llama2::Error);
}

TEST(Llama2Tokenizer, BadFiles) {
  EXPECT_THROW(Tokenizer(testing::TempDir() + "no_such_tokenizer.bin"), llama2::Error);
  const std::string bytes = made_up_tokenizer({"a"});
  for (const std::size_t size : {std::size_t{0}, std::size_t{4}, std::size_t{9}, bytes.size() - 1}) {
    const TemporaryFile file(bytes.substr(0, size));
    EXPECT_THROW(Tokenizer{file.path()}, llama2::Error) << size << " bytes";
  }
}

TEST(Llama2Stories, GreedyTextMatchesThePlainForwardPass) {
  SKIP_WITHOUT_MODELS();
  const Tokenizer tokenizer(kStoriesTokenizer);
  const std::vector<Token> prompt = tokenizer.encode("Once upon a time");
  fastrope::Options options;
  options.tolerance = 1e-3;  // the program's own
  Model model(llama2::load_checkpoint(kStories), options);
  const std::vector<Token> tokens = greedy(model, prompt, 256);
  EXPECT_EQ(tokens, PlainLlama(kStories).greedy(prompt, 256));

  std::vector<Token> text = prompt;
  text.insert(text.end(), tokens.begin(), tokens.end());
  EXPECT_THAT(
      tokenizer.decode(text),
      testing::StartsWith("Once upon a time, there was a little girl named Lily. She loved to play outside "
                          "in the park. One day, she saw a big, red ball."));
}

TEST(Llama2Stories, PrefillInOneCallIsTokenByToken) {
  SKIP_WITHOUT_MODELS();
  const Tokenizer tokenizer(kStoriesTokenizer);
  const std::vector<Token> text = tokenizer.encode(
      "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, "
      "she saw "
      "a big, red ball. She wanted to play with it, but it was too high.");
  Model whole(llama2::load_checkpoint(kStories));
  Model stepwise(llama2::load_checkpoint(kStories));
  const Matrix logits = whole.forward(text);
  EXPECT_LE(largest_difference(token_by_token(stepwise, text), logits), 1e-4f);
  EXPECT_LE(largest_difference(plain_logits(kStories, text), logits), 1e-4f);
}

TEST(Llama2Stories, TokenizerRoundTrip) {
  SKIP_WITHOUT_MODELS();
  const Tokenizer tokenizer(kStoriesTokenizer);
  EXPECT_THAT(tokenizer.encode("Once upon a time"), testing::ElementsAre(1, 403, 407, 261, 378));
  for (const std::string text :
       {"Once upon a time", " two  spaces ", "line\nbreak", "caf\xC3\xA9 \xE6\xBC\xA2", ""})
    EXPECT_EQ(tokenizer.decode(tokenizer.encode(text)), text);
}

}  // namespace
