// The cache of an engine that serves many texts: keys and values of every layer in pages of one pool. A page
// has the same number in all layers, so a text has one list of pages.
#pragma once

#include <algorithm>
#include <cstdint>
#include <fastrope/fastrope.hpp>
#include <vector>

namespace serve {

using fastrope::Index;

/// The rows of a text that are cached, and the pages that hold them.
struct CachedText {
  Index rows = 0;
  std::vector<std::int32_t> pages;
};

/// T: what keys and values are stored as.
template <class T>
class PagedCache {
 public:
  using View = fastrope::PagedView<const T>;
  static constexpr Index kPageRows = 16;

  PagedCache(Index layers, Index kv_heads, Index d, Index pages)
      : kv_heads_(kv_heads), d_(d), pages_(pages), layers_(static_cast<std::size_t>(layers)) {
    for (Layer& layer : layers_) {
      layer.keys.resize(static_cast<std::size_t>(pages * page_size()));
      layer.values.resize(layer.keys.size());
    }
    for (Index page = pages; page > 0; --page) free_.push_back(static_cast<std::int32_t>(page - 1));
  }

  Index pages() const { return pages_; }
  Index used() const { return pages_ - static_cast<Index>(free_.size()); }

  /// Pages for `rows` rows of a text; false where there are not enough, and then it has what it had.
  bool reserve(CachedText& text, Index rows) {
    const Index more = fastrope::ceil_div(rows, kPageRows) - static_cast<Index>(text.pages.size());
    if (more > static_cast<Index>(free_.size())) return false;
    for (Index i = 0; i < more; ++i) {
      text.pages.push_back(free_.back());
      free_.pop_back();
    }
    return true;
  }
  void release(CachedText& text) {
    free_.insert(free_.end(), text.pages.rbegin(), text.pages.rend());
    text = {};
  }

  /// Row `row` of a text in a layer = key and value, [kv_heads, d] each.
  void store(std::size_t layer, const CachedText& text, Index row, const float* key, const float* value) {
    const auto to = [&](std::vector<T>& rows, const float* x) {
      for (Index h = 0; h < kv_heads_; ++h)
        std::transform(x + h * d_, x + (h + 1) * d_, rows.data() + place(text, row, h),
                       [](float e) { return static_cast<T>(e); });
    };
    to(layers_[layer].keys, key);
    to(layers_[layer].values, value);
  }
  /// Copies a row of a text to another, in all layers.
  void move(const CachedText& text, Index from, Index to) {
    for (Layer& layer : layers_)
      for (std::vector<T>* rows : {&layer.keys, &layer.values})
        for (Index h = 0; h < kv_heads_; ++h)
          std::copy_n(rows->data() + place(text, from, h), d_, rows->data() + place(text, to, h));
  }

  /// The first rows of a text in a layer: [kv_heads, rows, d].
  View keys(std::size_t layer, const CachedText& text, Index rows) const {
    return view(layers_[layer].keys, text, rows);
  }
  View values(std::size_t layer, const CachedText& text, Index rows) const {
    return view(layers_[layer].values, text, rows);
  }

 private:
  struct Layer {
    std::vector<T> keys, values;  // [pages, kv_heads, kPageRows, d]
  };

  Index page_size() const { return kv_heads_ * kPageRows * d_; }
  Index place(const CachedText& text, Index row, Index head) const {
    const Index page = text.pages[static_cast<std::size_t>(row / kPageRows)];
    return page * page_size() + (head * kPageRows + row % kPageRows) * d_;
  }
  View view(const std::vector<T>& rows, const CachedText& text, Index count) const {
    return {rows.data(), kv_heads_, count, d_, kPageRows, text.pages, page_size(), kPageRows * d_, d_};
  }

  Index kv_heads_, d_, pages_;
  std::vector<Layer> layers_;
  std::vector<std::int32_t> free_;
};

}  // namespace serve
