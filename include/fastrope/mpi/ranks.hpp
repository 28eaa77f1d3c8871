// Ranks: the processes that share a call, and how they agree.
#pragma once

#include <mpi.h>

#include <exception>
#include <new>
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
  MPI_Comm comm_ = MPI_COMM_NULL;
  int rank_ = 0;
  int count_ = 1;
};

}  // namespace fastrope::inline FASTROPE_TARGET::mpi
