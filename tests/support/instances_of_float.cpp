#include "support/instances.hpp"

FASTROPE_PLANS(, float);
FASTROPE_CALLS(, float, fastrope::TensorView<const float>, float);
