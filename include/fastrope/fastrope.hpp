// All of fastrope but what has a header of its own: for another library's sake, eigen.hpp and spectral/, or
// since training alone wants it, gradient.hpp.
#pragma once

#include "fastrope/attend/attend.hpp"
#include "fastrope/attend/batch.hpp"
#include "fastrope/attend/predict.hpp"
#include "fastrope/core.hpp"
#include "fastrope/plan/cost_file.hpp"
#include "fastrope/toeplitz/toeplitz.hpp"
