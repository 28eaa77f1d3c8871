#include "support/instances.hpp"

FASTROPE_PLANS(, float);
