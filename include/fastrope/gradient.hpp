// The gradient of attention, for training: attend_backward, ParameterGradients and BackwardReport.
#pragma once

#include "fastrope/gradient/attend_backward.hpp"
