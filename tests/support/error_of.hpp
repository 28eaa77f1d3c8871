// What a call throws, to be compared with what it should say.
#pragma once

#include <string>

#include "fastrope/core/error.hpp"

namespace fastrope_test {

/// The text of the fastrope::Error that `call` throws, or "no Error".
template <class Call>
std::string error_of(Call&& call) {
  try {
    call();
  } catch (const fastrope::Error& error) {
    return error.what();
  }
  return "no Error";
}

}  // namespace fastrope_test
