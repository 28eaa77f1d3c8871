// No n x n memory: the most that a process holds while it attends to a long sequence. A program of its own,
// since the peak of a process never falls.
#include <gtest/gtest.h>

#include <cstddef>
#include <fstream>
#include <string>
#include <utility>

#include "fastrope/fastrope.hpp"
#include "support/attention_case.hpp"
#include "support/measurable.hpp"

namespace fastrope_test {
namespace {

using namespace fastrope;

/// The largest resident size that this process has had; 0 where the system does not say. Not getrusage's
/// ru_maxrss, which starts at the size of the process that started this one.
std::size_t peak_bytes() {
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;)
    if (std::size_t kibibytes = 0; word == "VmHWM:" && status >> kibibytes) return 1024 * kibibytes;
  return 0;
}

TEST(Memory, PeakIsBelowTenTimesTheInputs) {
  if (!kMeasurable) GTEST_SKIP() << "not optimised, or instrumented";
  if (peak_bytes() == 0) GTEST_SKIP() << "/proc/self/status has no VmHWM";
  constexpr Index n = 65536, d = 64;
  AttentionCase c{.shapes = {1, 1, n, n, d, d}};
  c.base.rope = Rope{};
  c.base.mask = Mask::causal();
  c.base.scale = 1e-3;  // |x| <= 0.2, for the approximations
  AttentionInputs<float> in(c.shapes, 1);
  const std::size_t inputs = 3 * n * d * sizeof(float);  // q, k and v: 50 MB; n x n floats are 17 GB
  for (const auto& [path, tolerance] :
       {std::pair{Path::exact, 0.0}, {Path::polynomial, 1e-3}, {Path::toeplitz, 0.3}}) {
    c.base.path = path;
    c.base.tolerance = tolerance;
    attend(in.q.view(), in.k.view(), in.v.view(), in.out.view(), c.options());
    EXPECT_LT(peak_bytes(), 10 * inputs) << path;
    RecordProperty(to_string(path), std::to_string(peak_bytes()));
  }
}

}  // namespace
}  // namespace fastrope_test
