// What each step towards a smaller rank is worth: on the heads of models trained with bounded scores, if
// their file is given, and on generated data.
//
//     build/release/bench/polynomial_steps [bounded_lm_heads.bin]
//
// A row of the first tables is a fit with more of the steps than the row above: of the shifts, of other axes
// with smaller index sets, and of bounds over the pairs that are approximated only. radius bounds those
// pairs' entries; rank is kept of simplex; predicted is the cost model's time, measured the median of 5 runs,
// beside that of the exact path; error is max |out - reference| / max|V| over 32 rows, certified its bound.
// The last tables repeat the heads' rows, with 1 % of noise, to any length: the time of both paths, and from
// where the polynomial path is faster.
#include <cmath>
#include <cstdio>
#include <exception>
#include <fastrope/fastrope.hpp>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "attention.hpp"
#include "ceilings.hpp"
#include "support/bounded_heads.hpp"

namespace {

using bench::AttentionCase;
using bench::AttentionInputs;
using fastrope::Index;
using fastrope::LowRankSteps;
using fastrope::Mask;
using fastrope::Path;
using fastrope_test::Inputs;

struct Data {
  std::string name;
  AttentionCase c;  // of one head
  AttentionInputs<float> in;
};

/// A call with a forced path: seconds, median of some runs.
double seconds_of(const fastrope::Plan<float>& plan, AttentionInputs<float>& in, int runs) {
  std::vector<std::byte> workspace(plan.workspace_bytes());
  return bench::median_seconds(
      runs, [&] { plan.run(in.q.view(), in.k.view(), in.v.view(), in.out.view(), workspace); });
}

fastrope::Plan<float> plan_of(AttentionCase c, const AttentionInputs<float>& in, Path path) {
  c.base.path = path;
  return fastrope::make_plan(in.q.view(), in.k.view(), in.v.view(), c.options());
}

void print_steps(Data& data, double tolerance) {
  data.c.base.tolerance = tolerance;
  const fastrope::Problem problem(data.c.shapes, data.c.options());
  const fastrope::CostModel cost;
  const double exact = seconds_of(plan_of(data.c, data.in, Path::exact), data.in, 3);
  std::printf("\n%s, n %td, d %td, d_v %td, tolerance %g, exact %.1f ms\n", data.name.c_str(),
              data.c.shapes.n_q, data.c.shapes.d, data.c.shapes.d_v, tolerance, exact * 1e3);
  std::printf("  %-24s %7s %6s %9s %9s %9s %9s %7s %9s %9s\n", "steps", "radius", "degree", "simplex", "rank",
              "predicted", "measured", "faster", "error", "certified");
  const bool causal = data.c.base.mask == Mask::causal();
  std::vector<std::pair<const char*, LowRankSteps>> steps = {
      {"none", {.shift = false, .axes = false, .near_field = false}},
      {"shifts", {.shift = true, .axes = false, .near_field = false}},
      {"shifts, axes", {.shift = true, .axes = true, .near_field = false}}};
  if (causal) steps.push_back({"shifts, axes, near field", {}});
  for (const auto& [name, of_row] : steps) {
    const fastrope::LowRankRequest request{
        .scale = problem.scale, .tolerance = tolerance, .d_v = problem.shapes.d_v, .steps = of_row};
    auto look = fastrope::group_look<float>(problem, 0, fastrope::TensorView<const float>(data.in.q.view()),
                                            data.in.k.view(), data.in.v.view());
    std::string reason;
    const auto fit = look.fit({0, 1}, fastrope::far_chunks<float>(problem, fastrope::CostModel::kLeastChunk),
                              request, reason);
    if (!fit) {
      std::printf("  %-24s %s\n", name, reason.c_str());
      continue;
    }
    const auto p = fit->polynomial.coefficients();
    fastrope::LowRankUnit unit{.heads = {0, 1},
                               .projection = fit->projection,
                               .coefficients = {p.begin(), p.end()},
                               .monomials = std::make_shared<const fastrope::MonomialSet>(fit->limits),
                               .chunks = cost.best_chunks<float>(problem, fit->rank, 1),
                               .allowed = fit->allowed};
    const double predicted =
        cost.seconds<float>(fastrope::polynomial_work<float>(problem, fit->rank, 1, unit.chunks));
    const fastrope::Plan<float> plan(problem, tolerance, {}, {{.polynomial = {std::move(unit)}}});
    const double measured = seconds_of(plan, data.in, 5);
    std::printf("  %-24s %7.3f %6d %9.0f %9.0f %6.1f ms %6.1f ms %6.2fx %9.1e %9.1e\n", name, fit->radius,
                fit->polynomial.degree(), fit->simplex_rank, fit->rank, predicted * 1e3, measured * 1e3,
                exact / measured, bench::sampled_error(data.c, data.in, 32), fit->error_bound);
  }
}

Data data_of(const fastrope_test::BoundedHead& head, std::string name, Index n) {
  Inputs random(1);
  AttentionCase c{.shapes = {1, 1, n, n, head.q.cols, head.v.cols}};
  c.base.scale = 1.0;
  c.base.mask = Mask::causal();
  c.base.rope = fastrope::Rope{};
  Data data{std::move(name), c, AttentionInputs<float>(c.shapes, 1)};
  data.in.q = bench::repeated(head.q.view().head(0), n, random);
  data.in.k = bench::repeated(head.k.view().head(0), n, random);
  data.in.v = bench::repeated(head.v.view().head(0), n, random);
  return data;
}

void print_lengths(const fastrope_test::BoundedHead& head, const std::string& name, double tolerance) {
  std::printf("\n%s, causal, tolerance %g: exact over polynomial\n", name.c_str(), tolerance);
  double before = 0;
  for (Index n = 1024; n <= 65536; n *= 2) {
    Data data = data_of(head, name, n);
    data.c.base.tolerance = tolerance;
    const int runs = n <= 8192 ? 5 : 1;
    try {
      const auto plan = plan_of(data.c, data.in, Path::polynomial);
      const double polynomial = seconds_of(plan, data.in, runs);
      const double error = bench::sampled_error(data.c, data.in, 16);
      const double exact = seconds_of(plan_of(data.c, data.in, Path::exact), data.in, runs);
      const fastrope::HeadReport& report = plan.report().heads.front();
      std::printf(
          "  n %6td: exact %8.1f ms, polynomial %8.1f ms (degree %d, rank %td, error %.1e of %.1e): %.2fx", n,
          exact * 1e3, polynomial * 1e3, report.degree, report.rank, error, report.error_bound,
          exact / polynomial);
      if (before > 0 && before < 1 && exact >= polynomial)
        std::printf(", faster from n ~ %.0f",
                    static_cast<double>(n) *
                        std::exp2(-std::log(exact / polynomial) / std::log(exact / polynomial / before)));
      std::printf("\n");
      before = exact / polynomial;
    } catch (const fastrope::Error& error) {
      std::printf("  n %6td: %s\n", n, error.what());
    }
    std::fflush(stdout);
  }
}

/// n x d of one kind for queries and keys.
template <class Draw>
Data generated(const std::string& name, Index d, bool causal, Draw&& draw) {
  Inputs random(2);
  const Index n = 16384;
  AttentionCase c{.shapes = {1, 1, n, n, d, d}};
  c.base.scale = 1.0;
  if (causal) c.base.mask = Mask::causal();
  Data data{name + (causal ? ", causal" : ", full"), c, AttentionInputs<float>(c.shapes, random)};
  for (auto* x : {&data.in.q, &data.in.k}) *x = draw(random, n, d);
  return data;
}

/// Rows of length 1 around an offset of length 3.
fastrope_test::Tensor<float> offset(Inputs& random, Index n, Index d) {
  const auto mean = random.sphere<float>(1, 1, d, 3);
  auto x = random.sphere<float>(1, n, d, 1);
  for (Index i = 0; i < n; ++i)
    for (Index m = 0; m < d; ++m) x(0, i, m) += mean(0, 0, m);
  return x;
}

/// Each direction `decay` times as long as the one before, behind a random mixing.
fastrope_test::Tensor<float> decaying(Inputs& random, Index n, Index d, double decay, double norm) {
  const auto mixing = random.gaussian<double>(1, d, d, 1 / std::sqrt(static_cast<double>(d)));
  const auto x = random.sphere<double>(1, n, d, norm);
  fastrope_test::Tensor<float> y(1, n, d);
  for (Index i = 0; i < n; ++i)
    for (Index l = 0; l < d; ++l)
      for (Index m = 0; m < d; ++m)
        y(0, i, m) += static_cast<float>(x(0, i, l) * std::pow(decay, l) * mixing(0, l, m));
  return y;
}

/// Rows of length 1, and of length 3 at the end: long queries meet long keys nearby only.
fastrope_test::Tensor<float> growing(Inputs& random, Index n, Index d) {
  auto x = random.sphere<float>(1, n, d, 1);
  for (Index i = n - 100; i < n; ++i)
    for (Index m = 0; m < d; ++m) x(0, i, m) *= 3;
  return x;
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc > 2 || (argc == 2 && argv[1][0] == '-')) {
    std::fprintf(stderr, "usage: %s [bounded_lm_heads.bin]\n", argv[0]);
    return 1;
  }
  std::vector<fastrope_test::BoundedHead> heads;
  if (argc == 2) heads = fastrope_test::read_bounded_heads(argv[1]);
  for (std::size_t h = 0; h < heads.size(); ++h) {
    Data data = data_of(heads[h], "head " + std::to_string(h), heads[h].q.rows);
    for (const double tolerance : {1e-1, 1e-2}) print_steps(data, tolerance);
  }
  for (const bool causal : {false, true}) {
    Data of_offset = generated("offset 3, radius 1", 8, causal, offset);
    print_steps(of_offset, 1e-2);
    for (const auto& [name, d, decay, norm] :
         {std::tuple{"spectrum decaying by 0.7", 16, 0.7, 2.0}, {"spectrum decaying by 0.5", 64, 0.5, 3.0}}) {
      Data of_decay =
          generated(name, d, causal, [decay = decay, norm = norm](Inputs& random, Index n, Index columns) {
            return decaying(random, n, columns, decay, norm);
          });
      print_steps(of_decay, 1e-2);
    }
  }
  Data of_growth = generated("the last 100 rows 3 times as long", 8, true, growing);
  print_steps(of_growth, 1e-2);
  for (std::size_t h = 0; h < heads.size(); ++h) print_lengths(heads[h], "head " + std::to_string(h), 1e-2);
  if (heads.empty()) std::printf("\nno file of heads was given: their tables are left out\n");
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "error: %s\n", error.what());
  return 1;
}
