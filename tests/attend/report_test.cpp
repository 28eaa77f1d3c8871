// What a report prints, for people and for tools.
#include "fastrope/attend/report.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <sstream>
#include <string>
#include <vector>

namespace fastrope_test {
namespace {

using namespace fastrope;
using testing::HasSubstr;

Report example() {
  HeadReport head{.path = Path::polynomial,
                  .entry_bound = 0.5,
                  .degree = 2,
                  .rank = 45,
                  .error_bound = 0.005,
                  .rounding = 1e-6,
                  .reason = "cheapest"};
  head.candidates = {{.work = {.tile = 2e9}, .seconds = 0.02, .reason = "slower"},
                     {.path = Path::polynomial,
                      .entry_bound = 0.5,
                      .degree = 2,
                      .rank = 45,
                      .simplex_rank = 165,
                      .error_bound = 0.005,
                      .rounding = 1e-6,
                      .work = {.tile = 1e8, .feature = 5e7},
                      .seconds = 0.001,
                      .how = "8 axes",
                      .reason = "cheapest"},
                     {.path = Path::toeplitz, .feasible = false, .reason = "positions separate"}};
  return {.shapes = {1, 1, 100, 200, 8, 4}, .tolerance = 0.01, .workspace_bytes = 1234, .heads = {head}};
}

std::vector<std::string> lines_of(const Report& report) {
  std::ostringstream text;
  text << report;
  std::vector<std::string> lines;
  std::istringstream read(text.str());
  for (std::string line; std::getline(read, line);) lines.push_back(line);
  return lines;
}

TEST(Report, HasALineForEachCandidateUnderAHeadingOfTheSameColumns) {
  const std::vector<std::string> lines = lines_of(example());
  ASSERT_EQ(lines.size(), 6u);
  EXPECT_THAT(lines[0], HasSubstr("n_q 100, n_k 200, d 8, d_v 4, tolerance 0.01, workspace 1234 bytes"));
  EXPECT_THAT(lines[0], HasSubstr(std::string(", target ") + kTargetName));
  EXPECT_EQ(lines[1], "head 0: polynomial, entry bound 0.5: cheapest");
  // Columns end where their headings do.
  const auto ends_at = [&](const std::string& line, const char* figure, const char* heading) {
    EXPECT_EQ(line.find(figure) + std::string(figure).size(),
              lines[2].find(heading) + std::string(heading).size())
        << line;
  };
  EXPECT_EQ(lines[3].substr(0, 9), "    exact");
  EXPECT_EQ(lines[4].substr(0, 14), "  > polynomial");
  ends_at(lines[4], " 0.5", "|x| <=");
  ends_at(lines[4], " 2", "degree");
  ends_at(lines[4], " 45", "rank");
  ends_at(lines[4], " 0.2", "Gflop");
  ends_at(lines[3], " 20", "ms");
  ends_at(lines[4], " 0.005", "error <=");
  ends_at(lines[4], " 1e-06", "rounding");
  EXPECT_THAT(lines[4], HasSubstr("cheapest (8 axes), full rank 165"));
  EXPECT_THAT(lines[5], HasSubstr("positions separate"));
}

TEST(Report, TellsOfASpotCheck) {
  Report report = example();
  report.heads[0].verified_rows = 16;
  report.heads[0].observed_error = 1.5e-5;
  EXPECT_THAT(lines_of(report)[2], HasSubstr("error of 16 rows 1.5e-05, promised 0.005"));
  EXPECT_THAT(report.to_json(), HasSubstr(R"("verified_rows": 16, "observed_error": 1.5)"));
}

TEST(Report, LeavesTheStreamAsItWas) {
  std::ostringstream text;
  text << std::hex << example() << 255;
  EXPECT_THAT(text.str(), HasSubstr("degree"));
  EXPECT_THAT(text.str(), testing::EndsWith("ff"));
}

/// Whether text is one JSON value, by the grammar of RFC 8259 without \u and with numbers as strtod reads
/// them.
class Json {
 public:
  static bool valid(const std::string& text) {
    Json json(text);
    return json.value() && json.at_ == text.size();
  }

 private:
  explicit Json(const std::string& text) : text_(text) {}
  bool take(const std::string& token) {
    while (at_ < text_.size() && text_[at_] == ' ') ++at_;
    if (text_.compare(at_, token.size(), token) != 0) return false;
    at_ += token.size();
    return true;
  }
  bool string() {
    if (!take("\"")) return false;
    for (; at_ < text_.size() && text_[at_] != '"'; ++at_) {
      if (static_cast<unsigned char>(text_[at_]) < 0x20) return false;
      if (text_[at_] == '\\' && ++at_ < text_.size() && text_[at_] != '"' && text_[at_] != '\\') return false;
    }
    return at_++ < text_.size();
  }
  template <class Item>
  bool list(const char* close, Item&& item) {
    if (take(close)) return true;
    do
      if (!item()) return false;
    while (take(","));
    return take(close);
  }
  bool value() {
    if (take("null") || take("true") || take("false")) return true;
    if (take("{")) return list("}", [&] { return string() && take(":") && value(); });
    if (take("[")) return list("]", [&] { return value(); });
    if (string()) return true;
    char* end = nullptr;
    std::strtod(text_.c_str() + at_, &end);
    const auto next = static_cast<std::size_t>(end - text_.c_str());
    const bool number = next > at_ && text_.find_first_of("in", at_) >= next;  // no inf, no nan
    at_ = next;
    return number;
  }

  const std::string& text_;
  std::size_t at_ = 0;
};

TEST(Report, IsJsonForTools) {
  Report report = example();
  EXPECT_TRUE(Json::valid(report.to_json())) << report.to_json();
  EXPECT_THAT(report.to_json(), HasSubstr(R"("n_q": 100, "n_k": 200)"));
  EXPECT_THAT(report.to_json(),
              HasSubstr(R"("path": "polynomial", "entry_bound": 0.5, "degree": 2, "rank": 45)"));
  EXPECT_THAT(report.to_json(), HasSubstr(R"("flops": 200000000)"));
  report.heads[0].entry_bound = std::numeric_limits<double>::quiet_NaN();
  report.heads[0].reason = "a \"quoted\"\n\\ reason";
  EXPECT_TRUE(Json::valid(report.to_json())) << report.to_json();
  EXPECT_THAT(report.to_json(), HasSubstr(R"("entry_bound": null)"));
  EXPECT_THAT(report.to_json(), HasSubstr(R"(a \"quoted\" \\ reason)"));
  EXPECT_TRUE(Json::valid(Report{}.to_json()));
  EXPECT_FALSE(Json::valid("{\"a\": inf}"));
  EXPECT_FALSE(Json::valid("{\"a\" 1}"));
}

}  // namespace
}  // namespace fastrope_test
