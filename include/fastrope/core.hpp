// All of fastrope that needs no FFTW: views, positions, the exact path with its partial states, batches, key
// masses and attention weights, recurrent attention with a polynomial kernel or bounded entries, and
// ExpPolynomial. Plans and
// attend() are in fastrope.hpp.
#pragma once

#include "fastrope/attend/bounded_recurrence.hpp"
#include "fastrope/core/quantize.hpp"
#include "fastrope/exact/attend_partial.hpp"
#include "fastrope/exact/batch.hpp"
#include "fastrope/exact/weights.hpp"
#include "fastrope/plan/exp_polynomial.hpp"
#include "fastrope/version.hpp"
