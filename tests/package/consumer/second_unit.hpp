#pragma once

#include <fastrope/fastrope.hpp>

/// Attention of n queries to n keys, both [n, d], with default options, called from another translation unit.
void attend_elsewhere(const float* q, const float* k, const float* v, float* out, fastrope::Index n,
                      fastrope::Index d);
