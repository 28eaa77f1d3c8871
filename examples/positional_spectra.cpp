// What positional schemes do to the spectrum of the logits, on made content and on a model's heads.
//
//     positional_spectra [--n 128] [--d 16] [--causal] [--weights] [--figures FOLDER] [CHECKPOINT TOKENIZER]
//     positional_spectra --long 65536 [--d 16] [--causal]
//
// A line for each scheme and content: the measures of spectral/measures.hpp, the contraction against content
// alone (below 1 the scheme makes |L|_2 smaller), and the shares of the logits' variance. With --weights also
// of the softmax weights, at the scale 1 / sqrt(d). With a llama2.c checkpoint the same of its heads, RoPE
// against none, on a text that the model writes itself. With --long the eleven largest singular values of a
// RoPE logit matrix that is too large to be formed. --figures writes spectra.svg and, with a checkpoint,
// head_contraction.svg.
//
// Above n = 512 the values of a matrix of full rank are too many to find: "-" stands for what needs them all.
// Absolute codes are part of the rows, so the shares count them as content.
//
// Made content, q and k of deviation 1 and apart from each other: independent; a common mean of length
// sqrt(10) that both share; slowly varying, neighbours correlated by 0.97. The scale is 1, as in the paper's
// tables.
#include <sys/resource.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fastrope/spectral/spectral.hpp>
#include <optional>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "figures/heat_map.hpp"
#include "figures/spectra.hpp"
#include "llama2/checkpoint.hpp"
#include "llama2/model.hpp"
#include "llama2/tokenizer.hpp"

namespace {

using fastrope::HadamardSum;
using fastrope::Index;
using fastrope::LagBias;
using fastrope::Mask;
using fastrope::Options;
using fastrope::Rope;
using fastrope::RowMatrix;
using fastrope::SpectralMeasures;
using fastrope::VarianceShares;

struct Arguments {
  Index n = 128, d = 16;
  bool causal = false, weights = false, long_run = false;
  std::optional<std::string> figures = {};
  std::vector<std::string> model = {};  // checkpoint and tokenizer, or nothing
};

std::optional<Arguments> parsed(int count, char** words) {
  Arguments a;
  for (int i = 1; i < count; ++i) {
    const std::string word = words[i];
    if (word == "--causal")
      a.causal = true;
    else if (word == "--weights")
      a.weights = true;
    else if (word.starts_with("--") && i + 1 < count) {
      const std::string value = words[++i];
      if (word == "--figures")
        a.figures = value;
      else if (word == "--n" || word == "--long" || word == "--d")
        (word == "--d" ? a.d : a.n) = std::atoll(value.c_str());
      else
        return std::nullopt;
      a.long_run = a.long_run || word == "--long";
    } else if (word.starts_with("--"))
      return std::nullopt;
    else
      a.model.push_back(word);
  }
  const bool fits = a.n >= (a.long_run ? 11 : 2) && a.d >= 4 && a.d % 4 == 0 &&
                    (a.model.empty() || a.model.size() == 2) &&
                    !(a.long_run && (a.weights || a.figures || !a.model.empty()));
  return fits ? std::optional(a) : std::nullopt;
}

// Content.

enum class Content { independent, common_mean, slowly_varying };
constexpr const char* kContentNames[] = {"independent", "common mean", "slowly varying"};

/// Rows of one side, [n, d].
RowMatrix made(Content content, Index n, Index d, std::mt19937_64& random) {
  constexpr double kKept = 0.97, kMeanSquare = 10;
  std::normal_distribution<double> normal;
  RowMatrix rows(n, d);
  for (double& x : rows.reshaped<Eigen::RowMajor>()) x = normal(random);
  if (content == Content::common_mean) rows.array() += std::sqrt(kMeanSquare / static_cast<double>(d));
  if (content == Content::slowly_varying)
    for (Index i = 1; i < n; ++i)
      rows.row(i) = kKept * rows.row(i - 1) + std::sqrt(1 - kKept * kKept) * rows.row(i);
  return rows;
}

/// The sinusoidal code of each position, [n, d] (Vaswani et al. 2017).
RowMatrix absolute_codes(Index n, Index d) {
  RowMatrix codes(n, d);
  for (Index i = 0; i < n; ++i)
    for (Index c = 0; c < d; c += 2) {
      const double angle =
          static_cast<double>(i) * std::pow(10000.0, -static_cast<double>(c) / static_cast<double>(d));
      codes(i, c) = std::sin(angle);
      codes(i, c + 1) = std::cos(angle);
    }
  return codes;
}

// Schemes.

struct Head {
  std::string scheme;
  RowMatrix q, k;
  Options options;
  RowMatrix plain_q, plain_k;  // what content alone is, where the scheme adds to rows
};

std::vector<Head> heads_of(Content content, const Arguments& a) {
  std::mt19937_64 random(1);
  const RowMatrix q = made(content, a.n, a.d, random), k = made(content, a.n, a.d, random);
  // MLA's decoupled rotation: d / 2 more columns that turn, before those that do not.
  RowMatrix mla_q(a.n, a.d + a.d / 2), mla_k = mla_q;
  mla_q << made(content, a.n, a.d / 2, random), q;
  mla_k << made(content, a.n, a.d / 2, random), k;
  const RowMatrix codes = absolute_codes(a.n, a.d);
  // As trained T5 heads have it, near lags count more, keys after the query less.
  std::vector<double> buckets;
  buckets.reserve(32);
  for (int bucket = 0; bucket < 32; ++bucket)
    buckets.push_back(4 - 0.4 * (bucket % 16) - (bucket < 16 ? 0.0 : 1.0));
  std::vector<Head> heads = {
      {"none", q, k, {}, q, k},
      {"absolute", q + codes, k + codes, {}, q, k},
      {"ALiBi", q, k, {.bias = LagBias::alibi(std::vector{0.125})}, q, k},
      {"T5", q, k, {.bias = LagBias::t5(buckets, 1, /*bidirectional=*/true)}, q, k},
      {"RoPE", q, k, {.rope = Rope{}}, q, k},
      {"partial", q, k, {.rope = Rope{.rotary_dim = a.d / 2}}, q, k},
      {"MLA", mla_q, mla_k, {.rope = Rope{.rotary_dim = a.d / 2}}, mla_q, mla_k},
  };
  for (Head& head : heads) {
    head.options.scale = 1.0;
    head.options.mask = a.causal ? Mask::causal() : Mask::full();
  }
  return heads;
}

/// A matrix's largest singular values, all of them where it is small, and what can be said of them.
struct Spectrum {
  Eigen::VectorXd values;
  SpectralMeasures measures;
  bool whole;  // else sigma_1 and the stable rank alone are known
};

template <class M>
Spectrum spectrum_of(const M& m) {
  constexpr Index kDense = 512, kLargest = 11;
  const Index size = std::min(m.n_rows(), m.n_cols());
  if (size <= kDense) {
    const Eigen::VectorXd values = fastrope::all_singular_values(m);
    return {values, fastrope::measures(values, m.n_rows(), m.n_cols()), true};
  }
  const Eigen::VectorXd values = fastrope::singular_values(m, kLargest).values;
  const double ratio = fastrope::frobenius_norm(m) / values(0);
  return {values, {.sigma_1 = values(0), .stable_rank = ratio * ratio}, false};
}

void print_line(const std::string& name, const Spectrum& s, double contraction, const VarianceShares& v) {
  const SpectralMeasures& m = s.measures;
  std::printf("  %-10s %9.1f %7.3f ", name.c_str(), m.sigma_1, contraction);
  if (s.whole)
    std::printf("%6td %9.2g %8.2f %8.2f", m.rank, m.condition, m.stable_rank, m.entropy_rank);
  else
    std::printf("%6s %9s %8.2f %8s", "-", "-", m.stable_rank, "-");
  std::printf(" %9.0f%% %7.0f%% %6.0f%%\n", 100 * v.position, 100 * v.content, 100 * v.mixed);
  std::fflush(stdout);
}

void print_header(const char* what) {
  std::printf("  %-10s %9s %7s %6s %9s %8s %8s %10s %8s %7s\n", what, "sigma_1", "contr.", "rank",
              "condition", "stable", "entropy", "position", "content", "mixed");
}

void print_schemes(const Arguments& a) {
  std::vector<figures::SpectraPanel> panels;
  for (const Content content : {Content::independent, Content::common_mean, Content::slowly_varying}) {
    const char* name = kContentNames[static_cast<int>(content)];
    std::printf("\n%s content, n = %td, d = %td%s, logits\n", name, a.n, a.d, a.causal ? ", causal" : "");
    print_header("scheme");
    figures::SpectraPanel panel{name, {}};
    const std::vector<Head> heads = heads_of(content, a);
    for (const Head& head : heads) {
      Options plain = head.options;
      plain.rope = {};
      plain.bias = LagBias::none();
      const Spectrum s = spectrum_of(fastrope::logit_matrix(head.q, head.k, head.options)),
                     content_alone = spectrum_of(fastrope::logit_matrix(head.plain_q, head.plain_k, plain));
      print_line(head.scheme, s, fastrope::contraction(s.measures, content_alone.measures),
                 fastrope::logit_variance(head.q, head.k, head.options));
      panel.lines.push_back({head.scheme, s.values});
    }
    panels.push_back(std::move(panel));
    if (!a.weights) continue;
    std::printf("\n%s content, softmax weights at the scale 1 / sqrt(d)\n", name);
    std::printf("  %-10s %9s %6s %8s %8s\n", "scheme", "sigma_1", "rank", "stable", "entropy");
    for (Head head : heads) {
      head.options.scale = {};
      const fastrope::WeightMatrix weights(head.q, head.k, head.options);
      const Spectrum s = spectrum_of(weights);
      const SpectralMeasures& m = s.measures;
      std::printf("  %-10s %9.3f ", head.scheme.c_str(), m.sigma_1);
      if (s.whole)
        std::printf("%6td %8.2f %8.2f\n", m.rank, m.stable_rank, m.entropy_rank);
      else
        std::printf("%6s %8.2f %8s\n", "-", m.stable_rank, "-");
      std::fflush(stdout);
    }
  }
  if (a.figures)
    figures::draw_spectra(panels, "Singular values of logits by positional scheme",
                          "n = " + std::to_string(a.n) + ", d = " + std::to_string(a.d) +
                              (a.causal ? ", causal" : ", full") + ", scale 1; three kinds of content",
                          *a.figures + "/spectra.svg");
}

// A model's heads.

void print_model(const Arguments& a) {
  const llama2::Checkpoint checkpoint = llama2::load_checkpoint(a.model[0]);
  const llama2::Tokenizer tokenizer(a.model[1]);
  llama2::Model writer(checkpoint), reader(checkpoint);
  const std::vector<llama2::Token> text = llama2::written_on(writer, tokenizer.encode("Once upon a time"));
  std::printf("\nheads of %s on %zu tokens that it writes itself, causal, its own scale, RoPE against none\n",
              a.model[0].c_str(), text.size());
  print_header("layer head");
  Eigen::MatrixXd ratios(checkpoint.config.layers, checkpoint.config.heads);
  reader.forward(text, [&](std::size_t layer, const auto& q, const auto& k, const auto&) {
    for (Index h = 0; h < q.heads; ++h) {
      const auto rows = [](const auto& view, Index head) {
        RowMatrix x(view.rows, view.cols);
        for (Index i = 0; i < view.rows; ++i)
          for (Index c = 0; c < view.cols; ++c) x(i, c) = static_cast<double>(view.head(head)(i, c));
        return x;
      };
      const RowMatrix queries = rows(q, h), keys = rows(k, h * k.heads / q.heads);
      const Options& options = reader.options();
      Options plain = options;
      plain.rope = {};
      const Spectrum s = spectrum_of(fastrope::logit_matrix(queries, keys, options));
      const double contraction = fastrope::contraction(
          s.measures, spectrum_of(fastrope::logit_matrix(queries, keys, plain)).measures);
      ratios(static_cast<Index>(layer), h) = contraction;
      print_line(std::to_string(layer) + "     " + std::to_string(h), s, contraction,
                 fastrope::logit_variance(queries, keys, options));
    }
  });
  if (a.figures)
    figures::draw_heat_map(
        ratios,
        {.title = "Contraction by RoPE: sigma_1 of the causal logits over that without rotation",
         .subtitle = "below 1 rotation makes the largest singular value smaller; " +
                     std::to_string(text.size()) + " tokens",
         .rows = "layer",
         .columns = "head"},
        *a.figures + "/head_contraction.svg");
}

// A matrix that does not fit.

void print_long(const Arguments& a) {
  using Clock = std::chrono::steady_clock;
  const auto seconds_since = [](Clock::time_point begin) {
    return std::chrono::duration<double>(Clock::now() - begin).count();
  };
  std::mt19937_64 random(1);
  const RowMatrix q = made(Content::common_mean, a.n, a.d, random),
                  k = made(Content::common_mean, a.n, a.d, random);
  std::printf("RoPE logits, %td x %td (%.1f GB as doubles), d = %td%s, common mean\n", a.n, a.n,
              8e-9 * static_cast<double>(a.n) * static_cast<double>(a.n), a.d, a.causal ? ", causal" : "");
  const Clock::time_point begin = Clock::now();
  const HadamardSum logits = fastrope::logit_matrix(
      q, k, {.rope = Rope{}, .mask = a.causal ? Mask::causal() : Mask::full(), .scale = 1.0});
  std::printf("%.1f s: the operator is made\n", seconds_since(begin));
  std::fflush(stdout);
  const fastrope::Extremes found = fastrope::singular_values(logits, 11);
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  std::printf("%.1f s: done; peak memory %.2f GiB\n  number       sigma   residual\n", seconds_since(begin),
              static_cast<double>(usage.ru_maxrss) / (1 << 20));
  for (Index i = 0; i < found.values.size(); ++i)
    std::printf("  %6td %11.2f %10.1e\n", i + 1, found.values(i), found.residuals(i));
}

void run(const Arguments& a) {
  if (a.long_run) return print_long(a);
  print_schemes(a);
  if (!a.model.empty()) print_model(a);
}

}  // namespace

int main(int count, char** words) try {
  const std::optional<Arguments> a = parsed(count, words);
  if (!a) {
    std::fprintf(
        stderr,
        "usage: %s [--n N] [--d D] [--causal] [--weights] [--figures FOLDER] [CHECKPOINT TOKENIZER]\n"
        "       %s --long N [--d D] [--causal]\n"
        "N >= 2, with --long 11, D a multiple of 4\n",
        words[0], words[0]);
    return EXIT_FAILURE;
  }
  run(*a);
  return EXIT_SUCCESS;
} catch (const std::exception& error) {
  std::fprintf(stderr, "positional_spectra: %s\n", error.what());
  return EXIT_FAILURE;
}
