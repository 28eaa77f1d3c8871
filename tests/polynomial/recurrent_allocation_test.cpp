// RecurrentAttention::step allocates nothing: a program of its own, since it replaces operator new.
#include <gtest/gtest.h>

#include <span>
#include <utility>
#include <vector>

#include "fastrope/polynomial/recurrent.hpp"
#include "support/attention_case.hpp"
#include "support/counted_new.hpp"

namespace fastrope_test {
namespace {

using namespace fastrope;

TEST(RecurrentAllocation, IsCounted) {
  const long before = allocations;
  std::vector<int> one(1);
  EXPECT_EQ(allocations - before, 1) << one.size();
}

template <class T>
void expect_no_allocation(const Executor& executor) {
  // More tokens than a block holds, so that one is folded into the state.
  constexpr Index kMany = kKeyBlock<ArithmeticOf<T>> + 20;
  const Shapes shapes{4, 2, kMany, kMany, 6, 5};
  Options options;
  options.kernel = Kernel::taylor(4);
  options.mask = Mask::causal();
  options.rope = Rope{};
  options.executor = executor;
  AttentionInputs<T> in(shapes, 1);
  RecurrentAttention<ArithmeticOf<T>> recurrence(4, 2, 6, 5, options);
  const std::vector<float> gates(2, -0.01F);
  const auto step = [&](Index i) {
    const Range token{i, i + 1};
    // Gates begin after some tokens.
    return recurrence.step(rows(std::as_const(in.q).view(), token), rows(std::as_const(in.k).view(), token),
                           rows(std::as_const(in.v).view(), token), rows(in.out.view(), token),
                           i < 20 ? std::span<const float>() : gates);
  };
  const long before = allocations;
  RunStatus status = RunStatus::ok;
  for (Index i = 0; i < 5 && status == RunStatus::ok; ++i) status = step(i);
  EXPECT_EQ(allocations - before, 0);
  EXPECT_EQ(status, RunStatus::ok);
  // After a prompt, which does allocate.
  recurrence.prefill(rows(std::as_const(in.q).view(), {5, 9}), rows(std::as_const(in.k).view(), {5, 9}),
                     rows(std::as_const(in.v).view(), {5, 9}), rows(in.out.view(), {5, 9}));
  const long after_prompt = allocations;
  for (Index i = 9; i < kMany && status == RunStatus::ok; ++i) status = step(i);
  EXPECT_EQ(allocations - after_prompt, 0);
  EXPECT_EQ(status, RunStatus::ok);
  EXPECT_GT(recurrence.tokens_in_state(), 0);

  std::vector<std::byte> past(recurrence.state_bytes());
  const long before_save = allocations;
  status = recurrence.save(past);
  recurrence.load(past);
  EXPECT_EQ(allocations - before_save, 0);
  EXPECT_EQ(status, RunStatus::ok);
}

TEST(RecurrentAllocation, AStepHasNone) {
  expect_no_allocation<float>(Executor::serial());
  expect_no_allocation<double>(Executor::serial());
  expect_no_allocation<bfloat16>(Executor::serial());
#ifdef _OPENMP
  expect_no_allocation<float>(Executor::openmp(2));
#endif
}

}  // namespace
}  // namespace fastrope_test
