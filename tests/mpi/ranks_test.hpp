// Programs that test fastrope::mpi on as many ranks as they are started with: what ranks expect, and how rows
// are spread. A watchdog ends what hangs.
#pragma once

#include <mpi.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "fastrope/core/error.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/tensor_view.hpp"
#include "fastrope/plan/head_report.hpp"
#include "support/tensor.hpp"

namespace fastrope_test {

using fastrope::Error;
using fastrope::Range;
using fastrope::TensorView;

inline int rank = 0, ranks = 1, failures = 0;

inline void expect(bool holds, const std::string& what) {
  if (holds) return;
  std::fprintf(stderr, "rank %d of %d: %s\n", rank, ranks, what.c_str());
  ++failures;
}

/// How rows are spread: the part of each rank is in proportion to weight(rank).
using Spread = std::function<double(int)>;
inline Range part_of(Index n, const Spread& weight) {
  double before = 0, own = 0, all = 0;
  for (int r = 0; r < ranks; ++r) {
    if (r < rank) before += weight(r);
    if (r == rank) own = weight(r);
    all += weight(r);
  }
  const auto at = [&](double share) {
    return static_cast<Index>(share / all * static_cast<double>(n) + 0.5);
  };
  return {at(before), at(before + own)};
}

template <class T>
TensorView<const T> part(const Tensor<T>& x, Range some) {
  return rows(TensorView<const T>(x.view()), some);
}

inline const Spread kEven = [](int) { return 1.0; };
inline const Spread kGrowing = [](int r) { return 1.0 + r; };
inline const Spread kSecond = [](int r) { return r == (ranks > 1 ? 1 : 0) ? 1.0 : 0.0; };  // others have none
inline const Spread kAlternating = [](int r) { return r % 2 == 0 ? 1.0 : 0.01; };

/// Every rank has the same numbers in its report.
inline void expect_same_plan(const std::vector<fastrope::HeadReport>& heads, const std::string& what) {
  std::vector<double> numbers;
  for (const fastrope::HeadReport& head : heads)
    for (const double x : {static_cast<double>(head.path), head.entry_bound, static_cast<double>(head.rank),
                           head.error_bound, head.rounding, static_cast<double>(head.repaired_rows),
                           static_cast<double>(head.verified_rows), head.observed_error})
      numbers.push_back(std::isnan(x) ? -1 : x);
  std::vector<double> first = numbers;
  MPI_Bcast(first.data(), static_cast<int>(first.size()), MPI_DOUBLE, 0, MPI_COMM_WORLD);
  expect(first == numbers, what + ": two reports");
}

/// f() throws the same Error, with this in it, on every rank.
inline void refused(const std::string& text, const std::function<void()>& f) {
  std::string message = "no Error";
  try {
    f();
  } catch (const Error& error) {
    message = error.what();
  }
  expect(message.find(text) != std::string::npos, "'" + text + "' expected: " + message);
  char first[512] = {};
  std::snprintf(first, sizeof first, "%s", message.c_str());
  MPI_Bcast(first, sizeof first, MPI_CHAR, 0, MPI_COMM_WORLD);
  expect(message == first, "two messages: " + message + " and " + first);
}

/// Between MPI's begin and end; 0 where no rank has failed.
inline int run_on_ranks(int argc, char** argv, const std::function<void()>& tests) {
  MPI_Init(&argc, &argv);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  alarm(240);
  tests();
  int all = 0;
  MPI_Allreduce(&failures, &all, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
  if (rank == 0) std::printf("%d ranks: %d failures\n", ranks, all);
  MPI_Finalize();
  return all == 0 ? 0 : 1;
}

}  // namespace fastrope_test
