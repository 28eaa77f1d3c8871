// Planning and running, compiled once for all tests, benchmarks and examples.
#pragma once

#include "fastrope/instances.hpp"

FASTROPE_PLANS(extern, float);
FASTROPE_PLANS(extern, double);
