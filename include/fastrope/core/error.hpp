// The one exception of the library, thrown while a call is checked and never while it computes.
//
// Every message names the values that clash and what would be valid.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

#include "fastrope/core/target.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// A request that cannot be met: shapes, strides or options that clash. what() names the values.
class Error : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

namespace detail {

template <class... Parts>
std::string message(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

/// Throws Error with the parts written one after the other.
template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  throw Error(message(parts...));
}

}  // namespace detail
}  // namespace fastrope::inline FASTROPE_TARGET
