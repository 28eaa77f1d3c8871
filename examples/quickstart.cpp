// One call, attend(), on inputs with small and with large logits: what the dispatcher takes, what it
// promises, what is measured, and how long it takes beside the exact path and beside the naive n x n product.
#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fastrope/eigen.hpp>
#include <fastrope/fastrope.hpp>
#include <iostream>
#include <limits>
#include <random>
#include <vector>

namespace {

using fastrope::Index;
using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using DoubleMatrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// A row of the table: one head of n queries, keys and values.
struct Case {
  const char* positions;
  Index n, d, d_v;
  double largest;    // bound on every logit |x|
  double tolerance;  // error allowed, over max|V|
  bool causal = false;
  bool t5 = false;
};

constexpr Case kCases[] = {
    {"RoPE", 8192, 8, 8, 1.0, 1e-3},
    {"RoPE, causal", 8192, 16, 16, 0.5, 1e-3, true},
    {"RoPE", 16384, 64, 64, 0.25, 1e-2},
    {"RoPE + T5, causal", 16384, 4, 8, 0.5, 1e-2, true, true},
    {"RoPE", 8192, 8, 8, 30.0, 1e-3},
    {"RoPE, causal", 4096, 64, 64, 30.0, 1e-2, true},
    {"RoPE + T5, causal", 8192, 4, 8, 30.0, 1e-2, true, true},
};

struct Inputs {
  Matrix q, k;  // [n, d], rows uniform on a sphere
  Matrix v;     // [n, d_v], entries uniform in [-1, 1]
  fastrope::Options options;
};

Inputs make_inputs(const Case& c) {
  std::mt19937_64 random(2025);
  std::normal_distribution<float> normal;
  std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
  // |x| = |q^T W k| / sqrt(d) <= |q| |k| / sqrt(d), since rotations keep lengths.
  const auto radius = static_cast<float>(std::sqrt(c.largest * std::sqrt(static_cast<double>(c.d))));
  const auto on_sphere = [&] {
    const Matrix m = Matrix::NullaryExpr(c.n, c.d, [&] { return normal(random); });
    return Matrix(radius * m.rowwise().normalized());
  };
  Inputs in;
  in.q = on_sphere();
  in.k = on_sphere();
  in.v = Matrix::NullaryExpr(c.n, c.d_v, [&] { return uniform(random); });
  in.options.rope = fastrope::Rope{.base = 10000.0, .pairing = fastrope::RopePairing::interleaved};
  in.options.tolerance = c.tolerance;
  if (c.causal) in.options.mask = fastrope::Mask::causal();
  if (c.t5) {
    std::vector<double> buckets(32);
    for (double& bucket : buckets) bucket = uniform(random);
    in.options.bias =
        fastrope::LagBias::t5(buckets, /*heads=*/1, /*bidirectional=*/false, /*max_distance=*/128);
  }
  return in;
}

/// Row i of m [n, d] turned to position i, interleaved pairs, in double precision.
DoubleMatrix rotated(const Matrix& m) {
  DoubleMatrix result = m.cast<double>();
  for (Index c = 0; c < m.cols(); c += 2) {
    const double theta = std::pow(10000.0, -static_cast<double>(c) / static_cast<double>(m.cols()));
    for (Index i = 0; i < m.rows(); ++i) {
      const double cos = std::cos(theta * static_cast<double>(i)),
                   sin = std::sin(theta * static_cast<double>(i));
      result.row(i).segment<2>(c) << cos * m(i, c) - sin * m(i, c + 1), sin * m(i, c) + cos * m(i, c + 1);
    }
  }
  return result;
}

/// What mask and bias add to the logits as a function of the lag i - j: element (n - 1) - (i - j), [2n - 1].
Eigen::RowVectorXd lag_terms(const Inputs& in) {
  const Index n = in.q.rows();
  return Eigen::RowVectorXd::NullaryExpr(2 * n - 1, [&](Index element) {
    const Index lag = n - 1 - element;
    if (!in.options.mask.allows(lag)) return -std::numeric_limits<double>::infinity();
    return in.options.bias.empty() ? 0.0 : in.options.bias(0, lag);
  });
}

/// The textbook's three steps with all n x n weights computed: scores, softmax of each row, product with V.
/// In blocks of 16 rows, the fastest size tried: they stay in cache.
Matrix naive_attention(const Inputs& in) {
  const Index n = in.q.rows();
  const Matrix q = rotated(in.q).cast<float>() / std::sqrt(static_cast<float>(in.q.cols()));  // [n, d]
  const Matrix k = rotated(in.k).cast<float>();                                               // [n, d]
  const Eigen::RowVectorXf terms = lag_terms(in).cast<float>();                               // [2n - 1]
  Matrix out(n, in.v.cols());
  Matrix weights;  // [16, n]
  for (Index begin = 0; begin < n; begin += 16) {
    const Index rows = std::min<Index>(16, n - begin);
    weights.noalias() = q.middleRows(begin, rows) * k.transpose();
    for (Index i = 0; i < rows; ++i) {
      weights.row(i) += terms.segment(n - 1 - (begin + i), n);
      weights.row(i).array() = (weights.row(i).array() - weights.row(i).maxCoeff()).exp();
      weights.row(i) /= weights.row(i).sum();
    }
    out.middleRows(begin, rows).noalias() = weights * in.v;
  }
  return out;
}

/// max |out - reference| / max|V| over 64 rows from the first to the last, the reference in double precision.
double measured_error(const Inputs& in, const Matrix& out) {
  const Index n = in.q.rows();
  const DoubleMatrix q = rotated(in.q) / std::sqrt(static_cast<double>(in.q.cols()));  // [n, d]
  const DoubleMatrix k = rotated(in.k), v = in.v.cast<double>();                       // [n, d], [n, d_v]
  const Eigen::RowVectorXd terms = lag_terms(in);                                      // [2n - 1]
  double worst = 0;
  for (Index sample = 0; sample < 64; ++sample) {
    const Index i = sample * (n - 1) / 63;
    const Eigen::RowVectorXd x = q.row(i) * k.transpose() + terms.segment(n - 1 - i, n);
    const Eigen::RowVectorXd weights = (x.array() - x.maxCoeff()).exp();
    const Eigen::RowVectorXd expected = weights * v / weights.sum();
    worst = std::max(worst, (out.row(i).cast<double>() - expected).cwiseAbs().maxCoeff());
  }
  return worst / v.cwiseAbs().maxCoeff();
}

/// Medians, in milliseconds, over up to 5 rounds of all the given functions in turn, so that a busy machine
/// slows them alike; no round starts after 1.5 s.
template <class... F>
std::array<double, sizeof...(F)> median_times(F&&... functions) {
  using Clock = std::chrono::steady_clock;
  std::array<std::vector<double>, sizeof...(F)> times;
  const auto begin = Clock::now();
  while (times[0].size() < 5 && Clock::now() - begin < std::chrono::milliseconds(1500)) {
    std::size_t which = 0;
    const auto time = [&](auto& function) {
      const auto start = Clock::now();
      function();
      times[which++].push_back(std::chrono::duration<double, std::milli>(Clock::now() - start).count());
    };
    (time(functions), ...);
  }
  std::array<double, sizeof...(F)> medians;
  std::transform(times.begin(), times.end(), medians.begin(), [](std::vector<double>& values) {
    const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
    std::nth_element(values.begin(), middle, values.end());
    return *middle;
  });
  return medians;
}

struct Outcome {
  fastrope::HeadReport chosen;
  double error;                         // measured
  double time, exact_time, naive_time;  // milliseconds
};

Outcome run(const Inputs& in) {
  fastrope::Options exact = in.options;
  exact.path = fastrope::Path::exact;
  fastrope::Report report;
  Matrix out(in.v.rows(), in.v.cols()), other(in.v.rows(), in.v.cols());  // [n, d_v]
  const auto [time, exact_time] =
      median_times([&] { report = fastrope::attend(in.q, in.k, in.v, out, in.options); },
                   [&] { fastrope::attend(in.q, in.k, in.v, other, exact); });
  const auto [naive_time] = median_times([&] { other = naive_attention(in); });
  return {report.heads[0], measured_error(in, out), time, exact_time, naive_time};
}

void print_header() {
  constexpr const char* kLine = "%-17s %6s %3s %5s %6s | %-10s %5s %6s %5s %9s %8s | %7s %7s %7s %7s %7s\n";
  std::printf(kLine, "", "", "", "max", "toler-", "", "entry", "", "", "certified", "measured", "", "exact",
              "naive", "exact", "naive");
  std::printf(kLine, "positions", "n", "d", "|x|", "ance", "path", "bound", "degree", "rank", "error",
              "error", "ms", "ms", "ms", "/ ms", "/ ms");
}

void print_row(const Case& c, const Outcome& o) {
  std::printf("%-17s %6td %3td %5.2f %6.0e | %-10s %5.2f", c.positions, c.n, c.d, c.largest, c.tolerance,
              to_string(o.chosen.path), o.chosen.entry_bound);
  if (o.chosen.path == fastrope::Path::exact)
    std::printf(" %6s %5s %9.1e", "-", "-", o.chosen.error_bound);
  else
    std::printf(" %6d %5td %9.1e", o.chosen.degree, o.chosen.rank, o.chosen.error_bound);
  std::printf(" %8.1e | %7.1f %7.1f %7.1f %6.1fx %6.1fx\n", o.error, o.time, o.exact_time, o.naive_time,
              o.exact_time / o.time, o.naive_time / o.time);
  std::fflush(stdout);
}

}  // namespace

int main() try {
  Eigen::setNbThreads(1);  // the naive product too
  std::cout
      << "One head of attention in float, on one thread, by one call: fastrope::attend(). Every logit x is\n"
         "at most max |x| by construction; the dispatcher sees q, k, v and the tolerance only. What it\n"
         "says before it runs the first row of the table:\n\n";
  const Inputs first = make_inputs(kCases[0]);
  std::cout << fastrope::make_plan(first.q, first.k, first.v, first.options) << std::endl;

  print_header();
  double least = std::numeric_limits<double>::infinity(), most = 0;  // speed-up of the fast paths
  int fast_rows = 0, exact_rows = 0;
  bool kept = true;
  for (const Case& c : kCases) {
    const Outcome o = run(make_inputs(c));
    print_row(c, o);
    if (o.chosen.path == fastrope::Path::exact) {
      ++exact_rows;
    } else {
      ++fast_rows;
      kept = kept && o.error <= o.chosen.error_bound;
      least = std::min(least, o.exact_time / o.time);
      most = std::max(most, o.exact_time / o.time);
    }
  }
  std::printf(
      "\nErrors are over max|V|; the measured one is the largest in 64 of the n rows, against double.\n"
      "Times are medians; ms includes the dispatcher's look; the last two columns are the speed-ups.\n"
      "Naive: softmax of the whole n x n matrix by Eigen, 16 rows at a time.\n\n");
  if (fast_rows > 0)
    std::printf(
        "%d rows took a fast path, %.1f to %.1f times faster than the exact one: with small logits "
        "attention\n"
        "is close to a product of low rank, and the distance is certified before anything runs.\n",
        fast_rows, least, most);
  if (exact_rows > 0)
    std::printf(
        "%d rows ran the exact path: with large logits, the rule in trained models, nothing cheaper keeps\n"
        "the tolerance.\n",
        exact_rows);
  if (!kept) std::printf("\nA measured error exceeds its certificate.\n");
  return kept ? EXIT_SUCCESS : EXIT_FAILURE;
} catch (const std::exception& error) {
  std::cerr << "quickstart: " << error.what() << '\n';
  return EXIT_FAILURE;
}
