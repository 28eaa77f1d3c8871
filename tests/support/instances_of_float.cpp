#include "support/instances.hpp"

FASTROPE_INSTANCES(, float);
