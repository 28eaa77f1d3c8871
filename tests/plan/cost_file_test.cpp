// Files of rates: written and read back, lines of other instruction sets kept, faults named.
#include "fastrope/plan/cost_file.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <sstream>
#include <string>

namespace fastrope_test {
namespace {

using fastrope::CostModel;
using fastrope::kTargetName;
using ::testing::HasSubstr;

class CostFile : public ::testing::Test {
 protected:
  void write(const std::string& text) const { std::ofstream(path) << text; }
  std::string text() const {
    std::ostringstream all;
    all << std::ifstream(path).rdbuf();
    return all.str();
  }
  std::string error() const {
    try {
      fastrope::read_cost_model(path);
    } catch (const fastrope::Error& e) {
      return e.what();
    }
    return "none";
  }

  const std::string path = ::testing::TempDir() + "fastrope_rates_" +
                           ::testing::UnitTest::GetInstance()->current_test_info()->name() + ".txt";
  const std::string rates = " tile 1e11 weigh 2e9 feature 3e10 transform 4e10 element 5e8 round 6e5 look 7e3";
};

TEST_F(CostFile, IsReadAsItWasWritten) {
  write("# of this machine\nsome_other_set" + rates + "\n" + kTargetName + rates + "\n");
  const CostModel model{.tile = 1.5e11,
                        .weigh = 2.25e9,
                        .feature = 1e10,
                        .transform = 2.5e10,
                        .element = 2e8,
                        .round = 2.5e5,
                        .look = 1.25e4};
  for (int twice = 0; twice < 2; ++twice) fastrope::write_cost_model(path, model, "a comment");
  const CostModel read = fastrope::read_cost_model(path);
  EXPECT_EQ(read.tile, model.tile);
  EXPECT_EQ(read.weigh, model.weigh);
  EXPECT_EQ(read.feature, model.feature);
  EXPECT_EQ(read.transform, model.transform);
  EXPECT_EQ(read.element, model.element);
  EXPECT_EQ(read.round, model.round);
  EXPECT_EQ(read.look, model.look);
  EXPECT_EQ(text(), "# of this machine\nsome_other_set" + rates + "\n" + fastrope::rates_line(model) +
                        "  # a comment\n");
}

TEST_F(CostFile, SaysWhatIsWrong) {
  const std::string target = kTargetName;
  write("some_other_set" + rates + "\nanother" + rates + "\n");
  EXPECT_THAT(error(), HasSubstr("no rates for " + target + ", only for some_other_set, another"));
  write("");
  EXPECT_THAT(error(), HasSubstr("no rates for " + target + ", only for none"));
  write(target + " tile 1e11");
  EXPECT_THAT(error(), HasSubstr(target + " has no rate weigh"));
  write(target + rates + " tile 1e11");
  EXPECT_THAT(error(), HasSubstr("tile of " + target + " is given twice"));
  write(target + rates + " tiles 1e11");
  EXPECT_THAT(error(), HasSubstr("'tiles' is no rate"));
  for (const char* bad : {"0", "-1", "nan", "inf", "1e999", "fast", ""}) {
    write(target + " tile " + bad);
    EXPECT_THAT(error(), HasSubstr("tile of " + target + " must be a finite number greater than 0")) << bad;
  }
  EXPECT_THROW(fastrope::write_cost_model("/no/such/folder/rates.txt", {}, ""), fastrope::Error);
}

}  // namespace
}  // namespace fastrope_test
