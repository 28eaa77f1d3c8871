// All of fastrope.
#pragma once

#include "fastrope/core.hpp"
#include "fastrope/attend/attend.hpp"
#include "fastrope/attend/predict.hpp"
#include "fastrope/toeplitz/toeplitz.hpp"
