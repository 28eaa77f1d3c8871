// Ranks: the processes that share a call, and how they agree.
#pragma once

#include <mpi.h>

#include <algorithm>
#include <cstddef>
#include <exception>
#include <new>
#include <span>
#include <string>
#include <vector>

#include "fastrope/core/error.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"

namespace fastrope::inline FASTROPE_TARGET::mpi {

/// The ranks of a communicator, with messages of their own: what the caller sends does not meet ours. Making
/// and destroying one is collective. What MPI itself reports goes to the communicator's error handler, by
/// default the end of all processes.
class Ranks {
 public:
  explicit Ranks(MPI_Comm comm) {
    MPI_Comm_dup(comm, &comm_);
    MPI_Comm_rank(comm_, &rank_);
    MPI_Comm_size(comm_, &count_);
  }
  ~Ranks() { MPI_Comm_free(&comm_); }
  Ranks(const Ranks&) = delete;
  Ranks& operator=(const Ranks&) = delete;

  MPI_Comm comm() const { return comm_; }
  int rank() const { return rank_; }
  int count() const { return count_; }

  /// f() on every rank; collective. Where it throws on some, all throw what the first of those has to say, as
  /// Error.
  template <class F>
  void agree(F&& f) const {
    std::string message;
    int failed = count_;
    try {
      f();
    } catch (const std::bad_alloc&) {
      failed = rank_;
      message = "out of memory";
    } catch (const std::exception& error) {
      failed = rank_;
      message = error.what();
    }
    int first = 0;
    MPI_Allreduce(&failed, &first, 1, MPI_INT, MPI_MIN, comm_);
    if (first == count_) return;
    int length = static_cast<int>(message.size());
    MPI_Bcast(&length, 1, MPI_INT, first, comm_);
    message.resize(static_cast<std::size_t>(length));
    MPI_Bcast(message.data(), length, MPI_CHAR, first, comm_);
    detail::fail("rank ", first, ": ", message);
  }

  /// x = its sum over all ranks, in any order of additions; collective, as all that follows. Of numbers all
  /// but one of which are 0 that is the one, bit for bit.
  void sum(std::span<double> x) const {
    reduce(x, [&](double* part, int size) {
      MPI_Allreduce(MPI_IN_PLACE, part, size, MPI_DOUBLE, MPI_SUM, comm_);
    });
  }
  /// x = its sum over the ranks before this one: 0 on the first.
  void sum_before(std::span<double> x) const {
    reduce(x,
           [&](double* part, int size) { MPI_Exscan(MPI_IN_PLACE, part, size, MPI_DOUBLE, MPI_SUM, comm_); });
    if (rank_ == 0) std::fill(x.begin(), x.end(), 0.0);
  }
  /// x = its largest value on any rank. Requires no NaN.
  void largest(std::span<double> x) const {
    reduce(x, [&](double* part, int size) {
      MPI_Allreduce(MPI_IN_PLACE, part, size, MPI_DOUBLE, MPI_MAX, comm_);
    });
  }
  /// Bytes that this rank has given to these three so far; 0 where it is alone.
  Index bytes_reduced() const { return bytes_reduced_; }

  /// [ranks, row.size()]: the row of every rank; collective.
  std::vector<std::vector<Index>> gather(const std::vector<Index>& row) const {
    static_assert(sizeof(Index) == sizeof(long long));
    const int size = static_cast<int>(row.size());
    std::vector<Index> all(row.size() * static_cast<std::size_t>(count_));
    MPI_Allgather(row.data(), size, MPI_LONG_LONG, all.data(), size, MPI_LONG_LONG, comm_);
    std::vector<std::vector<Index>> rows;
    for (std::size_t r = 0; r < static_cast<std::size_t>(count_); ++r)
      rows.emplace_back(all.begin() + static_cast<std::ptrdiff_t>(r * row.size()),
                        all.begin() + static_cast<std::ptrdiff_t>((r + 1) * row.size()));
    return rows;
  }

 private:
  /// MPI counts in int.
  template <class Reduce>
  void reduce(std::span<double> x, Reduce&& reduce) const {
    constexpr std::size_t kMost = std::size_t{1} << 28;
    for (std::size_t at = 0; at < x.size(); at += kMost)
      reduce(x.data() + at, static_cast<int>(std::min(kMost, x.size() - at)));
    if (count_ > 1) bytes_reduced_ += static_cast<Index>(x.size_bytes());
  }

  MPI_Comm comm_ = MPI_COMM_NULL;
  int rank_ = 0;
  int count_ = 1;
  mutable Index bytes_reduced_ = 0;  // a count of what was done, no part of what a Ranks is
};

}  // namespace fastrope::inline FASTROPE_TARGET::mpi
