// What cases are made with.
#pragma once

#include "case.hpp"

namespace peers {

/// c.expected, from double precision.
void compute_expected(Case& c);
/// The nearest number of 16 bits.
float as_float16(float x);

}  // namespace peers
