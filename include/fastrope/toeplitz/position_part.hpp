// PositionPart: what of RoPE logits depends on the lag alone.
//
// With a and b any fixed vectors, such as the means of the queries and keys before rotation,
//     (R_i q).(R_j k) = (R_i a).(R_j b) + (R_i (q - a)).(R_j k) + (R_i a).(R_j (k - b)),
// and the first term is a function of i - j: s times it goes into the Toeplitz factor. What is left are dot
// products of 2 d columns,
//     x = [R_i (q - a), c R_i a],  y = [R_j k, R_j (k - b) / c],
// at most |q - a| |k| + |a| |k - b| for the best c: small where rows are close to their means, whatever those
// are. No approximation is made here.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/measure/rows.hpp"
#include "fastrope/position/rotation.hpp"
#include "fastrope/problem/problem.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// a, b and c for one head; the vectors' elements are numbers of the arithmetic type.
struct PositionPart {
  std::vector<double> query;  ///< a, [d]
  std::vector<double> key;    ///< b, [d]
  double balance = 1;         ///< c
};

/// Rows whose angles are looked up together.
inline constexpr Index kTurnedRows = 64;

/// mean, turned by the angles of position_of(i): row(i, x) for i in rows, x [d]. table: [kTurnedRows,
/// row_size], x: [d], both scratch.
template <class Real, class PositionOf, class Row>
void turn_mean(const Rotation& rotation, const std::vector<double>& mean, Range rows,
               PositionOf&& position_of, Real* table, Real* x, Row&& row) {
  for (Index begin = rows.begin; begin < rows.end; begin += kTurnedRows) {
    const Range some{begin, std::min(begin + kTurnedRows, rows.end)};
    rotation.fill(some, position_of, table);
    for (Index i = some.begin; i < some.end; ++i) {
      for (std::size_t c = 0; c < mean.size(); ++c) x[c] = static_cast<Real>(mean[c]);
      rotation.apply(table + (i - begin) * rotation.row_size(), x);
      row(i, x);
    }
  }
}

/// s (R_i a).(R_j b) at lag i - j, for the lags first, first + 1, ..: [count].
inline std::vector<double> position_logits(const Problem& problem, const PositionPart& part, Position first,
                                           Index count) {
  const Rotation& rotation = problem.rotation;
  std::vector<double> table(static_cast<std::size_t>(kTurnedRows * rotation.row_size())), x(part.key.size()),
      b, logits;
  turn_mean(
      rotation, part.key, {0, 1}, [](Index) { return Position{0}; }, table.data(), x.data(),
      [&](Index, const double* turned) { b.assign(turned, turned + part.key.size()); });
  turn_mean(
      rotation, part.query, {0, count}, [&](Index m) { return first + m; }, table.data(), x.data(),
      [&](Index, const double* a) {
        double dot = 0;
        for (std::size_t c = 0; c < b.size(); ++c) dot += a[c] * b[c];
        logits.push_back(problem.scale * dot);
      });
  return logits;
}

/// At least all |s (R_i a).(R_j b)|.
inline double position_logit_bound(const Problem& problem, const PositionPart& part) {
  const auto square = [](const std::vector<double>& x) {
    double sum = 0;
    for (const double element : x) sum += element * element;
    return sum;
  };
  const double gain = std::max(1.0, problem.rotation.frequencies().attention_factor);
  return std::abs(problem.scale) * gain * gain * std::sqrt(square(part.query) * square(part.key));
}

/// x or y, [n, 2 d], of rows [n, d]. The problem must outlive it.
template <class Real>
RowSource<Real> without_position_part(const Problem& problem, const PositionPart& part, bool of_queries,
                                      const RowSource<Real>& rows) {
  const auto read = [&problem, part, of_queries, rows](Range range, bool turned, Real* to) {
    const Index d = rows.d;
    turned = turned || problem.rotation.frequencies().attention_factor != 1;
    std::vector<Real> row_by_row(static_cast<std::size_t>(range.size() * d)), x(static_cast<std::size_t>(d)),
        table(static_cast<std::size_t>(kTurnedRows * problem.rotation.row_size()));
    rows.read(range, turned, row_by_row.data());
    const auto c = static_cast<Real>(part.balance);
    const auto write = [&](Index i, const Real* a) {
      const Real* row = row_by_row.data() + (i - range.begin) * d;
      Real* columns = to + (i - range.begin) * 2 * d;
      for (Index m = 0; m < d; ++m) {
        columns[m] = of_queries ? row[m] - a[m] : row[m];
        columns[d + m] = of_queries ? c * a[m] : (row[m] - a[m]) / c;
      }
    };
    const std::vector<double>& mean = of_queries ? part.query : part.key;
    const LagGrid& grid = problem.grid;
    // Where the rows are not turned, neither is the mean: lengths are the same.
    const auto position = [&](Index i) {
      return !turned ? 0 : of_queries ? grid.query_position(i) : grid.key_position(i);
    };
    turn_mean(problem.rotation, mean, range, position, table.data(), x.data(), write);
  };
  return {rows.count, 2 * rows.d, read};
}

}  // namespace fastrope::inline FASTROPE_TARGET
