// The heads of a trained model on a text that it writes itself: how large their entries are, and which path
// is chosen, as they are and with scores tempered to a bound.
//
//     build/release/bench/trained_heads stories260K.bin tok512.bin
//
// The model writes until its context is full. The first table has a line for each head: a bound on its
// entries, |scale| max|q| max|k|, the largest entry that there is, and the plan's choice at that length. For
// the second, the rows of every head are repeated, with 1 % of noise, to 16384 tokens. "as trained" is the
// head itself; in the other lines scale is multiplied so that the bound is the one named: these are not the
// model's heads any more. Times are medians of 3 runs of one thread, beside the exact path's in the same run.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <exception>
#include <fastrope/fastrope.hpp>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "../examples/llama2/checkpoint.hpp"
#include "../examples/llama2/model.hpp"
#include "../examples/llama2/tokenizer.hpp"
#include "attention.hpp"
#include "ceilings.hpp"

namespace {

using bench::AttentionCase;
using bench::AttentionInputs;
using fastrope::Index;
using fastrope::Path;

constexpr double kTolerance = 1e-2;
constexpr Index kLength = 16384;

struct TrainedHead {
  std::size_t layer;
  Index head;
  AttentionCase c;
  AttentionInputs<float> in;
  double bound;  ///< |scale| max|q| max|k|
};

AttentionCase case_of(const fastrope::Options& options, Index n, Index d) {
  AttentionCase c{.shapes = {1, 1, n, n, d, d}};
  c.base = options;
  c.base.tolerance = kTolerance;
  return c;
}

double longest(const fastrope_test::Tensor<float>& x) {
  double longest = 0;
  for (Index i = 0; i < x.rows; ++i) {
    double square = 0;
    for (Index c = 0; c < x.cols; ++c)
      square += static_cast<double>(x(0, i, c)) * static_cast<double>(x(0, i, c));
    longest = std::max(longest, std::sqrt(square));
  }
  return longest;
}

double scale_of(const AttentionCase& c) {
  return c.base.scale.value_or(1 / std::sqrt(static_cast<double>(c.shapes.d)));
}

double bound_of(const AttentionCase& c, const AttentionInputs<float>& in) {
  return std::abs(scale_of(c)) * longest(in.q) * longest(in.k);
}

/// max |scale q.k| over the pairs that the causal mask allows, rotated, in double.
double largest_entry(const AttentionCase& c, const AttentionInputs<float>& in) {
  auto q = fastrope_test::converted<double>(in.q.view()), k = fastrope_test::converted<double>(in.k.view());
  for (auto* x : {&q, &k})
    fastrope_test::reference_rotate(
        *c.base.rope, [](Index i) { return i; }, *x);
  double largest = 0;
  for (Index i = 0; i < q.rows; ++i)
    for (Index j = 0; j <= i; ++j) {
      double entry = 0;
      for (Index m = 0; m < q.cols; ++m) entry += q(0, i, m) * k(0, j, m);
      largest = std::max(largest, std::abs(scale_of(c) * entry));
    }
  return largest;
}

/// The heads while the model goes on, likeliest token after likeliest token, until its context is full.
std::vector<TrainedHead> trained_heads(const std::string& checkpoint, const std::string& vocabulary) {
  llama2::Model writer(llama2::load_checkpoint(checkpoint));
  const llama2::Tokenizer tokenizer(vocabulary);
  const std::vector<llama2::Token> text = llama2::written_on(writer, tokenizer.encode("Once upon a time"));
  std::printf("the model writes %zu tokens: %.60s..\n", text.size(), tokenizer.decode(text).c_str());

  std::vector<TrainedHead> heads;
  llama2::Model reader(llama2::load_checkpoint(checkpoint));
  reader.forward(text, [&](std::size_t layer, const auto& q, const auto& k, const auto& v) {
    for (Index h = 0; h < q.heads; ++h) {
      const AttentionCase c = case_of(reader.options(), q.rows, q.cols);
      TrainedHead head{layer, h, c, AttentionInputs<float>(c.shapes, 1), 0};
      const Index kv = h * k.heads / q.heads;
      fastrope_test::Inputs random(1);
      head.in.q = bench::repeated(q.head(h), q.rows, random);
      head.in.k = bench::repeated(k.head(kv), k.rows, random);
      head.in.v = bench::repeated(v.head(kv), v.rows, random);
      head.bound = bound_of(c, head.in);
      heads.push_back(std::move(head));
    }
  });
  return heads;
}

fastrope::Plan<float> plan_of(const AttentionCase& c, const AttentionInputs<float>& in) {
  return fastrope::make_plan(in.q.view(), in.k.view(), in.v.view(), c.options());
}

void print_heads(const std::vector<TrainedHead>& heads) {
  std::printf("\nAs trained, causal, tolerance %g\n  layer head   bound  largest  chosen\n", kTolerance);
  for (const TrainedHead& head : heads) {
    const fastrope::Plan<float> plan = plan_of(head.c, head.in);
    const fastrope::HeadReport& report = plan.report().heads.front();
    std::ostringstream path;
    path << report.path;
    std::printf("  %5zu %4td %7.1f %8.1f  %s: %s\n", head.layer, head.head, head.bound,
                largest_entry(head.c, head.in), path.str().c_str(), report.reason.c_str());
  }
}

double median_of(std::vector<double> x) {
  std::nth_element(x.begin(), x.begin() + std::ssize(x) / 2, x.end());
  return x[x.size() / 2];
}

/// A line of the second table: all heads, tempered to a bound if one is given.
void print_tempered(const std::vector<TrainedHead>& heads, std::optional<double> bound) {
  std::vector<double> faster;
  Index approximate = 0, rank_total = 0;
  double worst_error = 0, worst_share = 0;
  for (const TrainedHead& head : heads) {
    AttentionCase c = case_of(head.c.base, kLength, head.c.shapes.d);
    fastrope_test::Inputs random(1);
    AttentionInputs<float> in(c.shapes, 1);
    in.q = bench::repeated(head.in.q.view().head(0), kLength, random);
    in.k = bench::repeated(head.in.k.view().head(0), kLength, random);
    in.v = bench::repeated(head.in.v.view().head(0), kLength, random);
    if (bound) c.base.scale = scale_of(c) * *bound / bound_of(c, in);
    const fastrope::Plan<float> plan = plan_of(c, in);
    const fastrope::HeadReport& report = plan.report().heads.front();
    double ratio = 1;
    if (report.path != Path::exact) {
      c.base.path = Path::exact;
      const fastrope::Plan<float> exact = plan_of(c, in);
      std::vector<std::byte> workspace(std::max(plan.workspace_bytes(), exact.workspace_bytes()));
      const auto seconds = [&](const fastrope::Plan<float>& p) {
        return bench::median_seconds(
            3, [&] { p.run(in.q.view(), in.k.view(), in.v.view(), in.out.view(), workspace); });
      };
      ratio = seconds(exact) / seconds(plan);
      const double error = bench::sampled_error(c, in, 16);
      worst_error = std::max(worst_error, error);
      worst_share = std::max(worst_share, error / report.error_bound);
      ++approximate;
      rank_total += report.rank;
    }
    faster.push_back(ratio);
  }
  const std::string label = bound ? "tempered to " + std::to_string(*bound).substr(0, 4) : "as trained";
  std::printf("  %-16s %6td of %zu %10.0f %11.2fx %13.1e %18.2f\n", label.c_str(), approximate, heads.size(),
              approximate > 0 ? static_cast<double>(rank_total) / static_cast<double>(approximate) : 0.0,
              median_of(faster), worst_error, worst_share);
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc != 3) {
    std::fprintf(stderr, "usage: %s CHECKPOINT TOKENIZER\n", argv[0]);
    return 1;
  }
  const std::vector<TrainedHead> heads = trained_heads(argv[1], argv[2]);
  print_heads(heads);
  std::printf("\nRows repeated to %td tokens, causal, tolerance %g; exact heads count as 1x\n", kLength,
              kTolerance);
  std::printf("  %-16s %12s %10s %12s %13s %18s\n", "scores", "approximate", "mean rank", "median gain",
              "worst error", "of what is promised");
  print_tempered(heads, std::nullopt);
  for (const double bound : {8.0, 4.0, 2.0, 1.0, 0.5}) print_tempered(heads, bound);
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "error: %s\n", error.what());
  return 1;
}
