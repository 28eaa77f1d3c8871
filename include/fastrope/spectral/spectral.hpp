// Spectra of positional schemes: logits and softmax weights as matrices that are never formed, and what is
// said of them. Needs the Spectra library (singular_values.hpp).
#pragma once

#include "fastrope/spectral/hadamard_sum.hpp"
#include "fastrope/spectral/logit_matrix.hpp"
#include "fastrope/spectral/logit_variance.hpp"
#include "fastrope/spectral/measures.hpp"
#include "fastrope/spectral/singular_values.hpp"
#include "fastrope/spectral/toeplitz_symbol.hpp"
#include "fastrope/spectral/weight_matrix.hpp"
