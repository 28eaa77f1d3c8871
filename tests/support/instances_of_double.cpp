#include "support/instances.hpp"

FASTROPE_PLANS(, double);
