#include "support/instances.hpp"

FASTROPE_PLANS(, double);
FASTROPE_CALLS(, double, fastrope::TensorView<const double>, double);
