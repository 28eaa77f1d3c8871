// All of fastrope that needs no FFTW: views, positions, the exact path with its partial states and batches,
// ExpPolynomial and the polynomial path's parts. The dispatcher, attend(), is in fastrope.hpp.
#pragma once

#include "fastrope/exact/attend_partial.hpp"
#include "fastrope/exact/batch.hpp"
#include "fastrope/polynomial/attention.hpp"
#include "fastrope/polynomial/recurrent.hpp"
#include "fastrope/version.hpp"
