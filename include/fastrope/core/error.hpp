// The one exception of the library, thrown while a call is checked and never while it computes.
//
// Every message names the values that clash and what would be valid.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>

#include "fastrope/core/target.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// A request that cannot be met: shapes, strides or options that clash. what() names the values.
class Error : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

namespace detail {

/// A part as text; one function for each type of part, not for each message.
template <class Part>
void append(std::string& text, const Part& part) {
  if constexpr (std::is_convertible_v<const Part&, std::string_view>) {
    text += std::string_view(part);
  } else if constexpr (std::is_same_v<Part, char>) {
    text += part;
  } else if constexpr (std::is_integral_v<Part>) {
    text += std::to_string(part);
  } else {
    std::ostringstream stream;
    stream << part;
    text += stream.str();
  }
}

/// Parts by value: literals of any length are then one type, and a message one function for each list of
/// types.
template <class... Parts>
std::string message(Parts... parts) {
  std::string text;
  (append(text, parts), ...);
  return text;
}

/// Throws Error with the parts written one after the other.
template <class... Parts>
[[noreturn]] void fail(Parts... parts) {
  throw Error(message(parts...));
}

}  // namespace detail
}  // namespace fastrope::inline FASTROPE_TARGET
