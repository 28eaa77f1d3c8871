// Reads a little-endian binary file value by value; every failure names the file and the bytes that clash.
#pragma once

#include <bit>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <system_error>

namespace llama2 {

static_assert(std::endian::native == std::endian::little, "llama2.c files are little-endian");

/// A file that cannot be used, or a request beyond the model.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A binary file, read from the front.
class FileReader {
 public:
  /// Throws Error if there is no readable file at `path`.
  explicit FileReader(const std::string& path) : path_(path), in_(path, std::ios::binary) {
    std::error_code error;
    const std::uintmax_t size = std::filesystem::file_size(path, error);
    if (error) fail("cannot be read: " + error.message());
    if (!in_) fail("cannot be opened");
    left_ = static_cast<std::int64_t>(size);
  }

  /// Throws Error unless `count` more values of `T` are there; `what` says what they are.
  template <class T>
  void require(std::int64_t count, const std::string& what) const {
    const std::int64_t bytes = count * static_cast<std::int64_t>(sizeof(T));
    if (bytes > left_)
      fail("ends early: " + what + " needs " + std::to_string(bytes) + " bytes, " + std::to_string(left_) +
           " are left");
  }

  /// The next `count` values into `values`.
  template <class T>
  void read(T* values, std::int64_t count, const std::string& what) {
    require<T>(count, what);
    const std::int64_t bytes = count * static_cast<std::int64_t>(sizeof(T));
    if (!in_.read(reinterpret_cast<char*>(values), bytes)) fail("failed to read " + what);
    left_ -= bytes;
  }

  template <class T>
  T read(const std::string& what) {
    T value;
    read(&value, 1, what);
    return value;
  }

  /// Bytes not read yet.
  std::int64_t left() const { return left_; }

  [[noreturn]] void fail(const std::string& what) const { throw Error(path_ + ": " + what); }

 private:
  std::string path_;
  std::ifstream in_;
  std::int64_t left_ = 0;
};

}  // namespace llama2
