// Table: the functions of one level, which is all that its object shows to the rest of the library.
#pragma once

#include "fastrope/fastrope.h"

namespace fastrope_compiled {

struct Table {
#define FASTROPE_FUNCTION(result, failed, name, parameters, arguments) result(*name) parameters;
#include "functions.inc"
#undef FASTROPE_FUNCTION
  const char* target;  ///< core/target.hpp's name of it, which the level is called by
};

/// Keeps a message for fastrope_last_error(), for this thread. The same for all levels.
using KeepError = void (*)(const char* message) noexcept;

/// What the object of a level gives, once: fastrope_level_<target>.
using Level = const Table* (*)(KeepError);

}  // namespace fastrope_compiled
