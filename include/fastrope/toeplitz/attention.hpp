// The Toeplitz path: attention of bounded entries whose positions do not separate, by fast Fourier
// transforms.
//
// A lag bias, a mask or a family W(lag) is a function of the lag, so with consecutive positions it is a
// Toeplitz matrix, and each monomial of the polynomial is a rescaled one (Alman & Song 2025, 2505.11892):
//     sum_j T(i-j) P(x_ij) [v_j, 1] = sum_m c_|m| diag(phi_m(q_i)) (T o prod_s W_s^m_s) diag(phi_m(k_j))
//     [v_j, 1], x_ij = sum_s q_i[a_s] W_s(lag) k_j[b_s],   T(lag) = e^b(lag) where the mask allows the lag,
//     else 0.
// Where rotated queries and keys separate (RoPE, no position) the variables are the d columns and W_s = 1:
// C(d+g, g) terms, all with one generator. A general W takes a variable for each entry of its support:
// C(|S|+g, g) terms, a generator each. Terms come depth first, so only the ancestors' vectors are held: O(g
// n) memory, never n x r. Cost r (d_v + 1) pairs of transforms of length >= n_q + n_k - 1; workspace O(n (d +
// d_v + g)) per worker.
//
// Guarantee: beside the polynomial's certificate, the transforms' rounding is bounded for each row.
// With eps_F the error of a product relative to |t|_2 |x|_2 (circulant.hpp), numerators and denominators are
// off by at most E max|V| and E,
//     E = eps_F |t|_2 sqrt(n_k) sum_p |c_p| R^p
// (Cauchy-Schwarz over the terms of a degree: sum_m phi_m(x)^2 = |x|^2p), and the denominator is at least
// D_i = (1 - delta) e^-R sum_j T(i-j). With rho_i = E / D_i the output moves by at most 2 rho_i / (1 - rho_i)
// max|V|. Rows where that breaks the tolerance (the first ones of a causal mask) are done by the exact path.
#pragma once

#include <algorithm>
#include <cmath>
#include <complex>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "fastrope/core/index.hpp"
#include "fastrope/core/workspace.hpp"
#include "fastrope/exact/attention.hpp"
#include "fastrope/polynomial/attention.hpp"
#include "fastrope/toeplitz/circulant.hpp"

namespace fastrope {

/// What the Toeplitz path needs to know of one head: found by the planner.
struct ToeplitzHead {
  LowRankUnit low_rank;           ///< of one head
  std::vector<double> generator;  ///< lag_generator
};

/// T's generator for one head, divided by its largest value: [n_q + n_k - 1], index lag - offset + n_k - 1.
inline std::vector<double> lag_generator(const Problem& problem, Index head) {
  const LagGrid& grid = problem.grid;
  const LagGrid::Lags lags = grid.allowed_lags();
  const auto bias = [&](Position lag) { return problem.bias.empty() ? 0 : problem.bias(head, lag); };
  double largest = -std::numeric_limits<double>::infinity();
  for (Position lag = lags.first; lag <= lags.last; ++lag) largest = std::max(largest, bias(lag));
  std::vector<double> generator(static_cast<std::size_t>(std::max<Index>(0, grid.n_q() + grid.n_k() - 1)));
  for (Position lag = lags.first; lag <= lags.last; ++lag)
    generator[static_cast<std::size_t>(lag - grid.offset() + grid.n_k() - 1)] = std::exp(bias(lag) - largest);
  return generator;
}

/// Why the Toeplitz path cannot compute this problem at any tolerance; empty when it can.
inline std::string toeplitz_refusal(const Problem& problem) {
  if (!problem.grid.consecutive())
    return "positions are not consecutive, so lags do not make a Toeplitz matrix";
  if (problem.softcap > 0) return "softcap is not a polynomial of the dot product";
  if (!problem.sinks.empty()) return "attention sinks are done by the exact path";
  if (problem.is_dense()) return "a dense bias or mask is not a function of the lag";
  return {};
}

/// A bound on the transforms' part of each row's error, relative to max|V|: 2 rho_i / (1 - rho_i), infinity
/// where rho_i >= 1 or the row has no keys. `amplification` is sum_p |c_p| F^p, F >= R the bound on the
/// features' norms (for a general W that of q^ and k^ in WeightedBounds, which carry max|W_s|). Result:
/// [n_q].
template <class Real>
std::vector<double> transform_error(const Problem& problem, std::span<const double> generator, double radius,
                                    double delta, double amplification) {
  const Index n_q = problem.shapes.n_q, n_k = problem.shapes.n_k;
  std::vector<double> prefix{0};
  double energy = 0;
  for (double t : generator) {
    prefix.push_back(prefix.back() + t);
    energy += t * t;
  }
  const double length = static_cast<double>(fft_length(std::max<Index>(1, n_q + n_k - 1)));
  const double eps_f = 10 * std::numeric_limits<Real>::epsilon() * (1 + std::log2(length));
  const double error = eps_f * std::sqrt(energy * static_cast<double>(n_k)) * amplification;
  // What the running sum may be off by.
  const double slack =
      prefix.back() * std::numeric_limits<double>::epsilon() * static_cast<double>(prefix.size());
  std::vector<double> bounds;
  for (Index i = 0; i < n_q; ++i) {
    const double sum =
        prefix[static_cast<std::size_t>(i + n_k)] - prefix[static_cast<std::size_t>(i)] - slack;
    const double rho = sum > 0 ? error / ((1 - delta) * std::exp(-radius) * sum) : 1;
    bounds.push_back(rho < 1 ? 2 * rho / (1 - rho) : std::numeric_limits<double>::infinity());
  }
  return bounds;
}

/// Attention by rescaled Toeplitz products for some heads over packed keys.
template <class Real>
class ToeplitzAttention {
 public:
  using Complex = std::complex<Real>;

  /// embedding: of n_q x n_k; may be null when there are no heads.
  ToeplitzAttention(const Problem& problem, const CirculantEmbedding<Real>* embedding,
                    std::span<const ToeplitzHead> heads, Workspace& workspace)
      : heads_(heads), embedding_(embedding) {
    if (heads.empty()) return;
    for (const ToeplitzHead& head : heads) {
      degree_ = std::max<Index>(degree_, head.low_rank.monomials->degree());
      columns_ = std::max(columns_, head.low_rank.projection.variables());
    }
    scratch_ = WorkerScratch(problem.executor.workers(), workspace,
                             [&](Workspace& share) { buffers(problem, share); });
  }

  /// out: [heads, n_q, d_v]. Writes every row of the planned heads; the rows whose bound is too large hold no
  /// meaning until the exact path has written them.
  template <class Q, class Out>
  void run(const Problem& problem, const PackedKeys<Real>& packed, TensorView<const Q> q,
           TensorView<Out> out) const {
    problem.executor.parallel_for(static_cast<Index>(heads_.size()), [&](Index task, Index worker) {
      const auto& [unit, generator] = heads_[static_cast<std::size_t>(task)];
      const Index head = unit.heads.begin;
      Workspace share = scratch_.of(worker);
      const Buffers b = buffers(problem, share);
      load(problem, packed, unit, q.head(head), b);
      for (std::size_t m = 0; m < generator.size(); ++m) b.generators[m] = static_cast<Real>(generator[m]);
      embedding_->transform_generator(b.generators, b.padded, b.spectrum);
      for (const Monomial& term : unit.monomials->terms()) add_term(problem, unit, term, b);
      write(problem, out.head(head), b);
    });
  }

 private:
  static constexpr Index kRows = PackedKeys<Real>::kWidth;

  /// One worker's scratch; a vector over all rows is contiguous.
  struct Buffers {
    Real* panel;         // [d, kRows], a block of rows before it is laid out
    Real* shifted;       // [d, kRows]
    Real* projected;     // [columns, kRows]
    Real* row_factor;    // [kRows]
    Real* row;           // what packing wants
    Real* queries;       // [columns, n_q]
    Real* keys;          // [columns, n_k]
    Real* values;        // [d_v + 1, n_k], the last all ones
    Real* query_terms;   // [degree + 1, n_q]: phi of the current term's ancestors
    Real* key_terms;     // [degree + 1, n_k]
    Real* generators;    // [degree + 1 or 1, n_q + n_k - 1]: products of the term's W_s
    Complex* spectrum;   // [spectrum_size], of the current generator
    Real* padded;        // [N]
    Real* product;       // [N]
    Complex* transform;  // [spectrum_size]
    Real* sums;          // [d_v + 1, n_q]
  };

  Buffers buffers(const Problem& problem, Workspace& w) const {
    const Index n_q = problem.shapes.n_q, n_k = problem.shapes.n_k, d = problem.shapes.d,
                d_v = problem.shapes.d_v;
    const Index levels = degree_ + 1;
    return {.panel = w.take<Real>(d * kRows).data(),
            .shifted = w.take<Real>(d * kRows).data(),
            .projected = w.take<Real>(columns_ * kRows).data(),
            .row_factor = w.take<Real>(kRows).data(),
            .row = w.take<Real>(PackedKeys<Real>::scratch_size(problem.shapes)).data(),
            .queries = w.take<Real>(columns_ * n_q).data(),
            .keys = w.take<Real>(columns_ * n_k).data(),
            .values = w.take<Real>((d_v + 1) * n_k).data(),
            .query_terms = w.take<Real>(levels * n_q).data(),
            .key_terms = w.take<Real>(levels * n_k).data(),
            .generators = w.take<Real>((problem.weights ? levels : 1) * (n_q + n_k)).data(),
            .spectrum = w.take<Complex>(embedding_->spectrum_size()).data(),
            .padded = w.take<Real>(embedding_->length()).data(),
            .product = w.take<Real>(embedding_->length()).data(),
            .transform = w.take<Complex>(embedding_->spectrum_size()).data(),
            .sums = w.take<Real>((d_v + 1) * n_q).data()};
  }

  /// Projected queries and keys, values, and the empty term.
  template <class Q>
  void load(const Problem& problem, const PackedKeys<Real>& packed, const LowRankUnit& unit,
            MatrixView<const Q> q, const Buffers& b) const {
    const Index n_q = problem.shapes.n_q, n_k = problem.shapes.n_k, d = problem.shapes.d,
                d_v = problem.shapes.d_v;
    const Index kv = problem.kv_head(unit.heads.begin), columns = unit.projection.variables();
    for (Index i = 0; i < n_q; i += kRows) {
      const Range rows{i, std::min(i + kRows, n_q)};
      packed.pack_queries(problem, q, rows, kRows, problem.scale * kLog2E, b.panel, b.row);
      project_queries(unit.projection, problem.scale, kLog2E, kRows, b.panel, kRows, b.shifted, b.projected,
                      b.row_factor);
      for (Index c = 0; c < columns; ++c)
        std::copy_n(b.projected + c * kRows, rows.size(), b.queries + c * n_q + i);
    }
    for (Index j = 0; j < n_k; j += kRows) {
      const Index count = std::min(kRows, n_k - j);
      std::copy_n(packed.panel(kv, j / kRows), d * kRows, b.shifted);
      project_keys(unit.projection, problem.scale, kRows, count, b.shifted, b.projected, kRows, b.row_factor);
      for (Index c = 0; c < columns; ++c) std::copy_n(b.projected + c * kRows, count, b.keys + c * n_k + j);
      std::copy_n(b.row_factor, count, b.key_terms + j);  // the empty term: the keys' weights
    }
    for (Index j = 0; j < n_k; ++j)
      for (Index c = 0; c < d_v; ++c)
        b.values[c * n_k + j] = packed.values(kv)[j * packed.value_stride() + c];
    std::fill_n(b.values + d_v * n_k, n_k, Real{1});
    std::fill_n(b.query_terms, n_q, Real{1});
    std::fill_n(b.sums, (d_v + 1) * n_q, Real{0});
  }

  /// sums += c_|m| diag(phi_m(q)) T_m diag(phi_m(k)) [values, 1]. The term's parent is the last one of the
  /// degree below.
  void add_term(const Problem& problem, const LowRankUnit& unit, const Monomial& term,
                const Buffers& b) const {
    const Index n_q = problem.shapes.n_q, n_k = problem.shapes.n_k;
    const Index level = term.degree;
    Real* query_term = b.query_terms + level * n_q;
    Real* key_term = b.key_terms + level * n_k;
    if (level > 0) {
      const auto [a, c] = problem.weights
                              ? problem.weights->support()[static_cast<std::size_t>(term.variable)]
                              : RelativeWeights::Entry{term.variable, term.variable};
      for (Index i = 0; i < n_q; ++i) query_term[i] = query_term[i - n_q] * b.queries[a * n_q + i];
      for (Index j = 0; j < n_k; ++j) key_term[j] = key_term[j - n_k] * b.keys[c * n_k + j];
      if (problem.weights) raise_generator(problem, term, b);
    }
    const auto coefficient =
        static_cast<Real>(unit.coefficients[static_cast<std::size_t>(level)] * term.multinomial);
    std::fill(b.padded + n_k, b.padded + embedding_->length(), Real{0});
    for (Index c = 0; c <= problem.shapes.d_v; ++c) {
      const Real* values = b.values + c * n_k;
      for (Index j = 0; j < n_k; ++j) b.padded[j] = key_term[j] * values[j];
      embedding_->multiply(b.spectrum, b.padded, b.product, b.transform);
      Real* sums = b.sums + c * n_q;
      for (Index i = 0; i < n_q; ++i) sums[i] += coefficient * query_term[i] * b.product[i];
    }
  }

  /// The generator of a term of a general W: its parent's times W_s(lag), and its transform.
  void raise_generator(const Problem& problem, const Monomial& term, const Buffers& b) const {
    const LagGrid& grid = problem.grid;
    const LagGrid::Lags lags = grid.allowed_lags();
    const Index size = grid.n_q() + grid.n_k() - 1;
    const Position lowest = grid.offset() - grid.n_k() + 1;
    Real* generator = b.generators + term.degree * size;
    std::fill_n(generator, size, Real{0});
    for (Position lag = lags.first; lag <= lags.last; ++lag)
      generator[lag - lowest] =
          generator[lag - lowest - size] * static_cast<Real>((*problem.weights)(lag, term.variable));
    embedding_->transform_generator(generator, b.padded, b.spectrum);
  }

  template <class Out>
  void write(const Problem& problem, MatrixView<Out> out, const Buffers& b) const {
    const Index n_q = problem.shapes.n_q, d_v = problem.shapes.d_v;
    for (Index i = 0; i < n_q; ++i)
      for (Index c = 0; c < d_v; ++c)
        out(i, c) = static_cast<Out>(b.sums[c * n_q + i] / b.sums[d_v * n_q + i]);
  }

  std::span<const ToeplitzHead> heads_;
  const CirculantEmbedding<Real>* embedding_;
  Index degree_ = 0;
  Index columns_ = 0;  // of projected rows
  WorkerScratch scratch_;
};

}  // namespace fastrope
