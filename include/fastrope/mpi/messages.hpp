// Messages between ranks, and rows as they lie in them.
#pragma once

#include <mpi.h>

#include <cstddef>
#include <cstring>
#include <iterator>
#include <vector>

#include "fastrope/core/index.hpp"
#include "fastrope/core/stored_rows.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/core/tensor_view.hpp"
#include "fastrope/mpi/ranks.hpp"

namespace fastrope::inline FASTROPE_TARGET::mpi::detail {

/// [heads, rows, cols] without gaps, of elements of a type.
inline StoredRows packed_rows(const StoredType* type, const std::byte* data, Index heads, Index rows,
                              Index cols) {
  StoredRows x = TensorView<const float>(nullptr, heads, rows, cols, 0, 0);
  x.type = type;
  x.data = data;
  x.row_stride = type->bytes_of(cols);
  x.head_stride = rows * x.row_stride;
  return x;
}

/// Rows of [heads, rows, cols] without gaps, as they lie in a message: the bytes of each as they are stored,
/// but of scaled rows as Real.
template <class Real>
class PackedRows {
 public:
  explicit PackedRows(const StoredRows& x)
      : type_(x.is_scaled() ? &kStoredType<Real> : x.type),
        cols_(x.cols),
        row_bytes_(type_->bytes_of(x.cols)) {}

  Index row_bytes() const { return row_bytes_; }
  /// Such that what follows is aligned for any type.
  Index bytes(Index heads, Index rows) const { return round_up(heads * rows * row_bytes_, kAlignment); }
  void pack(const StoredRows& x, Range rows, std::byte* to) const {
    for (Index h = 0; h < x.heads; ++h) {
      const StoredHead head = x.head(h);
      for (Index j = rows.begin; j < rows.end; ++j, to += row_bytes_)
        if (head.is_scaled())
          head.read(j, x.cols, reinterpret_cast<Real*>(to));
        else
          std::memcpy(to, head.row(j), static_cast<std::size_t>(row_bytes_));
    }
  }
  /// What was packed.
  StoredRows view(const std::byte* packed, Index heads, Index rows) const {
    return packed_rows(type_, packed, heads, rows, cols_);
  }

 private:
  static constexpr Index kAlignment = 16;

  const StoredType* type_;
  Index cols_, row_bytes_;
};

/// Messages that are on their way, in units of a kilobyte, since MPI counts in int.
class Messages {
 public:
  explicit Messages(const Ranks& ranks) : ranks_(ranks) {
    MPI_Type_contiguous(kUnit, MPI_BYTE, &unit_);
    MPI_Type_commit(&unit_);
  }
  ~Messages() {
    wait();
    MPI_Type_free(&unit_);
  }
  Messages(const Messages&) = delete;
  Messages& operator=(const Messages&) = delete;

  static constexpr Index kUnit = 1024;
  static Index padded(Index bytes) { return round_up(bytes, kUnit); }
  static std::vector<std::byte> buffer(Index bytes) {
    return std::vector<std::byte>(static_cast<std::size_t>(padded(bytes)));
  }

  /// Memory of padded(bytes) must live until wait().
  void send(const std::vector<std::byte>& from, Index bytes, int to, int tag) {
    requests_.emplace_back();
    MPI_Isend(from.data(), units(bytes), unit_, to, tag, ranks_.comm(), &requests_.back());
    sent_ += bytes;
  }
  /// Until the request is done.
  MPI_Request receive(std::vector<std::byte>& to, Index bytes, int from, int tag) {
    MPI_Request request;
    MPI_Irecv(to.data(), units(bytes), unit_, from, tag, ranks_.comm(), &request);
    received_ += bytes;
    return request;
  }
  /// Lets MPI move what it can.
  void progress() {
    int done = 0;
    MPI_Testall(static_cast<int>(requests_.size()), requests_.data(), &done, MPI_STATUSES_IGNORE);
    int there = 0;
    MPI_Iprobe(MPI_ANY_SOURCE, MPI_ANY_TAG, ranks_.comm(), &there, MPI_STATUS_IGNORE);
  }
  void wait() {
    MPI_Waitall(static_cast<int>(requests_.size()), requests_.data(), MPI_STATUSES_IGNORE);
    requests_.clear();
  }
  Index sent() const { return sent_; }
  Index received() const { return received_; }

 private:
  static int units(Index bytes) { return static_cast<int>(padded(bytes) / kUnit); }

  const Ranks& ranks_;
  MPI_Datatype unit_ = MPI_DATATYPE_NULL;
  std::vector<MPI_Request> requests_ = {};
  Index sent_ = 0, received_ = 0;
};

}  // namespace fastrope::inline FASTROPE_TARGET::mpi::detail
