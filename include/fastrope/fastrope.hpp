// All of fastrope.
#pragma once

#include "fastrope/core.hpp"
#include "fastrope/dispatch/attend.hpp"
#include "fastrope/dispatch/predict.hpp"
#include "fastrope/toeplitz/toeplitz.hpp"
