// Exchange: what every rank has for every other, and numbers and text as they lie in it.
#pragma once

#include <mpi.h>

#include <cstddef>
#include <cstring>
#include <iterator>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/mpi/messages.hpp"
#include "fastrope/mpi/ranks.hpp"

namespace fastrope::inline FASTROPE_TARGET::mpi::detail {

using Buffer = std::vector<std::byte>;

/// What a call did on this rank.
struct Traffic {
  double pairs = 0;      ///< of queries and keys that are computed by pieces, of all ranks and heads,
  double own_pairs = 0;  ///< and those of them that this rank computed
  Index bytes_sent = 0, bytes_received = 0;

  Traffic& operator+=(const Traffic& more) {
    pairs += more.pairs;
    own_pairs += more.own_pairs;
    bytes_sent += more.bytes_sent;
    bytes_received += more.bytes_received;
    return *this;
  }
};

/// to [ranks]: what this rank has for each. Returns what each has for this one; collective. What a rank has
/// for itself is moved.
inline std::vector<Buffer> exchange(const Ranks& ranks, std::vector<Buffer> to, Traffic& traffic) {
  const auto count = static_cast<std::size_t>(ranks.count()), me = static_cast<std::size_t>(ranks.rank());
  std::vector<Index> sent(count), received(count);
  for (std::size_t r = 0; r < count; ++r) sent[r] = std::ssize(to[r]);
  MPI_Alltoall(sent.data(), 1, MPI_LONG_LONG, received.data(), 1, MPI_LONG_LONG, ranks.comm());
  std::vector<Buffer> from(count);
  from[me] = std::move(to[me]);
  sent[me] = received[me] = 0;
  ranks.agree([&] {
    for (std::size_t r = 0; r < count; ++r) {
      if (r == me) continue;
      to[r].resize(static_cast<std::size_t>(Messages::padded(sent[r])));
      from[r] = Messages::buffer(received[r]);
    }
  });
  Messages messages(ranks);
  std::vector<MPI_Request> requests;
  for (std::size_t r = 0; r < count; ++r)
    if (received[r] > 0) requests.push_back(messages.receive(from[r], received[r], static_cast<int>(r), 0));
  for (std::size_t r = 0; r < count; ++r)
    if (sent[r] > 0) messages.send(to[r], sent[r], static_cast<int>(r), 0);
  MPI_Waitall(static_cast<int>(requests.size()), requests.data(), MPI_STATUSES_IGNORE);
  messages.wait();
  for (std::size_t r = 0; r < count; ++r)
    if (r != me) from[r].resize(static_cast<std::size_t>(received[r]));
  traffic += {.bytes_sent = messages.sent(), .bytes_received = messages.received()};
  return from;
}

/// What every rank has for all others.
inline std::vector<Buffer> gather(const Ranks& ranks, const Buffer& own, Traffic& traffic) {
  std::vector<Buffer> to;
  ranks.agree([&] { to.assign(static_cast<std::size_t>(ranks.count()), own); });
  return exchange(ranks, std::move(to), traffic);
}

/// Numbers, text and lists of them, one after the other.
class Packer {
 public:
  template <class... T>
  Packer& operator()(const T&... x) {
    (add(x), ...);
    return *this;
  }
  template <class T>
  void add_bytes(const T* x, Index count) {
    const auto* from = reinterpret_cast<const std::byte*>(x);
    bytes_.insert(bytes_.end(), from, from + static_cast<std::size_t>(count) * sizeof(T));
  }
  const Buffer& bytes() const { return bytes_; }

 private:
  template <class T>
  requires std::is_trivially_copyable_v<T>
  void add(const T& x) { add_bytes(&x, 1); }
  void add(const std::string& x) {
    add(x.size());
    add_bytes(x.data(), std::ssize(x));
  }

  Buffer bytes_ = {};
};

/// The same, to be read in the order in which they were added.
class Unpacker {
 public:
  explicit Unpacker(const Buffer& bytes) : left_(bytes) {}

  template <class... T>
  Unpacker& operator()(T&... x) {
    (read(x), ...);
    return *this;
  }
  /// What has not been read.
  std::span<const std::byte> left() const { return left_; }

 private:
  template <class T>
  requires std::is_trivially_copyable_v<T>
  void read(T& x) { read(&x, sizeof x); }
  void read(std::string& x) {
    std::size_t size = 0;
    read(size);
    x.resize(size);
    read(x.data(), size);
  }
  void read(void* to, std::size_t size) {
    std::memcpy(to, left_.data(), size);
    left_ = left_.subspan(size);
  }

  std::span<const std::byte> left_;
};

}  // namespace fastrope::inline FASTROPE_TARGET::mpi::detail
