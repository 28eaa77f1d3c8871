// The way back from monomials to rows: against differences of what is summed on the way there.
#include "fastrope/gradient/feature_rows.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <vector>

#include "support/inputs.hpp"

namespace fastrope_test {
namespace {

using fastrope::FeatureRows;
using fastrope::Index;
using fastrope::MonomialSet;
using fastrope::MonomialSums;
using fastrope::Workspace;

TEST(FeatureRowsTest, PullsBackTheGradientOfWhatItSums) {
  constexpr Index kWidth = FeatureRows::kWidth;
  for (const Index variables : {1, 3, 6})
    for (const int degree : {0, 1, 4})
      for (const Index channels : {1, 9, 30}) {
        const MonomialSet set(fastrope::simplex_limits(variables, degree));
        const auto room = fastrope::round_up(channels, fastrope::kRowMultiple) * kWidth;
        std::vector<std::byte> memory(Workspace::bytes_of([&](Workspace& w) {
                                        FeatureRows(set, w);
                                        MonomialSums(set.rank(), channels, w);
                                        w.take<double>(2 * room + 2 * variables * kWidth);
                                      }) +
                                      4 * fastrope::kAlignment);
        Workspace workspace(memory);
        const FeatureRows features(set, workspace);
        const MonomialSums sums(set.rank(), channels, workspace);
        double *const totals = workspace.take<double>(room).data(),
                      *const g = workspace.take<double>(room).data(),
                      *const x = workspace.take<double>(variables * kWidth).data(),
                      *const gradient = workspace.take<double>(variables * kWidth).data();
        Inputs random(static_cast<std::uint64_t>(201 + variables));
        std::vector<double> factors;
        for (Index t = 0; t < set.rank(); ++t) factors.push_back(random.uniform(-1, 1));
        for (Index m = 0; m < sums.size; ++m) sums.data[m] = random.uniform(-1, 1);
        for (Index m = 0; m < channels * kWidth; ++m) g[m] = random.uniform(-1, 1);
        for (Index m = 0; m < variables * kWidth; ++m) x[m] = random.uniform(-1, 1);
        const auto value = [&](Index lane) {
          features.make(x);
          features.apply(factors, sums, totals);
          double sum = 0;
          for (Index c = 0; c < channels; ++c) sum += g[c * kWidth + lane] * totals[c * kWidth + lane];
          return sum;
        };
        features.make(x);
        features.pull_back(factors, sums, g, x, gradient);
        for (Index m = 0; m < variables * kWidth; m += 5) {
          constexpr double kStep = 1e-5;
          const double at = x[m];
          x[m] = at + kStep;
          const double above = value(m % kWidth);
          x[m] = at - kStep;
          const double difference = (above - value(m % kWidth)) / (2 * kStep);
          x[m] = at;
          EXPECT_NEAR(gradient[m], difference, 1e-6 * (1 + std::abs(difference)))
              << variables << " variables, degree " << degree << ", " << channels << " channels, " << m;
        }
      }
}

}  // namespace
}  // namespace fastrope_test
