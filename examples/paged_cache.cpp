// An engine that serves many requests: keys and values in bfloat16 pages of a pool that all sequences share,
// and prompts, chunks of prompts and single tokens attended together, one call a step.
//
//     paged_cache [threads]
//
// Prints, for every step, what the batch held and two differences over max|V|: from attention of each
// sequence alone over the same numbers as contiguous floats, and from attention over what was there before
// bfloat16.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fastrope/fastrope.hpp>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using fastrope::bfloat16;
using fastrope::Index;
using fastrope::TensorView;
using Pages = fastrope::PagedView<const bfloat16>;
using Views = fastrope::SequenceViews<float, Pages>;

constexpr Index kHeads = 8, kKvHeads = 2, kDim = 64;
constexpr Index kPages = 40, kPageRows = 16, kHeadSize = kPageRows * kDim, kPageSize = kKvHeads * kHeadSize;

/// A request: its pages and, for comparison only, its keys and values as they were before storage.
struct Sequence {
  Index length = 0;
  std::vector<std::int32_t> pages;
  std::vector<float> keys, values;  // [length, kv_heads, d]
};

/// The memory of all keys and values: [pages, kv_heads, page_rows, d] each.
class Pool {
 public:
  Pool() : keys_(kPages * kPageSize), values_(kPages * kPageSize) {
    for (std::int32_t page = 0; page < kPages; ++page) free_.push_back(page);
  }

  Pages keys(const Sequence& s) const { return view(keys_, s); }
  Pages values(const Sequence& s) const { return view(values_, s); }
  Index used() const { return kPages - static_cast<Index>(free_.size()); }

  /// A token's key and value, [kv_heads, d] each, behind those of the sequence.
  void append(Sequence& s, const float* key, const float* value) {
    if (s.length % kPageRows == 0) {
      if (free_.empty()) throw std::runtime_error("the pool has no free page");
      s.pages.push_back(free_.back());
      free_.pop_back();
    }
    const Index row = s.pages.back() * kPageSize + s.length % kPageRows * kDim;
    for (Index h = 0; h < kKvHeads; ++h)
      for (Index c = 0; c < kDim; ++c) {
        keys_[static_cast<std::size_t>(row + h * kHeadSize + c)] = static_cast<bfloat16>(key[h * kDim + c]);
        values_[static_cast<std::size_t>(row + h * kHeadSize + c)] =
            static_cast<bfloat16>(value[h * kDim + c]);
      }
    ++s.length;
  }

  void release(Sequence& s) {
    free_.insert(free_.end(), s.pages.begin(), s.pages.end());
    s = {};
  }

 private:
  static Pages view(const std::vector<bfloat16>& memory, const Sequence& s) {
    return {memory.data(), kKvHeads, s.length, kDim, kPageRows, s.pages, kPageSize, kHeadSize, kDim};
  }

  std::vector<bfloat16> keys_, values_;
  std::vector<std::int32_t> free_;
};

/// New tokens of a sequence that a step takes.
struct Part {
  std::size_t sequence;
  Index count;
};

class Engine {
 public:
  explicit Engine(const fastrope::Executor& executor) : sequences_(4) {
    options_.mask = fastrope::Mask::causal();
    options_.rope = fastrope::Rope{.pairing = fastrope::RopePairing::half_split};
    options_.executor = executor;
  }

  /// Attention of all parts in one call, then a line about it. Returns whether the differences are in order.
  bool step(const std::vector<Part>& parts) {
    Index tokens = 0;
    for (const Part& part : parts) tokens += part.count;
    std::vector<float> q = random_rows(tokens * kHeads), out(q.size());  // [tokens, heads, d]
    const TensorView<const float> queries(q.data(), kHeads, tokens, kDim, kDim, kHeads * kDim);
    const TensorView<float> outputs(out.data(), kHeads, tokens, kDim, kDim, kHeads * kDim);

    std::vector<Views> views;
    std::vector<fastrope::Shapes> shapes;
    Index begin = 0;
    for (const auto& [sequence, count] : parts) {
      Sequence& s = sequences_[sequence];
      extend(s, count);
      const fastrope::Range range{begin, begin + count};
      views.push_back({rows(queries, range), pool_.keys(s), pool_.values(s), rows(outputs, range)});
      shapes.push_back({kHeads, kKvHeads, count, s.length, kDim, kDim});
      begin += count;
    }
    const fastrope::BatchPlan<float> plan(shapes, options_);  // a model runs it once for each layer
    workspace_.resize(std::max(workspace_.size(), plan.workspace_bytes()));
    if (plan.run(views, workspace_) != fastrope::RunStatus::ok) throw std::runtime_error("the batch failed");

    std::string text;
    double same = 0, before = 0;
    for (std::size_t p = 0; p < parts.size(); ++p) {
      const Sequence& s = sequences_[parts[p].sequence];
      text += std::to_string(parts[p].count) + '/' + std::to_string(s.length) + ' ';
      same = std::max(same, difference(views[p], stored(s.keys), stored(s.values)));
      before = std::max(before, difference(views[p], s.keys, s.values));
    }
    std::printf("%-26s  %5td  %10.1e  %10.1e\n", text.c_str(), pool_.used(), same, before);
    return same == 0 && before < 0.01;
  }
  void finish(std::size_t sequence) { pool_.release(sequences_[sequence]); }

 private:
  std::vector<float> random_rows(Index rows) {
    std::vector<float> x(static_cast<std::size_t>(rows * kDim));
    for (float& e : x) e = normal_(random_);
    return x;
  }

  /// What a layer's projections would have made of `count` new tokens, into the cache.
  void extend(Sequence& s, Index count) {
    for (Index i = 0; i < count; ++i) {
      const std::vector<float> key = random_rows(kKvHeads), value = random_rows(kKvHeads);
      pool_.append(s, key.data(), value.data());
      s.keys.insert(s.keys.end(), key.begin(), key.end());
      s.values.insert(s.values.end(), value.begin(), value.end());
    }
  }

  /// What storage makes of x.
  static std::vector<float> stored(std::vector<float> x) {
    for (float& e : x) e = static_cast<float>(static_cast<bfloat16>(e));
    return x;
  }

  /// max |out - expected| / max|V| with keys and values [n_k, kv_heads, d].
  double difference(const Views& x, const std::vector<float>& keys, const std::vector<float>& values) const {
    std::vector<float> expected(static_cast<std::size_t>(kHeads * x.q.rows * kDim));
    const auto e = fastrope::contiguous(expected.data(), kHeads, x.q.rows, kDim);
    const auto cache = [&](const std::vector<float>& data) {
      return TensorView<const float>(data.data(), kKvHeads, x.k.rows, kDim, kDim, kKvHeads * kDim);
    };
    fastrope::attend(x.q, cache(keys), cache(values), e, options_);
    double most = 0, largest = 0;
    for (Index h = 0; h < kHeads; ++h)
      for (Index i = 0; i < x.q.rows; ++i)
        for (Index c = 0; c < kDim; ++c)
          most = std::max<double>(most, std::abs(x.out.head(h)(i, c) - e.head(h)(i, c)));
    for (float value : values) largest = std::max<double>(largest, std::abs(value));
    return most / largest;
  }

  fastrope::Options options_;
  Pool pool_;
  std::vector<Sequence> sequences_;
  std::vector<std::byte> workspace_;
  std::mt19937 random_{1};
  std::normal_distribution<float> normal_;
};

}  // namespace

int main(int argc, char** argv) try {
  const Index threads = argc > 1 ? std::atoll(argv[1]) : 1;
  Engine engine(threads > 1 ? fastrope::Executor::openmp(threads) : fastrope::Executor::serial());
  std::printf("%-26s  %5s  %10s  %10s\n", "new/all tokens", "pages", "same data", "unrounded");
  bool good = engine.step({{0, 200}});                     // a prompt
  good = engine.step({{0, 1}, {1, 90}}) && good;           // its next token, beside another prompt
  good = engine.step({{0, 1}, {1, 1}, {2, 64}}) && good;   // the first chunk of a third
  good = engine.step({{0, 1}, {1, 1}, {2, 64}}) && good;   // and its second
  engine.finish(0);                                        // the first is done: its pages go
  good = engine.step({{1, 1}, {2, 1}, {3, 300}}) && good;  // to a fourth
  for (int i = 0; i < 3; ++i) good = engine.step({{1, 1}, {2, 1}, {3, 1}}) && good;
  return good ? EXIT_SUCCESS : EXIT_FAILURE;
} catch (const std::exception& error) {
  std::fprintf(stderr, "paged_cache: %s\n", error.what());
  return EXIT_FAILURE;
}
