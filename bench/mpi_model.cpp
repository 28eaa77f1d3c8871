// Attention over MPI ranks: what a second rank gains, and a model of the time with constants measured here.
//
//     mpirun -n 2 mpi_model [tokens] [ranks to predict for]
//
// Prints, for float, exact (one head, d = 64), by states (16 heads, d = 8), full and causal, and by heads
// (16: transforms with ALiBi, d = 4, and the kernel x^2, d = 16): seconds of one rank that has the whole
// sequence (T1, while the others wait), of all ranks together, the speed-up, and the bytes that a rank sends.
// Then latency and bandwidth between ranks 0 and 1, and what the model makes of them:
//     exact   T1 / P                                    transfers are behind arithmetic as long as
//                                                       n d-bytes / bandwidth < T1 / P
//     full    T1 / P + 2 log2 P (latency + S / bandwidth)   S: bytes of the states
//     causal  T1 / P (1 + share) + log2 P (latency + S / bandwidth)   share: of adding keys a second time
//     heads   T1 / min(P, heads) + bytes of q, k, v and out / (P bandwidth)
// Medians of 5 runs. With more ranks than cores nothing here means anything.
#include <mpi.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fastrope/mpi.hpp>
#include <functional>
#include <random>
#include <utility>
#include <vector>

namespace {

using fastrope::contiguous;
using fastrope::Index;
using fastrope::Mask;
using fastrope::Options;

int rank = 0, ranks = 1;
constexpr int kRuns = 5;
double waited = 0;  // seconds in MPI_Wait and MPI_Waitall

template <class Wait>
int timed(Wait&& wait) {
  const double begin = MPI_Wtime();
  const int error = wait();
  waited += MPI_Wtime() - begin;
  return error;
}

/// Of the slowest rank of comm.
double seconds(MPI_Comm comm, const std::function<void()>& f) {
  std::array<double, kRuns> times;
  for (double& time : times) {
    MPI_Barrier(comm);
    time = -MPI_Wtime();
    f();
    time += MPI_Wtime();
    MPI_Allreduce(MPI_IN_PLACE, &time, 1, MPI_DOUBLE, MPI_MAX, comm);
  }
  std::sort(times.begin(), times.end());
  return times[kRuns / 2];
}

struct Times {
  double one, all, waited;
  Index bytes;
};

/// A sequence of n tokens: on rank 0 alone, and on all ranks.
Times attend(Index n, Index heads, Index d, const Options& options) {
  const auto run = [&](MPI_Comm comm, Index rows, Index& bytes) {
    std::mt19937 random(1);
    std::normal_distribution<float> normal(0, 0.25F);
    std::vector<float> q(static_cast<std::size_t>(heads * rows * d)), k(q.size()), v(q.size()), out(q.size());
    for (std::vector<float>* x : {&q, &k, &v})
      for (float& e : *x) e = normal(random);
    const auto view = [&](auto& x) { return contiguous(x.data(), heads, rows, d); };
    const auto plan = fastrope::mpi::make_plan(comm, view(std::as_const(q)), view(std::as_const(k)),
                                               view(std::as_const(v)), options);
    return seconds(comm, [&] {
      bytes = plan.run(view(std::as_const(q)), view(std::as_const(k)), view(std::as_const(v)), view(out))
                  .bytes_sent;
    });
  };
  Times times = {};
  if (rank == 0) times.one = run(MPI_COMM_SELF, n, times.bytes);
  MPI_Bcast(&times.one, 1, MPI_DOUBLE, 0, MPI_COMM_WORLD);
  waited = 0;
  times.all = run(MPI_COMM_WORLD, n / ranks, times.bytes);
  times.waited = waited / kRuns;
  MPI_Allreduce(MPI_IN_PLACE, &times.waited, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
  return times;
}

/// Seconds for so many bytes from rank 0 to rank 1.
double transfer(std::size_t bytes, int repeats) {
  std::vector<char> data(bytes);
  const int size = static_cast<int>(bytes);
  return seconds(MPI_COMM_WORLD,
                 [&] {
                   for (int r = 0; r < repeats; ++r) {
                     if (rank == 0) {
                       MPI_Send(data.data(), size, MPI_CHAR, 1, 0, MPI_COMM_WORLD);
                       MPI_Recv(data.data(), size, MPI_CHAR, 1, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
                     } else if (rank == 1) {
                       MPI_Recv(data.data(), size, MPI_CHAR, 0, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
                       MPI_Send(data.data(), size, MPI_CHAR, 0, 0, MPI_COMM_WORLD);
                     }
                   }
                 }) /
         (2 * repeats);
}

void run(Index n, double many) {
  if (rank == 0) std::printf("%lld tokens, %d ranks\n", static_cast<long long>(n), ranks);
  enum class Kind { pieces, states_full, states_causal, heads };
  struct Row {
    const char* name;
    Index heads, d;
    Kind kind;
    Options options;
    Times times = {};
  };
  const Mask causal = Mask::causal();
  std::array<Row, 6> rows = {
      {{"exact full", 1, 64, Kind::pieces, {}},
       {"exact causal", 1, 64, Kind::pieces, {.mask = causal}},
       {"states full", 16, 8, Kind::states_full, {.tolerance = 1e-2}},
       {"states causal", 16, 8, Kind::states_causal, {.mask = causal, .tolerance = 1e-2}},
       {"transforms",
        16,
        4,
        Kind::heads,
        {.mask = causal,
         .bias = fastrope::LagBias::alibi({0.001}),
         .tolerance = 1e-2,
         .path = fastrope::Path::toeplitz}},
       {"x^2 causal", 16, 16, Kind::heads, {.mask = causal, .kernel = fastrope::Kernel::power(2)}}}};
  for (Row& row : rows) {
    row.times = attend(n, row.heads, row.d, row.options);
    if (rank == 0)
      std::printf("%-14s one rank %9.4f s  all %9.4f s  speed-up %5.2f  sent %lld bytes  waited %.4f s\n",
                  row.name, row.times.one, row.times.all, row.times.one / row.times.all,
                  static_cast<long long>(row.times.bytes), row.times.waited);
  }
  if (ranks < 2) return;
  constexpr std::size_t kLarge = std::size_t{1} << 24;
  const double latency = transfer(8, 1000), bandwidth = kLarge / transfer(kLarge, 4);
  const double share = std::max(0.0, rows[3].times.all * ranks / rows[3].times.one - 1);
  if (rank != 0) return;
  std::printf("latency %.2g us, bandwidth %.3g GB/s, causal states do %.2f more work\n", latency * 1e6,
              bandwidth * 1e-9, share);
  std::printf("predicted for %g ranks of such cores and such a network:\n", many);
  for (const Row& row : rows) {
    const double all_bytes = static_cast<double>(8 * n * row.heads * row.d),
                 moved = static_cast<double>(row.times.bytes) / bandwidth;
    double arithmetic = row.times.one / many, sent = 0;
    switch (row.kind) {
      case Kind::pieces:
        sent = all_bytes / bandwidth;
        break;
      case Kind::states_full:
        sent = 2 * std::log2(many) * (latency + moved);
        break;
      case Kind::states_causal:
        arithmetic *= 1 + share;
        sent = std::log2(many) * (latency + moved);
        break;
      case Kind::heads:
        arithmetic = row.times.one / std::min(many, static_cast<double>(row.heads));
        sent = 2 * all_bytes / (many * bandwidth);
    }
    const double time = row.kind == Kind::pieces ? std::max(arithmetic, sent) : arithmetic + sent;
    std::printf("%-14s %9.5f s, speed-up %5.1f (arithmetic %.5f s, transfer %.5f s)\n", row.name, time,
                row.times.one / time, arithmetic, sent);
  }
}

}  // namespace

// MPI's profiling interface: these take the place of MPI's own, which PMPI_ names.
extern "C" int MPI_Wait(MPI_Request* request, MPI_Status* status) {
  return timed([&] { return PMPI_Wait(request, status); });
}
extern "C" int MPI_Waitall(int count, MPI_Request* requests, MPI_Status* statuses) {
  return timed([&] { return PMPI_Waitall(count, requests, statuses); });
}

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  int status = 0;
  try {
    run(argc > 1 ? std::atoll(argv[1]) : 32768, argc > 2 ? std::atof(argv[2]) : 64);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "rank %d: %s\n", rank, error.what());
    status = 1;
  }
  MPI_Finalize();
  return status;
}
