// Report: what was chosen for each head, and why the other paths lost.
#pragma once

#include <iomanip>
#include <ostream>
#include <string>
#include <vector>

#include "fastrope/core/index.hpp"
#include "fastrope/problem/problem.hpp"

namespace fastrope {

/// One way to compute a head, as the planner saw it.
struct Candidate {
  Path path = Path::exact;
  bool feasible = true;     ///< can be run and meets the tolerance
  int degree = 0;           ///< of the polynomial; 0 for exact
  Index rank = 0;           ///< features or Toeplitz terms; 0 for exact
  double simplex_rank = 0;  ///< the rank if all multi-indices of the degree were kept, in the rows' own axes
  double error_bound =
      0;  ///< certified max |out - exact| / max|V|, in exact arithmetic but for the transforms' rounding
  double rounding = 0;      ///< estimate of what rounding adds to that
  double seconds = 0;       ///< predicted, one core
  Index exact_rows = 0;     ///< rows that the Toeplitz path leaves to the exact one
  std::string how = {};     ///< the transformations of an approximate path
  std::string reason = {};  ///< why it was chosen or lost
};

/// The plan of one query head.
struct HeadReport {
  Path path = Path::exact;
  double entry_bound = 0;  ///< certified bound on |scale q^T W k| after the shifts; NaN where nobody looked
  int degree = 0;
  Index rank = 0;
  double error_bound = 0;
  double rounding = 0;
  std::string reason = {};
  std::vector<Candidate> candidates = {};
};

/// The plan of a call.
struct Report {
  Shapes shapes = {};
  double tolerance = 0;
  std::size_t workspace_bytes = 0;
  std::vector<HeadReport> heads = {};
};

inline std::ostream& operator<<(std::ostream& out, const Candidate& c) {
  out << std::left << std::setw(11) << to_string(c.path) << std::right;
  if (c.path != Path::exact && c.rank > 0)
    out << " degree " << c.degree << ", rank " << c.rank << " (of " << c.simplex_rank
        << "), error <= " << c.error_bound << " (rounding ~ " << c.rounding << "), " << c.how << ", ";
  else
    out << ' ';
  if (c.seconds > 0) out << c.seconds * 1e3 << " ms predicted; ";
  return out << c.reason;
}

/// A line per head, and one per candidate under it.
inline std::ostream& operator<<(std::ostream& out, const Report& report) {
  const Shapes& s = report.shapes;
  const auto flags = out.flags();
  const auto precision = out.precision(3);
  out << "attention: " << s.heads << " heads (" << s.kv_heads << " of keys), n_q " << s.n_q << ", n_k "
      << s.n_k << ", d " << s.d << ", d_v " << s.d_v << ", tolerance " << report.tolerance << ", workspace "
      << report.workspace_bytes << " bytes\n";
  for (std::size_t h = 0; h < report.heads.size(); ++h) {
    const HeadReport& head = report.heads[h];
    out << "head " << h << ": " << head.path << ", entry bound " << head.entry_bound << ": " << head.reason
        << '\n';
    for (const Candidate& candidate : head.candidates) out << "    " << candidate << '\n';
  }
  out.flags(flags);
  out.precision(precision);
  return out;
}

}  // namespace fastrope
