// The calls that tests, benchmarks and examples make most, compiled once for all of them.
#pragma once

#include "fastrope/instances.hpp"

FASTROPE_PLANS(extern, float);
FASTROPE_PLANS(extern, double);
FASTROPE_CALLS(extern, float, fastrope::TensorView<const float>, float);
FASTROPE_CALLS(extern, double, fastrope::TensorView<const double>, double);
