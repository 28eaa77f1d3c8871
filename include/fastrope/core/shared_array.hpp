// SharedArray: numbers that are written once, when a call is checked, and shared by every copy of it, so that
// copying a checked call allocates nothing.
#pragma once

#include <cstddef>
#include <memory>
#include <utility>
#include <vector>

#include "fastrope/core/target.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// An immutable array. Copies share the elements.
template <class T>
class SharedArray {
 public:
  SharedArray() = default;
  SharedArray(std::vector<T> values) {
    if (values.empty()) return;
    const auto owner = std::make_shared<const std::vector<T>>(std::move(values));
    size_ = owner->size();
    data_ = std::shared_ptr<const T>(owner, owner->data());
  }

  bool empty() const { return size_ == 0; }
  std::size_t size() const { return size_; }
  const T* data() const { return data_.get(); }
  const T* begin() const { return data(); }
  const T* end() const { return data() + size_; }
  const T& operator[](std::size_t i) const { return data()[i]; }
  const T& front() const { return data()[0]; }
  const T& back() const { return data()[size_ - 1]; }

 private:
  std::shared_ptr<const T> data_;
  std::size_t size_ = 0;
};

}  // namespace fastrope::inline FASTROPE_TARGET
