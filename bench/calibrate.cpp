// The rates of CostModel for this machine.
//
//     build/release/bench/calibrate [rates.txt]
//
// Heads of many shapes are run by every path that can, one thread, and the work that each counts
// (plan/path_work.hpp) is weighed so that predicted times are close to measured ones: least squares of
// the relative errors, no rate negative. Prints the cases with both times, and the rates; with a file, puts
// them in its line for the instruction set compiled for, for make_plan(.., read_cost_model("rates.txt")).
// `look` is measured apart, as the time of a plan that a sample ends.
#include <Eigen/Core>
#include <algorithm>
#include <array>
#include <cstdio>
#include <string>
#include <tuple>
#include <vector>

#include "path_times.hpp"

namespace {

using bench::Bias;
using bench::MadeHead;
using fastrope::CostModel;
using fastrope::Index;
using fastrope::Path;
using fastrope::Work;

constexpr int kKinds = 6;
constexpr std::array<double CostModel::*, kKinds> kRates = {&CostModel::tile,    &CostModel::weigh,
                                                            &CostModel::feature, &CostModel::transform,
                                                            &CostModel::element, &CostModel::round};

std::array<double, kKinds> counts(const Work& w) {
  return {w.tile, w.weigh, w.feature, w.transform, w.element, w.round};
}

/// Nonnegative x with the least |A x - 1|^2, one element at a time.
Eigen::VectorXd nonnegative_fit(const Eigen::MatrixXd& a) {
  constexpr int kSweeps = 20000;
  const Eigen::MatrixXd gram = a.transpose() * a;
  const Eigen::VectorXd right = a.colwise().sum().transpose();
  Eigen::VectorXd x = Eigen::VectorXd::Zero(a.cols());
  for (int sweep = 0; sweep < kSweeps; ++sweep)
    for (Index i = 0; i < a.cols(); ++i)
      x(i) = std::max(0.0, x(i) + (right(i) - gram.row(i).dot(x)) / gram(i, i));
  return x;
}

std::vector<MadeHead> heads() {
  std::vector<MadeHead> list;
  for (const bool causal : {false, true}) {
    for (const Index d : {8, 16, 64, 128})
      for (const Index n : {2048, 4096}) list.push_back({n, d, 30, 1e-2, causal});
    for (const Index n : {2048, 8192, 32768}) {
      list.push_back({n, 4, 0.5, 1e-2, causal});
      list.push_back({n, 8, 0.5, 1e-2, causal});
    }
    for (const auto& [d, radius, tolerance] :
         {std::tuple<Index, double, double>{8, 2, 1e-3}, {16, 1, 1e-2}, {32, 0.5, 1e-2}, {64, 0.25, 1e-2}})
      list.push_back({8192, d, radius, tolerance, causal});
    for (const Index n : {2048, 8192, 32768}) {
      list.push_back({n, 4, 0.5, 1e-2, causal, Bias::table});
      list.push_back({n, 8, 0.25, 1e-2, causal, Bias::table});
    }
    list.push_back({8192, 8, 0.5, 1e-2, causal, Bias::t5});
  }
  return list;
}

/// Seconds of planning one head that a sample shows to be hopeless.
double look_seconds() {
  const MadeHead head{512, 32, 30, 1e-2, false};
  const auto c = head.attention_case();
  const auto in = bench::on_spheres<float>(c, 30);
  return bench::median_seconds(
      21, [&] { fastrope::make_plan(in.q.view(), in.k.view(), in.v.view(), c.options()); });
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<std::array<double, kKinds>> work;
  std::vector<double> measured, predicted;
  std::vector<std::string> names;
  const std::vector<MadeHead> all = heads();
  for (std::size_t i = 0; i < all.size(); ++i) {
    const MadeHead& head = all[i];
    std::fprintf(stderr, "\r%zu of %zu heads", i + 1, all.size());
    const auto c = head.attention_case();
    auto in = bench::on_spheres<float>(c, head.radius);
    for (const bench::PathTime& t : bench::path_times(c, in, head.n > 10000 ? 3 : 7, 2)) {
      if (t.path == Path::exact && head.n > 10000) continue;  // others have told
      char name[128];
      std::snprintf(name, sizeof(name), "%-10s %-6s n %6td d %4td rank %6td, %s", name_of(head.bias),
                    head.causal ? "causal" : "full", head.n, head.d, t.candidate.rank, to_string(t.path));
      names.emplace_back(name);
      work.push_back(counts(t.candidate.work));
      measured.push_back(t.seconds);
      predicted.push_back(t.candidate.seconds);
    }
  }
  std::fprintf(stderr, "\n");

  Eigen::MatrixXd shares(static_cast<Index>(work.size()), kKinds);
  for (std::size_t i = 0; i < work.size(); ++i)
    for (int kind = 0; kind < kKinds; ++kind)
      shares(static_cast<Index>(i), kind) = work[i][static_cast<std::size_t>(kind)] / measured[i];
  const Eigen::VectorXd seconds = nonnegative_fit(shares);
  const Eigen::VectorXd fitted = shares * seconds;

  std::printf("%-62s %12s %10s %10s\n", "case", "measured ms", "defaults", "fitted");
  for (std::size_t i = 0; i < work.size(); ++i)
    std::printf("%-62s %12.3f %9.0f%% %9.0f%%\n", names[i].c_str(), measured[i] * 1e3,
                100 * (predicted[i] / measured[i] - 1), 100 * (fitted(static_cast<Index>(i)) - 1));
  CostModel model;
  for (int kind = 0; kind < kKinds; ++kind)
    model.*kRates[static_cast<std::size_t>(kind)] = seconds(kind) > 0 ? 1 / seconds(kind) : 1e30;
  model.look = 1 / look_seconds();
  std::printf("\n%s\n", fastrope::rates_line(model).c_str());
  if (argc > 1) fastrope::write_cost_model(argv[1], model, "bench/calibrate");
}
