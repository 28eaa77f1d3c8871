// The gradient of exact attention, for training: attend_backward and ParameterGradients.
#pragma once

#include "fastrope/gradient/attend_backward.hpp"
