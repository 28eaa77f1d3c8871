// A sequence that no rank holds alone: attention of a million tokens and more over the ranks of MPI.
//
//     mpirun -n 4 mpi_long_context [tokens] [tolerance]
//
// Every rank makes its part of q, k and v, all plan together and run; rank 0 says how it goes. A few rows of
// every rank are then computed exactly over all ranks, and the largest error is held against the promise: the
// exit code is 1 where it is more.
#include <mpi.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fastrope/mpi.hpp>
#include <random>
#include <vector>

namespace {

using fastrope::contiguous;
using fastrope::Index;
using fastrope::Position;

constexpr Index kHeads = 4, kKeyHeads = 2, kDim = 8;
constexpr Index kChecked = 4;  // rows of each rank

int rank = 0, ranks = 1;

/// What rank 0 says, with the seconds since the beginning, once all ranks have come so far.
void say(const char* format, ...) {
  static const auto start = std::chrono::steady_clock::now();
  MPI_Barrier(MPI_COMM_WORLD);
  if (rank != 0) return;
  std::printf("%7.2f s  ", std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  va_list values;
  va_start(values, format);
  std::vprintf(format, values);
  va_end(values);
  std::printf("\n");
  std::fflush(stdout);
}

double largest_of_all(double x) {
  MPI_Allreduce(MPI_IN_PLACE, &x, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
  return x;
}

int run(Index n, double tolerance) {
  const Index first = n * rank / ranks, rows = n * (rank + 1) / ranks - first;
  std::mt19937 random(static_cast<unsigned>(rank + 1));
  std::normal_distribution<float> normal(0, 0.25F);
  const auto make = [&](Index heads) {
    std::vector<float> x(static_cast<std::size_t>(heads * rows * kDim));
    for (float& e : x) e = normal(random);
    return x;
  };
  const std::vector<float> q = make(kHeads), k = make(kKeyHeads);
  // Values that change along the sequence, so that what a row sees of other ranks shows.
  std::vector<float> v = make(kKeyHeads);
  for (Index row = 0; row < kKeyHeads * rows; ++row) {
    const double place = static_cast<double>(first + row % rows) / static_cast<double>(n);
    for (Index c = 0; c < kDim; ++c)
      v[static_cast<std::size_t>(row * kDim + c)] +=
          static_cast<float>(std::cos(3.14 * static_cast<double>(c + 1) * place));
  }
  std::vector<float> out(q.size());
  const auto queries = contiguous(q.data(), kHeads, rows, kDim);
  const auto keys = contiguous(k.data(), kKeyHeads, rows, kDim);
  const auto values = contiguous(v.data(), kKeyHeads, rows, kDim);
  say("%lld tokens on %d ranks, %lld heads on %lld of keys, d = %lld, causal", static_cast<long long>(n),
      ranks, static_cast<long long>(kHeads), static_cast<long long>(kKeyHeads), static_cast<long long>(kDim));

  fastrope::Options options;
  options.rope = fastrope::Rope{};
  options.mask = fastrope::Mask::causal();
  options.tolerance = tolerance;
  const auto plan = fastrope::mpi::make_plan(MPI_COMM_WORLD, queries, keys, values, options);
  const fastrope::HeadReport& head = plan.heads().front();
  say("planned: head 0 %s, rank %lld, error <= %.2g max|V|; rank 0 sent %lld bytes", to_string(head.path),
      static_cast<long long>(head.rank), head.error_bound, static_cast<long long>(plan.bytes_planned()));

  const auto report = plan.run(queries, keys, values, contiguous(out.data(), kHeads, rows, kDim));
  say("attended: rank 0 sent %lld bytes; its keys and values have %lld",
      static_cast<long long>(report.bytes_sent), static_cast<long long>(4 * (k.size() + v.size())));

  // Some rows again, exactly: queries at positions of their own meet the keys of all ranks.
  const Index some = std::min(kChecked, rows);
  std::vector<Position> positions;
  std::vector<float> some_queries, exact(static_cast<std::size_t>(kHeads * some * kDim));
  for (Index s = 0; s < some; ++s) positions.push_back(first + (rows - 1) * s / std::max<Index>(1, some - 1));
  for (Index h = 0; h < kHeads; ++h)
    for (const Position p : positions) {
      const float* row = queries.head(h).row(p - first);
      some_queries.insert(some_queries.end(), row, row + kDim);
    }
  options.tolerance = 0;
  options.query_positions = positions;
  fastrope::mpi::attend(MPI_COMM_WORLD, contiguous(some_queries.data(), kHeads, some, kDim), keys, values,
                        contiguous(exact.data(), kHeads, some, kDim), options);
  double error = 0, largest = 0;
  for (Index h = 0; h < kHeads; ++h)
    for (Index s = 0; s < some; ++s)
      for (Index c = 0; c < kDim; ++c) {
        const float approximate = out[static_cast<std::size_t>(
            (h * rows + positions[static_cast<std::size_t>(s)] - first) * kDim + c)];
        error = std::max(
            error, static_cast<double>(
                       std::abs(approximate - exact[static_cast<std::size_t>((h * some + s) * kDim + c)])));
      }
  for (const float x : v) largest = std::max(largest, static_cast<double>(std::abs(x)));
  error = largest_of_all(error) / largest_of_all(largest);
  double promised = 0;
  for (const fastrope::HeadReport& each : report.heads) promised = std::max(promised, each.error_bound);
  say("checked: %lld rows of every rank are off by %.2g max|V| at most, promised %.2g",
      static_cast<long long>(some), error, promised);
  return error <= promised ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  int status = 1;
  try {
    status = run(argc > 1 ? std::atoll(argv[1]) : 1000000, argc > 2 ? std::atof(argv[2]) : 1e-2);
  } catch (const std::exception& error) {  // the same on every rank
    if (rank == 0) std::fprintf(stderr, "%s\n", error.what());
  }
  MPI_Finalize();
  return status;
}
