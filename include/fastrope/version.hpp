// The version of the library. It is written here and nowhere else: the build and the package read this file.
#pragma once

#include <string_view>

#include "fastrope/core/target.hpp"

#define FASTROPE_VERSION_MAJOR 0
#define FASTROPE_VERSION_MINOR 1
#define FASTROPE_VERSION_PATCH 0

#define FASTROPE_QUOTE_(x) #x
#define FASTROPE_QUOTE(x) FASTROPE_QUOTE_(x)

namespace fastrope::inline FASTROPE_TARGET {

/// "major.minor.patch"
inline constexpr std::string_view kVersion = FASTROPE_QUOTE(FASTROPE_VERSION_MAJOR) "." FASTROPE_QUOTE(
    FASTROPE_VERSION_MINOR) "." FASTROPE_QUOTE(FASTROPE_VERSION_PATCH);

}  // namespace fastrope::inline FASTROPE_TARGET

#undef FASTROPE_QUOTE
#undef FASTROPE_QUOTE_
