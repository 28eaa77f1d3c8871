// HeadReport: what was decided for a head, and why the other paths lost.
#pragma once

#include <string>
#include <vector>

#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/plan/work.hpp"
#include "fastrope/problem/options.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// One way to compute a head, as the planner saw it.
struct Candidate {
  Path path = Path::exact;
  bool feasible = true;     ///< can be run and is known to meet the tolerance
  double entry_bound = 0;   ///< certified, of the entries that are approximated; 0 for exact
  int degree = 0;           ///< of the polynomial; 0 for exact
  Index rank = 0;           ///< features or Toeplitz terms; 0 for exact
  double simplex_rank = 0;  ///< the rank if all multi-indices of the degree were kept, in the rows' own axes
  double error_bound = 0;   ///< proved, max |out - exact| / max|V|; infinity where nobody looked
  double rounding = 0;      ///< the part of it that is rounding
  Work work = {};           ///< that it is
  double seconds = 0;       ///< predicted, one core
  Index exact_rows = 0;     ///< rows that transforms are expected to leave to the exact path
  std::string how = {};     ///< the transformations of an approximate path
  std::string reason = {};  ///< why it was chosen or lost
};

/// The plan of one query head.
struct HeadReport {
  Path path = Path::exact;
  double entry_bound = 0;  ///< certified bound on |scale q^T W k| after the shifts; NaN where nobody looked
  int degree = 0;
  Index rank = 0;
  double error_bound = 0;  ///< proved, max |out - exact| / max|V|, rounding included; infinity where nobody
                           ///< looked, and with a polynomial kernel, whose rows get bounds
  double rounding = 0;     ///< the part of it that is rounding, that of the result to out's type included
  std::string reason = {};
  std::vector<Candidate> candidates = {};
  Index repaired_rows =
      0;  ///< of an approximate head: computed again exactly, as their sums could not be vouched for
  Index verified_rows = 0;    ///< of a spot check, if there was one
  double observed_error = 0;  ///< max |out - exact| / max|V| in them
};

}  // namespace fastrope::inline FASTROPE_TARGET
