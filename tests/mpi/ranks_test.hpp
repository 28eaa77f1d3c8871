// Programs that test fastrope::mpi on as many ranks as they are started with: what ranks expect, and how rows
// are spread. A watchdog ends what hangs.
#pragma once

#include <mpi.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <iterator>
#include <string>
#include <vector>

#include "fastrope/core/error.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/tensor_view.hpp"
#include "fastrope/plan/head_report.hpp"
#include "support/attention_case.hpp"
#include "support/tensor.hpp"

namespace fastrope_test {

using fastrope::Error;
using fastrope::Options;
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

/// The options of a case for some of its rows.
struct OwnOptions {
  std::vector<Range> ranges = {};  // what options refer to
  Options options;

  OwnOptions(const AttentionCase& c, Range queries, Range keys) : options(c.options()) {
    const auto some = [](auto all, Range rows) {
      return all.empty()
                 ? all
                 : all.subspan(static_cast<std::size_t>(rows.begin), static_cast<std::size_t>(rows.size()));
    };
    options.query_positions = some(options.query_positions, queries);
    options.key_positions = some(options.key_positions, keys);
    const auto columns = [](auto& view, Range cols) {
      if (view.rows > 0) view = {view.data + cols.begin, view.rows, cols.size(), view.row_stride};
    };
    columns(options.query_section_positions, queries);
    columns(options.key_section_positions, keys);
    columns(options.log_gates, keys);
    columns(options.log_input_gates, keys);
    if (options.key_ranges.given()) {
      const Index m = options.key_ranges.per_row, n_q = c.shapes.n_q;
      for (Index h = 0; h < std::ssize(options.key_ranges.ranges) / (n_q * m); ++h)
        for (Index r = (h * n_q + queries.begin) * m; r < (h * n_q + queries.end) * m; ++r)
          ranges.push_back(options.key_ranges.ranges[static_cast<std::size_t>(r)]);
      options.key_ranges.ranges = ranges;
    }
    if (options.dense_bias.data != nullptr) {
      TensorView<const float> bias = options.dense_bias.as<float>();
      bias.data += queries.begin * bias.row_stride;
      bias.rows = queries.size();
      options.dense_bias = bias;
    }
  }
};

/// The largest difference in a head's rows.
template <class T>
double error_of(Index h, const TensorView<T>& out, const TensorView<const double>& expected) {
  double error = 0;
  for (Index i = 0; i < out.rows; ++i)
    for (Index e = 0; e < out.cols; ++e)
      error = std::max(error, std::abs(static_cast<double>(out.head(h)(i, e)) - expected.head(h)(i, e)));
  return error;
}

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
