// Spot check: some rows of a result that is spread over ranks, held against exact ones.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

#include "fastrope/attend/verify.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/stored_rows.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/exact/row_kernels.hpp"
#include "fastrope/mpi/exact_rows.hpp"
#include "fastrope/mpi/exchange.hpp"
#include "fastrope/mpi/layout.hpp"
#include "fastrope/mpi/ranks.hpp"
#include "fastrope/problem/options.hpp"

namespace fastrope::inline FASTROPE_TARGET::mpi::detail {

/// [heads]: the largest |out - exact| / max|V| in `rows` rows of all ranks, as observed_errors has it;
/// collective. x: this rank's tensors, out its results. Types: CallTypes in double. Requires what exact_rows
/// does.
template <class Types>
std::vector<double> observed_errors(const Ranks& ranks, const Layout& layout, const Options& options,
                                    const ExactTensors<double>& x, const StoredRows& v, const StoredRows& out,
                                    Index rows, Traffic& traffic) {
  const Shapes& s = layout.own;
  std::vector<Index> sampled;  // of this rank
  for (Index r = 0; r < rows; ++r) {
    const Index i = r * (layout.whole.n_q - 1) / std::max<Index>(1, rows - 1) - layout.first_query;
    if (0 <= i && i < s.n_q) sampled.push_back(i);
  }
  const std::vector<double> exact = exact_rows<Types>(ranks, layout, options, x, sampled, traffic);
  std::vector<double> errors, sizes;
  const double* expected = exact.data();
  for (Index h = 0; h < s.heads; ++h) {
    double& error = errors.emplace_back(0);
    for (const Index i : sampled) {
      out.head(h).for_each_piece<double>(i, s.d_v, [&](Index c, const double* got, Index count) {
        for (Index e = 0; e < count; ++e)
          error = std::max(error, fastrope::detail::difference(got[e], expected[c + e]));
      });
      expected += s.d_v;
    }
    sizes.push_back(fastrope::detail::largest_value(v.head(h / (s.heads / s.kv_heads)), s));
  }
  ranks.largest(errors);
  ranks.largest(sizes);
  for (std::size_t h = 0; h < errors.size(); ++h)
    if (sizes[h] > 0) errors[h] /= sizes[h];
  return errors;
}

}  // namespace fastrope::inline FASTROPE_TARGET::mpi::detail
