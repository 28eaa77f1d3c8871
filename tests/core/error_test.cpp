#include "fastrope/core/error.hpp"

#include <gtest/gtest.h>

#include <stdexcept>
#include <string>
#include <type_traits>

namespace {

TEST(Error, JoinsItsPartsInOrder) {
  try {
    fastrope::detail::fail("k has d = ", 64, " columns, q has d = ", 63.5, '!');
    FAIL() << "nothing was thrown";
  } catch (const fastrope::Error& error) {
    EXPECT_STREQ(error.what(), "k has d = 64 columns, q has d = 63.5!");
  }
}

TEST(Error, IsCaughtAsAStandardException) {
  static_assert(std::is_base_of_v<std::invalid_argument, fastrope::Error>);
  EXPECT_THROW(throw fastrope::Error(std::string("text")), std::exception);
}

}  // namespace
