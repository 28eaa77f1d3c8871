// Naive quadratic attention, the exact, polynomial and Toeplitz paths side by side, with the error against
// double precision beside each time and the machine's ceiling measured first.
//
//     build/release/bench/bench_paths [--benchmark_filter=...]
//
// Columns: time; gflops, on the flops that attention defines (4 n^2 d, halved when causal) for naive and
// exact, 4 n r (d_v+1) for polynomial; of_peak, their share of the measured peak; error, max |out -
// reference| / max|V| over 64 rows; bound, what the plan promised.
#include <benchmark/benchmark.h>

#include <Eigen/Dense>
#include <cmath>
#include <cstdio>
#include <fastrope/fastrope.hpp>
#include <random>
#include <vector>

#include "ceilings.hpp"

namespace {

using fastrope::Index;
using fastrope::Path;
using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

double peak_flops = 0;

struct Case {
  const char* name;
  Index n, d, d_v;
  double radius;  // |x| <= radius
  double tolerance;
  bool causal;
  bool t5;
};

constexpr Case kCases[] = {
    {"rope", 4096, 64, 64, 8, 1e-3, false, false},    {"rope", 4096, 64, 64, 8, 1e-3, true, false},
    {"rope", 8192, 8, 8, 1, 1e-3, false, false},      {"rope", 8192, 8, 8, 1, 1e-3, true, false},
    {"rope", 16384, 16, 64, 0.5, 1e-3, false, false}, {"rope+t5", 16384, 4, 8, 0.5, 1e-2, true, true},
};

/// Rows uniform on a sphere of the size that makes |x| <= radius at the default scale.
Matrix sphere(Index n, Index d, double radius, unsigned seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  Matrix m = Matrix::NullaryExpr(n, d, [&] { return normal(random); });
  m.rowwise().normalize();
  return m * static_cast<float>(std::sqrt(radius * std::sqrt(static_cast<double>(d))));
}

struct Inputs {
  Case c;
  Matrix q, k, v;
  fastrope::Options options;

  explicit Inputs(const Case& which)
      : c(which),
        q(sphere(c.n, c.d, c.radius, 1)),
        k(sphere(c.n, c.d, c.radius, 2)),
        v(sphere(c.n, c.d_v, 1, 3)) {
    options.rope = fastrope::Rope{};
    if (c.causal) options.mask = fastrope::Mask::causal();
    options.tolerance = c.tolerance;
    if (c.t5) {
      std::mt19937_64 random(4);
      std::normal_distribution<double> normal;
      std::vector<double> table(32);
      for (double& b : table) b = normal(random);
      options.bias = fastrope::LagBias::t5(table, 1, /*bidirectional=*/false);
    }
  }

  double bias(Index lag) const { return c.t5 ? options.bias(0, lag) : 0; }

  /// x turned to positions 0..n-1, in double: the reference's own rotation.
  Eigen::MatrixXd rotated(const Matrix& x) const {
    Eigen::MatrixXd y = x.cast<double>();
    for (Index i = 0; i < c.n; ++i) {
      for (Index m = 0; m < c.d / 2; ++m) {
        const double angle =
            static_cast<double>(i) * std::pow(1e4, -2.0 * static_cast<double>(m) / static_cast<double>(c.d));
        const double a = y(i, 2 * m), b = y(i, 2 * m + 1);
        y(i, 2 * m) = a * std::cos(angle) - b * std::sin(angle);
        y(i, 2 * m + 1) = a * std::sin(angle) + b * std::cos(angle);
      }
    }
    return y;
  }

  /// max |out - reference| / max|V| over 64 rows, the reference in double.
  double error(const Matrix& out) const {
    const Eigen::MatrixXd rq = rotated(q), rk = rotated(k), values = v.cast<double>();
    double worst = 0;
    for (Index i = 0; i < c.n; i += c.n / 64) {
      Eigen::VectorXd x = rk * rq.row(i).transpose() / std::sqrt(static_cast<double>(c.d));
      for (Index j = 0; j < c.n; ++j) {
        const Index lag = i - j;
        x(j) = c.causal && lag < 0 ? -INFINITY : x(j) + bias(lag);
      }
      const Eigen::VectorXd weights = (x.array() - x.maxCoeff()).exp();
      const Eigen::RowVectorXd row = weights.transpose() * values / weights.sum();
      worst = std::max(worst, (row - out.row(i).cast<double>()).cwiseAbs().maxCoeff());
    }
    return worst / values.cwiseAbs().maxCoeff();
  }

  double flops() const {
    return 2.0 * static_cast<double>(c.n * c.n * (c.d + c.d_v)) * (c.causal ? 0.5 : 1.0);
  }
};

/// The n x n product as one would write it with Eigen: scores, softmax, times values.
Matrix naive(const Inputs& in) {
  const Matrix q = in.rotated(in.q).cast<float>(), k = in.rotated(in.k).cast<float>();
  Matrix x = q * k.transpose() / std::sqrt(static_cast<float>(in.c.d));
  if (in.c.causal) {
    Eigen::RowVectorXf bias(in.c.n);  // of lags n-1, n-2, .., 0: what row n-1 adds
    for (Index j = 0; j < in.c.n; ++j) bias(j) = static_cast<float>(in.bias(in.c.n - 1 - j));
    for (Index i = 0; i < in.c.n; ++i) {
      x.row(i).head(i + 1) += bias.tail(i + 1);
      x.row(i).tail(in.c.n - 1 - i).setConstant(-INFINITY);
    }
  }
  x = (x.colwise() - x.rowwise().maxCoeff()).array().exp();
  return (x * in.v).array().colwise() / x.rowwise().sum().array();
}

void run_naive(benchmark::State& state, const Case& c) {
  const Inputs in(c);
  Matrix out;
  for (auto _ : state) out = naive(in);
  state.counters["gflops"] =
      benchmark::Counter(in.flops() * 1e-9, benchmark::Counter::kIsIterationInvariantRate);
  state.counters["error"] = in.error(out);
}

void run_path(benchmark::State& state, const Case& c, Path path) {
  Inputs in(c);
  in.options.path = path;
  Matrix out(c.n, c.d_v);
  fastrope::Report report;
  try {
    for (auto _ : state) report = fastrope::attend(in.q, in.k, in.v, out, in.options);
  } catch (const fastrope::Error& error) {
    state.SkipWithError(error.what());
    return;
  }
  const fastrope::HeadReport& head = report.heads[0];
  double flops = in.flops();
  if (path == Path::polynomial) flops = 4.0 * static_cast<double>(c.n * head.rank * (c.d_v + 1));
  if (path != Path::toeplitz) {
    state.counters["gflops"] =
        benchmark::Counter(flops * 1e-9, benchmark::Counter::kIsIterationInvariantRate);
    state.counters["of_peak"] =
        benchmark::Counter(flops / peak_flops, benchmark::Counter::kIsIterationInvariantRate);
  }
  state.counters["error"] = in.error(out);
  if (path != Path::exact) {
    state.counters["bound"] = head.error_bound;
    state.counters["degree"] = head.degree;
    state.counters["rank"] = static_cast<double>(head.rank);
  }
}

}  // namespace

int main(int argc, char** argv) {
  peak_flops = bench::fma_peak<float>();
  std::printf("%s: fused multiply-add peak %.1f Gflop/s, read bandwidth %.1f GB/s, one thread\n",
              fastrope::simd::target_name(), peak_flops * 1e-9, bench::read_bandwidth() * 1e-9);
  for (const Case& c : kCases) {
    const std::string name = std::string(c.name) + (c.causal ? " causal" : " full") +
                             " n=" + std::to_string(c.n) + " d=" + std::to_string(c.d) +
                             " d_v=" + std::to_string(c.d_v);
    const auto add = [&](const char* what, auto&& run) {
      benchmark::RegisterBenchmark((name + "/" + what).c_str(), run)
          ->Unit(benchmark::kMillisecond)
          ->UseRealTime();
    };
    add("naive", [c](benchmark::State& s) { run_naive(s, c); });
    for (Path path : {Path::exact, Path::polynomial, Path::toeplitz})
      add(to_string(path), [c, path](benchmark::State& s) { run_path(s, c, path); });
  }
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
}
