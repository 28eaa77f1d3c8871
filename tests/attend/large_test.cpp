// Long sequences in bounded memory, offsets beyond 2^31 elements, and many calls one after the other.
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cmath>
#include <cstddef>
#include <fstream>
#include <string>
#include <vector>

#include "fastrope/fastrope.hpp"
#include "support/attention_case.hpp"
#include "support/measurable.hpp"

namespace fastrope_test {
namespace {

using namespace fastrope;

/// A line of /proc/self/status, in bytes; 0 where the system does not say.
std::size_t status_bytes(const std::string& name) {
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;)
    if (std::size_t kibibytes = 0; word == name + ":" && status >> kibibytes) return 1024 * kibibytes;
  return 0;
}

TEST(Large, AMillionTokens) {
  if (!kMeasurable) GTEST_SKIP() << "not optimised, or instrumented";
  constexpr Index n = 1000000, d = 8;
  AttentionCase c{.shapes = {1, 1, n, n, d, d}};
  c.base.rope = Rope{};
  c.base.mask = Mask::causal();
  c.base.scale = 1.0;
  c.base.tolerance = 1e-2;
  c.base.verify = 3;
  Inputs random(1);
  AttentionInputs<float> in(c.shapes, random);
  in.q = random.sphere<float>(1, n, d, 0.7);
  in.k = random.sphere<float>(1, n, d, 0.7);
  const std::size_t inputs = 3 * n * d * sizeof(float);  // 96 MB; n x n floats are 4 TB
  const auto expect_kept = [&](Path path) {
    c.base.path = path;
    const Report report = attend(in.q.view(), in.k.view(), in.v.view(), in.out.view(), c.options());
    const HeadReport& head = report.heads.front();
    EXPECT_EQ(head.path, path);
    EXPECT_EQ(head.verified_rows, 3);
    EXPECT_LE(head.observed_error, head.error_bound) << path;
    EXPECT_LT(report.workspace_bytes, 10 * inputs) << path;
  };
  expect_kept(Path::polynomial);
  c.base.bias = LagBias::alibi({1e-6});  // a straight line
  expect_kept(Path::polynomial);
  std::vector<double> rough;
  for (Index lag = 0; lag < n; ++lag) rough.push_back(random.uniform(-0.1, 0.1));
  c.base.bias = LagBias::table(rough, 1, 0);  // transforms
  c.base.scale = 0.2;
  c.base.tolerance = 0.2;
  expect_kept(Path::toeplitz);
}

/// Address space of which only the pages that are written to take memory.
class Sparse {
 public:
  explicit Sparse(std::size_t bytes)
      : bytes_(bytes),
        data_(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
                   0)) {}
  ~Sparse() {
    if (given()) munmap(data_, bytes_);
  }
  Sparse(const Sparse&) = delete;
  Sparse& operator=(const Sparse&) = delete;

  bool given() const { return data_ != MAP_FAILED; }
  float* data() const { return static_cast<float*>(data_); }

 private:
  std::size_t bytes_;
  void* data_;
};

TEST(Large, OffsetsBeyondThirtyTwoBits) {
  // Rows 2^27 elements apart, heads 2^31 and a little.
  constexpr Index kRow = Index{1} << 27, kHead = (Index{1} << 31) + 77;
  AttentionCase c{.shapes = {2, 1, 12, 12, 8, 8}};
  c.base.mask = Mask::causal();
  c.base.rope = Rope{};
  AttentionInputs<float> in(c.shapes, 2);
  const auto bytes = static_cast<std::size_t>(kHead + 13 * kRow) * sizeof(float);
  const Sparse q(bytes), k(bytes), v(bytes), out(bytes);
  if (!q.given() || !k.given() || !v.given() || !out.given()) GTEST_SKIP() << "no address space of " << bytes;
  const auto spread = [&](const Tensor<float>& x, const Sparse& to) {
    const TensorView<float> view(to.data(), x.heads, x.rows, x.cols, kHead, kRow);
    for (Index h = 0; h < x.heads; ++h)
      for (Index i = 0; i < x.rows; ++i)
        for (Index m = 0; m < x.cols; ++m) view.head(h)(i, m) = x(h, i, m);
    return view;
  };
  const TensorView<float> wide_q = spread(in.q, q), wide_k = spread(in.k, k), wide_v = spread(in.v, v);
  const TensorView<float> wide_out(out.data(), 2, 12, 8, kHead, kRow);
  for (const auto& [path, scale, tolerance] :
       {std::tuple{Path::exact, 0.3, 0.0}, {Path::polynomial, 0.02, 1e-2}, {Path::toeplitz, 0.02, 1e-1}}) {
    c.base.path = path;
    c.base.scale = scale;
    c.base.tolerance = tolerance;
    attend(in.q.view(), in.k.view(), in.v.view(), in.out.view(), c.options());
    attend(wide_q, wide_k, wide_v, wide_out, c.options());
    EXPECT_EQ(max_abs_difference(wide_out, in.out.view()), 0) << path;
  }
}

TEST(Large, ManyCallsTakeNoMoreMemoryThanSome) {
  if (!kMeasurable) GTEST_SKIP() << "not optimised, or instrumented";
  std::vector<AttentionCase> cases;
  for (const Path path : {Path::automatic, Path::exact, Path::polynomial, Path::toeplitz})
    for (const bool causal : {false, true})
      for (const Index n : {1, 9, 40}) {
        AttentionCase c{.shapes = {2, 1, n, n, 4, 4}};
        c.base.rope = Rope{};
        c.base.path = path;
        c.base.scale = 0.02;
        c.base.tolerance = path == Path::exact ? 0 : 1e-1;
        if (causal) c.base.mask = Mask::causal();
        if (path == Path::toeplitz) {
          c.base.bias = LagBias::alibi({0.1});
          c.bias = alibi_formula({0.1});
        }
        cases.push_back(std::move(c));
      }
  std::vector<AttentionInputs<float>> inputs;
  for (const AttentionCase& c : cases) inputs.emplace_back(c.shapes, 3);
  const auto calls = [&](int count) {
    for (int i = 0; i < count; ++i) {
      const std::size_t which = static_cast<std::size_t>(i) % cases.size();
      AttentionInputs<float>& in = inputs[which];
      attend(in.q.view(), in.k.view(), in.v.view(), in.out.view(), cases[which].options());
    }
  };
  calls(2000);
  const std::size_t before = status_bytes("VmRSS");
  calls(98000);
  EXPECT_LE(status_bytes("VmRSS"), before + (1 << 20));
  for (std::size_t i = 0; i < cases.size(); ++i)
    EXPECT_LE(max_abs_difference(inputs[i].out.view(), inputs[i].reference(cases[i]).out.view()), 0.1)
        << cases[i];
}

}  // namespace
}  // namespace fastrope_test
