#include "fastrope/core/workspace.hpp"

#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <vector>

namespace {

using fastrope::Index;
using fastrope::kAlignment;
using fastrope::WorkerScratch;
using fastrope::Workspace;

/// An array that was handed out, as addresses.
struct Block {
  std::uintptr_t begin;
  std::uintptr_t end;
};

/// Takes arrays of several types and sizes, empty ones among them, and fills them.
std::vector<Block> take_all(Workspace& workspace) {
  std::vector<Block> blocks;
  const auto take = [&]<class T>(T value, Index count) {
    const std::span<T> array = workspace.take<T>(count);
    if (workspace.counting()) {
      EXPECT_EQ(array.data(), nullptr);
      return;
    }
    EXPECT_EQ(static_cast<Index>(array.size()), count);
    for (T& x : array) x = value;
    const auto begin = reinterpret_cast<std::uintptr_t>(array.data());
    blocks.push_back({begin, begin + array.size_bytes()});
  };
  take(1.0F, 17);
  take(2.0, 1);
  take(true, 3);
  take(std::int64_t{5}, 0);
  take(3.0F, 16);
  take(std::byte{1}, 64);  // the last one ends where its cache line does, so that a byte too few shows
  return blocks;
}

Index bytes_of_all() {
  Workspace counting;
  take_all(counting);
  return static_cast<Index>(counting.bytes());
}

TEST(Workspace, CountsWhatItCarvesFromAnyAlignment) {
  const Index bytes = bytes_of_all();
  std::vector<std::byte> memory(static_cast<std::size_t>(bytes) + 2 * kAlignment);
  for (std::size_t shift = 0; shift < kAlignment; ++shift) {
    const std::span<std::byte> given(memory.data() + shift, static_cast<std::size_t>(bytes));
    Workspace workspace(given);
    EXPECT_FALSE(workspace.counting());
    const std::vector<Block> blocks = take_all(workspace);
    EXPECT_EQ(static_cast<Index>(workspace.bytes()), bytes);
    const auto first = reinterpret_cast<std::uintptr_t>(given.data());
    std::uintptr_t previous = first;
    for (const Block& block : blocks) {
      EXPECT_EQ(block.begin % kAlignment, 0U) << "shift " << shift;
      EXPECT_GE(block.begin, previous) << "shift " << shift;
      previous = block.end;
    }
    EXPECT_LE(previous, first + given.size()) << "shift " << shift;
  }
}

TEST(Workspace, ArraysKeepTheirContents) {
  std::vector<std::byte> memory(4096);
  Workspace workspace(memory);
  const auto a = workspace.take<float>(33);
  const auto b = workspace.take<double>(9);
  for (float& x : a) x = 1;
  for (double& x : b) x = 2;
  for (float x : a) EXPECT_EQ(x, 1);
}

TEST(Workspace, NothingTakenNeedsNothing) {
  EXPECT_EQ(Workspace().bytes(), 0U);
  Workspace none{std::span<std::byte>{}};
  EXPECT_TRUE(none.take<float>(0).empty());
  EXPECT_EQ(none.bytes(), 0U);
}

TEST(Workspace, CopiesStartWhereTheOriginalStood) {
  std::vector<std::byte> memory(1024);
  Workspace workspace(memory);
  workspace.take<float>(4);
  Workspace copy = workspace;
  EXPECT_EQ(copy.take<float>(4).data(), workspace.take<float>(4).data());
}

TEST(WorkerScratch, SharesAreAlignedDisjointAndLargeEnough) {
  constexpr Index kWorkers = 5;
  const auto build = [&](Workspace& workspace) {
    return WorkerScratch(kWorkers, workspace, [](Workspace& share) { take_all(share); });
  };
  Workspace counting;
  build(counting);
  for (std::size_t shift : {std::size_t{0}, std::size_t{1}, kAlignment - 1}) {
    std::vector<std::byte> memory(counting.bytes() + kAlignment);
    Workspace workspace(std::span<std::byte>(memory.data() + shift, counting.bytes()));
    const WorkerScratch scratch = build(workspace);
    EXPECT_EQ(workspace.bytes(), counting.bytes());
    auto previous = reinterpret_cast<std::uintptr_t>(memory.data() + shift);
    for (Index w = 0; w < kWorkers; ++w) {
      Workspace share = scratch.of(w);
      for (const Block& block : take_all(share)) {
        EXPECT_EQ(block.begin % kAlignment, 0U);
        EXPECT_GE(block.begin, previous) << "worker " << w;
        previous = block.end;
      }
      Workspace again = scratch.of(w);
      Workspace same = scratch.of(w);
      EXPECT_EQ(again.take<float>(1).data(), same.take<float>(1).data());
    }
    EXPECT_LE(previous, reinterpret_cast<std::uintptr_t>(memory.data() + shift) + counting.bytes());
  }
}

TEST(Workspace, WhatNoMemoryHoldsSaturates) {
  constexpr Index kMost = std::numeric_limits<Index>::max();
  Workspace workspace;
  workspace.take<double>(Index{1} << 61);  // 2^64 bytes
  EXPECT_EQ(static_cast<Index>(workspace.bytes()), kMost);
  workspace.take<double>(1000);
  EXPECT_EQ(static_cast<Index>(workspace.bytes()), kMost);
  Workspace shared;
  WorkerScratch(Index{1} << 16, std::size_t{1} << 48, shared);
  EXPECT_EQ(static_cast<Index>(shared.bytes()), kMost);
}

}  // namespace
