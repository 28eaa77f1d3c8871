// The Toeplitz path: attention of bounded entries whose positions do not separate, by fast Fourier
// transforms.
//
// A lag bias, a mask or a family W(lag) is a function of the lag, so with consecutive positions it is a
// Toeplitz matrix, and each monomial of the polynomial is a rescaled one (Alman & Song 2025, 2505.11892):
//     sum_j T(i-j) P(x_ij) [v_j, 1] = sum_m c_|m| diag(phi_m(q_i)) (T o prod_s W_s^m_s) diag(phi_m(k_j))
//     [v_j, 1], x_ij = sum_s q_i[a_s] W_s(lag) k_j[b_s],   T(lag) = e^b(lag) where the mask allows the lag,
//     else 0.
// Where rotated queries and keys separate (RoPE, no position) the variables are the d columns and W_s = 1:
// C(d+g, g) terms, all with one generator, whose transform is done once. A general W takes a variable for
// each entry of its support, C(|S|+g, g) terms; those whose entries of W are the same up to signs share a
// generator, and a few transformed generators are held at a time. Cost r (d_v + 1) pairs of transforms of
// length >= n_q + n_k - 1, shorter for a window (segments.hpp); tasks are channels of a head. Workspace O(n
// (d
// + d_v)) for each head at work and O(n) for each worker, never n x r. Where the bias is a straight line, a
// state is cheaper (plan/lag_tails.hpp).
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "fastrope/core/index.hpp"
#include "fastrope/core/stored_rows.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/workspace.hpp"
#include "fastrope/exact/attention.hpp"
#include "fastrope/polynomial/attention.hpp"
#include "fastrope/position/relative_weights.hpp"
#include "fastrope/toeplitz/circulant.hpp"
#include "fastrope/toeplitz/head.hpp"
#include "fastrope/toeplitz/segments.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// Attention by rescaled Toeplitz products for some heads over packed keys.
template <class Real>
class ToeplitzAttention {
 public:
  /// segments: of n_q x n_k and the allowed lags; may be null when there are no heads.
  ToeplitzAttention(const Problem& problem, const ToeplitzSegments<Real>* segments,
                    std::span<const ToeplitzHead> heads, Workspace& workspace)
      : heads_(heads), segments_(segments) {
    if (heads.empty()) return;
    for (const ToeplitzHead& head : heads) {
      degree_ = std::max<Index>(degree_, std::ssize(head.low_rank.coefficients) - 1);
      columns_ = std::max(columns_, head.low_rank.projection.variables());
      generators_ = std::max(generators_, std::ssize(head.terms));
    }
    generators_ = std::min(generators_, kGenerators);
    const Index workers = problem.executor.workers();
    of_head_ = WorkerScratch(std::min(workers, std::ssize(heads)), workspace,
                             [&](Workspace& share) { HeadMemory(*this, problem, share); });
    of_worker_ = WorkerScratch(workers, workspace, [&](Workspace& share) { Scratch(*this, problem, share); });
  }

  /// out: [heads, n_q, d_v]. Writes every row of the planned heads. repaired: null or [heads], to which the
  /// rows are added that the exact path computed again.
  void run(const Problem& problem, const PackedKeys<Real>& packed, const ExactAttention<Real>& exact,
           const StoredRows& q, const OutputRows& out, Index* repaired = nullptr) const {
    const Executor& executor = problem.executor;
    const Index workers = executor.workers(), count = std::ssize(heads_);
    const Index n_q = problem.shapes.n_q, channels = problem.shapes.d_v + 1;
    const Index query_blocks = ceil_div(n_q, kBlock), key_blocks = ceil_div(problem.shapes.n_k, kBlock);
    // As many heads at a time as there are workers; tasks are parts of a head.
    for (Index begin = 0; begin < count; begin += workers) {
      const Index batch = std::min(workers, count - begin);
      const auto for_each = [&](Index parts, auto&& task) {
        executor.parallel_for(batch * parts, [&](Index t, Index worker) {
          Workspace share = of_head_.of(t / parts), scratch = of_worker_.of(worker);
          task(heads_[static_cast<std::size_t>(begin + t / parts)], HeadMemory(*this, problem, share),
               t % parts, Scratch(*this, problem, scratch));
        });
      };
      for_each(query_blocks + key_blocks,
               [&](const ToeplitzHead& head, const HeadMemory& m, Index part, const Scratch& s) {
                 if (part < query_blocks)
                   load_queries(problem, packed, head, q, part, m, s);
                 else
                   load_keys(problem, packed, head, part - query_blocks, m, s);
               });
      for_each(1, [&](const ToeplitzHead& head, const HeadMemory& m, Index, const Scratch& s) {
        find_errors(problem, head, m, s);
      });
      const Index width = std::max<Index>(1, batch * channels / (4 * workers));
      for (Index g = 0; g < most_generators(begin, batch); g += generators_) {
        for_each(generators_,
                 [&](const ToeplitzHead& head, const HeadMemory& m, Index part, const Scratch& s) {
                   if (g + part < std::ssize(head.terms))
                     transform_generator(problem, head, g + part, m.spectrum(part), s);
                 });
        for_each(ceil_div(channels, width),
                 [&](const ToeplitzHead& head, const HeadMemory& m, Index part, const Scratch& s) {
                   const Range some{part * width, std::min((part + 1) * width, channels)};
                   for (Index k = 0; k < generators_ && g + k < std::ssize(head.terms); ++k)
                     for (const auto& term : head.terms[static_cast<std::size_t>(g + k)].terms)
                       add_term(problem, head.low_rank, term, m.spectrum(k), some, m, s);
                 });
      }
      executor.parallel_for(batch * query_blocks, [&](Index t, Index worker) {
        Workspace share = of_head_.of(t / query_blocks);
        const ToeplitzHead& head = heads_[static_cast<std::size_t>(begin + t / query_blocks)];
        const Index h = head.low_rank.heads.begin;
        const HeadMemory m(*this, problem, share);
        for (Range rows = block(t % query_blocks, n_q); !rows.empty(); rows.begin += kTile) {
          const Range tile{rows.begin, std::min(rows.begin + kTile, rows.end)};
          if (write(problem, head, tile, m, out)) continue;
          exact.run_task(problem, packed, q, out, {}, {h, tile}, worker);
          if (repaired != nullptr)
            std::atomic_ref(repaired[h]).fetch_add(tile.size(), std::memory_order_relaxed);
        }
      });
    }
  }

 private:
  static constexpr Index kRows = PackedKeys<Real>::kWidth;
  static constexpr Index kTile = QueryBlock<Real>::kTileRows;
  static constexpr Index kBlock = 16 * kTile;  ///< rows of a task
  static_assert(kBlock % kRows == 0);
  /// Transformed generators that are held at a time.
  static constexpr Index kGenerators = 16;

  static Range block(Index part, Index n) { return {part * kBlock, std::min((part + 1) * kBlock, n)}; }

  Index most_generators(Index begin, Index batch) const {
    Index most = 0;
    for (const ToeplitzHead& head :
         heads_.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(batch)))
      most = std::max(most, std::ssize(head.terms));
    return most;
  }

  /// What the tasks of a head share; a vector over all rows is contiguous.
  struct HeadMemory {
    Real* queries;   // [columns, n_q], projected
    Real* keys;      // [columns, n_k], projected
    Real* values;    // [d_v + 1, n_k]: the columns of V times the keys' weights, and the weights
    double* sums;    // [d_v + 1, n_q]
    double* errors;  // [2, degree + 1]: e_p, and 2 u (2 p + 4) |c_p| Y^p
    Real* spectra;   // [generators, buffer_size]
    Index spectrum_size;

    HeadMemory(const ToeplitzAttention& t, const Problem& problem, Workspace& w)
        : queries(w.take<Real>(t.columns_ * problem.shapes.n_q).data()),
          keys(w.take<Real>(t.columns_ * problem.shapes.n_k).data()),
          values(w.take<Real>((problem.shapes.d_v + 1) * problem.shapes.n_k).data()),
          sums(w.take<double>((problem.shapes.d_v + 1) * problem.shapes.n_q).data()),
          errors(w.take<double>(2 * (t.degree_ + 1)).data()),
          spectrum_size(t.segments_->embedding().buffer_size()) {
      spectrum_size = round_up(spectrum_size, kAlignment / sizeof(Real));
      spectra = w.take<Real>(t.generators_ * spectrum_size).data();
    }
    Real* spectrum(Index k) const { return spectra + k * spectrum_size; }
  };

  /// What a task needs for itself.
  struct Scratch {
    Real* panel;       // [sides d, kRows], a block of rows before it is laid out
    Real* shifted;     // [sides d, kRows]
    Real* projected;   // [columns, kRows]
    Real* row_factor;  // [kRows]
    Real* row;         // what packing wants
    Real* generator;   // [lags]
    Real* query_term;  // [n_q]
    Real* key_term;    // [n_k]
    Real* padded;      // [buffer_size]
    Real* other;       // [buffer_size]
    double* norms;     // [kRows]
    double* squares;   // [degree + 1, d_v + 1]

    Scratch(const ToeplitzAttention& t, const Problem& problem, Workspace& w)
        : panel(w.take<Real>(problem.shapes.d * kRows).data()),
          shifted(w.take<Real>(problem.shapes.d * kRows).data()),
          projected(w.take<Real>(t.columns_ * kRows).data()),
          row_factor(w.take<Real>(kRows).data()),
          row(w.take<Real>(PackedKeys<Real>::scratch_size(problem.shapes)).data()),
          generator(w.take<Real>(t.segments_->support().size()).data()),
          query_term(w.take<Real>(problem.shapes.n_q).data()),
          key_term(w.take<Real>(problem.shapes.n_k).data()),
          padded(w.take<Real>(t.segments_->embedding().buffer_size()).data()),
          other(w.take<Real>(t.segments_->embedding().buffer_size()).data()),
          norms(w.take<double>(kRows).data()),
          squares(w.take<double>((t.degree_ + 1) * (problem.shapes.d_v + 1)).data()) {}
  };

  void load_queries(const Problem& problem, const PackedKeys<Real>& packed, const ToeplitzHead& head,
                    const StoredRows& q, Index part, const HeadMemory& m, const Scratch& s) const {
    const LowRankUnit& unit = head.low_rank;
    const Index n_q = problem.shapes.n_q, columns = unit.projection.variables();
    const Range rows = block(part, n_q);
    for (Index i = rows.begin; i < rows.end; i += kRows) {
      const Range some{i, std::min(i + kRows, rows.end)};
      packed.pack_queries(problem, q.head(unit.heads.begin), some, kRows, problem.scale * kLog2E, s.panel,
                          s.row);
      project_queries(unit.projection, problem.scale, kLog2E, kRows, s.panel, kRows, s.shifted, s.projected,
                      s.row_factor);
      for (Index c = 0; c < columns; ++c)
        std::copy_n(s.projected + c * kRows, some.size(), m.queries + c * n_q + i);
    }
    for (Index c = 0; c <= problem.shapes.d_v; ++c)
      std::fill(m.sums + c * n_q + rows.begin, m.sums + c * n_q + rows.end, 0.0);
  }

  void load_keys(const Problem& problem, const PackedKeys<Real>& packed, const ToeplitzHead& head, Index part,
                 const HeadMemory& m, const Scratch& s) const {
    const LowRankUnit& unit = head.low_rank;
    const Index n_k = problem.shapes.n_k, d = problem.shapes.d, d_v = problem.shapes.d_v;
    const Index kv = problem.kv_head(unit.heads.begin), columns = unit.projection.variables();
    const Range rows = block(part, n_k);
    for (Index j = rows.begin; j < rows.end; j += kRows) {
      const Index count = std::min(kRows, rows.end - j);
      std::copy_n(packed.panel(kv, j / kRows), d * kRows, s.shifted);
      if (const Real* shift = packed.key_shift(kv))
        for (Index l = 0; l < d; ++l)
          for (Index i = 0; i < count; ++i) s.shifted[l * kRows + i] += shift[l];
      Real* weight = s.row_factor;
      project_keys(unit.projection, problem.scale, kRows, count, s.shifted, s.projected, kRows, weight);
      for (Index c = 0; c < columns; ++c) std::copy_n(s.projected + c * kRows, count, m.keys + c * n_k + j);
      std::copy_n(weight, count, m.values + d_v * n_k + j);
    }
    const Real* weights = m.values + d_v * n_k;
    for (Index j = rows.begin; j < rows.end; ++j)
      for (Index c = 0; c < d_v; ++c)
        m.values[c * n_k + j] = weights[j] * packed.values(kv)[j * packed.value_stride() + c];
  }

  /// The transform of T(lag) prod_s W_s(lag).
  void transform_generator(const Problem& problem, const ToeplitzHead& head, Index g, Real* spectrum,
                           const Scratch& s) const {
    const LagSupport support = segments_->support();
    const std::vector<Index>& weights = head.terms[static_cast<std::size_t>(g)].weights;
    const Index n_k = problem.shapes.n_k;
    for (Index lag = support.first; lag <= support.last; ++lag) {
      double t = head.generator[static_cast<std::size_t>(lag + n_k - 1)];
      for (const Index w : weights) t *= (*problem.weights)(lag + problem.grid.offset(), w);
      s.generator[lag - support.first] = static_cast<Real>(t);
    }
    segments_->embedding().transform_generator(s.generator, spectrum, s.padded);
  }

  /// sums += coefficient diag(phi(q)) T diag(phi(k)) values, phi the monomial, for some channels.
  void add_term(const Problem& problem, const LowRankUnit& unit, const SharedGenerator::Term& term,
                const Real* spectrum, Range channels, const HeadMemory& m, const Scratch& s) const {
    const Index n_q = problem.shapes.n_q, n_k = problem.shapes.n_k;
    const auto monomials = unit.monomials->terms();
    std::fill_n(s.query_term, n_q, static_cast<Real>(term.coefficient));
    std::fill_n(s.key_term, n_k, Real{1});
    for (const Monomial* x = &monomials[static_cast<std::size_t>(term.monomial)]; x->degree > 0;
         x = &monomials[static_cast<std::size_t>(x->parent)]) {
      const auto [a, b] = columns_of(problem, x->variable);
      simd::multiply_elements(s.query_term, m.queries + a * n_q, n_q, s.query_term);
      simd::multiply_elements(s.key_term, m.keys + b * n_k, n_k, s.key_term);
    }
    const CirculantEmbedding<Real>& embedding = segments_->embedding();
    const SegmentedProduct& parts = segments_->product();
    for (Index c = channels.begin; c < channels.end; ++c)
      for (Index p = 0; p < parts.count(); ++p) {
        const Range window = parts.inputs(p), keys = intersect(window, {0, n_k}), rows = parts.outputs(p);
        const Index at = keys.begin - window.begin;
        std::fill_n(s.padded, at, Real{0});
        simd::multiply_elements(s.key_term + keys.begin, m.values + c * n_k + keys.begin, keys.size(),
                                s.padded + at);
        std::fill(s.padded + at + keys.size(), s.padded + embedding.length(), Real{0});
        const Real* const product = embedding.multiply(spectrum, s.padded, s.other);
        simd::add_products(s.query_term + rows.begin, product, rows.size(), m.sums + c * n_q + rows.begin);
      }
  }

  /// Columns a and b of rows and keys that variable l multiplies.
  static RelativeWeights::Entry columns_of(const Problem& problem, Index l) {
    return problem.weights ? problem.weights->support()[static_cast<std::size_t>(l)]
                           : RelativeWeights::Entry{l, l};
  }

  /// |x_i| or |y_j| of the features of rows [begin, end): to norms [kRows], of columns [columns, n].
  template <class ColumnOf>
  static void feature_norms(Range rows, Index variables, const Real* columns, Index n, ColumnOf&& column_of,
                            double* norms) {
    std::fill_n(norms, rows.size(), 0.0);
    for (Index l = 0; l < variables; ++l) {
      const auto [column, size] = column_of(l);
      const Real* x = columns + column * n;
      for (Index i = rows.begin; i < rows.end; ++i) {
        const double value = size * static_cast<double>(x[i]);
        norms[i - rows.begin] += value * value;
      }
    }
    for (Index i = 0; i < rows.size(); ++i) norms[i] = std::sqrt(norms[i]) * kHigherOrder;
  }

  struct SizedColumn {
    Index column;
    double size;
  };

  /// head.hpp has what they are.
  void find_errors(const Problem& problem, const ToeplitzHead& head, const HeadMemory& m,
                   const Scratch& s) const {
    const LowRankUnit& unit = head.low_rank;
    const Index n_k = problem.shapes.n_k, d_v = problem.shapes.d_v, variables = unit.monomials->variables();
    const Index degrees = std::ssize(unit.coefficients);
    double largest_norm = 0, largest_value = 0;
    std::fill_n(s.squares, degrees * (d_v + 1), 0.0);
    for (Index begin = 0; begin < n_k; begin += kRows) {
      const Range keys{begin, std::min(begin + kRows, n_k)};
      feature_norms(
          keys, variables, m.keys, n_k,
          [&](Index l) {
            return SizedColumn{columns_of(problem, l).b,
                               problem.weights ? head.weight_sizes[static_cast<std::size_t>(l)] : 1.0};
          },
          s.norms);
      for (Index j = keys.begin; j < keys.end; ++j) {
        const double norm = s.norms[j - keys.begin];
        largest_norm = std::max(largest_norm, norm);
        for (Index c = 0; c <= d_v; ++c) {
          const double value = static_cast<double>(m.values[c * n_k + j]);
          if (c < d_v) largest_value = std::max(largest_value, std::abs(value));
          double square = value * value;
          for (Index p = 0; p < degrees; ++p, square *= norm * norm) s.squares[p * (d_v + 1) + c] += square;
        }
      }
    }
    const double u = kUnitRoundoff<Real>,
                 transform = transform_rounding<Real>(problem.shapes) * head.generator_norm;
    double power = 1;
    for (Index p = 0; p < degrees; ++p, power *= largest_norm) {
      const double* square = s.squares + p * (d_v + 1);
      const double numerator = d_v > 0 ? std::sqrt(*std::max_element(square, square + d_v)) : 0;
      const double c = kHigherOrder * std::abs(unit.coefficients[static_cast<std::size_t>(p)]);
      m.errors[p] =
          transform * c * (std::sqrt(square[d_v]) + (largest_value > 0 ? numerator / largest_value : 0));
      m.errors[degrees + p] = 2 * u * static_cast<double>(2 * p + 4) * c * power;
    }
  }

  /// Writes some rows, unless what one is off by is more than is allowed: then returns false.
  bool write(const Problem& problem, const ToeplitzHead& head, Range rows, const HeadMemory& m,
             const OutputRows& out) const {
    const LowRankUnit& unit = head.low_rank;
    const Index n_q = problem.shapes.n_q, d_v = problem.shapes.d_v, degrees = std::ssize(unit.coefficients);
    std::array<double, kTile> norms;
    feature_norms(
        rows, unit.monomials->variables(), m.queries, n_q,
        [&](Index l) {
          return SizedColumn{columns_of(problem, l).a, 1.0};
        },
        norms.data());
    for (Index i = rows.begin; i < rows.end; ++i) {
      if (problem.grid.keys_of(i).empty()) continue;
      const double norm = norms[static_cast<std::size_t>(i - rows.begin)];
      double transforms = 0, features = 0;
      for (Index p = degrees; p-- > 0;) {
        transforms = transforms * norm + m.errors[p];
        features = features * norm + m.errors[degrees + p];
      }
      const double error = transforms + features * head.row_sums[static_cast<std::size_t>(i)];
      if (!(m.sums[d_v * n_q + i] > 0 && error <= unit.allowed * m.sums[d_v * n_q + i])) return false;
    }
    for (Index i = rows.begin; i < rows.end; ++i) {
      const double inverse = problem.grid.keys_of(i).empty() ? 0 : 1 / m.sums[d_v * n_q + i];
      for (Index first = 0; first < d_v; first += kTile) {
        const Index count = std::min(kTile, d_v - first);
        std::array<double, kTile> row;
        for (Index c = 0; c < count; ++c) row[static_cast<std::size_t>(c)] = m.sums[(first + c) * n_q + i];
        out.write<Real>(unit.heads.begin, i, row.data(), inverse, count, first);
      }
    }
    return true;
  }

  std::span<const ToeplitzHead> heads_;
  const ToeplitzSegments<Real>* segments_;
  Index columns_ = 0;  // of projected rows
  Index degree_ = 0;
  Index generators_ = 0;  // held at a time
  WorkerScratch of_head_;
  WorkerScratch of_worker_;
};

}  // namespace fastrope::inline FASTROPE_TARGET
