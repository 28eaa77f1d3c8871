// Workspace: scratch memory that the caller owns, counted and carved by the same code.
//
// A function that needs scratch takes a Workspace and asks it for arrays. Given a counting workspace it gets
// null spans and bytes() says what it would have used; given memory it gets the arrays. The two cannot
// disagree. A count beyond every memory saturates, so that no block is large enough for it.
#pragma once

#include <cassert>
#include <cstddef>
#include <cstdint>
#include <span>

#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// Alignment of every array that a workspace hands out: a cache line, the widest vector.
inline constexpr std::size_t kAlignment = 64;

/// Hands out arrays from a block of bytes, or counts them.
class Workspace {
 public:
  /// Counts only.
  Workspace() = default;

  /// Carves `bytes`, whose alignment may be any.
  explicit Workspace(std::span<std::byte> bytes)
      : begin_(bytes.data()), size_(bytes.size()), counting_(false) {}

  /// An uninitialised array of `count` elements, aligned to kAlignment; without data when counting.
  template <class T>
  std::span<T> take(Index count) {
    static_assert(alignof(T) <= kAlignment);
    const std::size_t offset = used_;
    used_ = static_cast<std::size_t>(
        saturating_sum(static_cast<Index>(used_), padded(saturating_product(count, sizeof(T)))));
    if (counting_) return {};
    assert(bytes() <= size_);
    const auto address = reinterpret_cast<std::uintptr_t>(begin_);
    std::byte* aligned = begin_ + (kAlignment - address % kAlignment) % kAlignment;
    return {reinterpret_cast<T*>(aligned + offset), static_cast<std::size_t>(count)};
  }

  bool counting() const { return counting_; }

  /// Bytes a block must have for what was taken so far, whatever its alignment.
  std::size_t bytes() const {
    return used_ == 0 ? 0
                      : static_cast<std::size_t>(saturating_sum(static_cast<Index>(used_), kAlignment - 1));
  }

  /// What `use(workspace)` takes.
  template <class Use>
  static std::size_t bytes_of(Use&& use) {
    Workspace counting;
    use(counting);
    return counting.bytes();
  }

 private:
  static constexpr Index padded(Index bytes) {
    constexpr Index kLine = kAlignment;
    return saturating_sum(bytes, kLine - 1) / kLine * kLine;
  }

  std::byte* begin_ = nullptr;
  std::size_t size_ = 0;
  std::size_t used_ = 0;
  bool counting_ = true;
};

/// An equal share of a workspace for each worker.
class WorkerScratch {
 public:
  WorkerScratch() = default;
  WorkerScratch(Index workers, std::size_t bytes, Workspace& workspace)
      : bytes_(bytes),
        memory_(workspace.take<std::byte>(saturating_product(workers, static_cast<Index>(bytes)))) {}
  /// `use(workspace)` takes what one worker needs; it is called once, to count.
  template <class Use>
  WorkerScratch(Index workers, Workspace& workspace, Use&& use)
      : WorkerScratch(workers, Workspace::bytes_of(use), workspace) {}

  /// Worker `w`'s share, from its beginning.
  Workspace of(Index w) const {
    return Workspace(memory_.subspan(static_cast<std::size_t>(w) * bytes_, bytes_));
  }

 private:
  std::size_t bytes_ = 0;
  std::span<std::byte> memory_ = {};
};

}  // namespace fastrope::inline FASTROPE_TARGET
