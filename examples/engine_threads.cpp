// fastrope inside an engine in the style of ggml: threads that enter every operation together, each with its
// number, and meet at a barrier.
//
//     engine_threads [threads]
//
// One plan, for the longest prompt and the whole context, and its workspace are made when the engine starts:
// every step, prompt or token, runs it, allocates nothing and throws nothing. Keys are cached as a rotary
// operation leaves them, so that positions matter to the mask alone.
#include <algorithm>
#include <array>
#include <atomic>
#include <barrier>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fastrope/fastrope.hpp>
#include <functional>
#include <new>
#include <random>
#include <thread>
#include <vector>

static std::atomic<long> allocations = 0;

// Not inlined: GCC would see free() meet operator new.
[[gnu::noinline]] void* operator new(std::size_t size) {
  ++allocations;
  if (void* memory = std::malloc(size)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

namespace {

using fastrope::Index;
using fastrope::RunStatus;

/// Threads 0 to size - 1, of which 0 is the caller's.
class ThreadPool {
 public:
  explicit ThreadPool(Index size) : size_(size), barrier_(size) {
    for (Index ith = 1; ith < size; ++ith)
      threads_.emplace_back([this, ith] {
        for (wait(); graph_; wait()) {
          graph_(ith);
          wait();
        }
      });
  }
  ~ThreadPool() {
    graph_ = nullptr;
    wait();
  }
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool(ThreadPool&&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;
  ThreadPool& operator=(ThreadPool&&) = delete;

  void wait() { barrier_.arrive_and_wait(); }

  /// graph(ith) on every thread.
  void compute(const std::function<void(Index)>& graph) {
    graph_ = graph;
    wait();
    graph(0);
    wait();
  }

  /// call() on thread 0, whose executor() the others serve meanwhile. Every thread enters.
  template <class Call>
  void operation(Index ith, Call&& call) {
    if (ith == 0) {
      call();
      return wait();
    }
    for (wait(); task_ != nullptr; wait()) take_tasks(ith);
  }

  fastrope::Executor executor() {
    return {size_, [this](Index count, fastrope::TaskRef task) {
              task_ = &task;
              count_ = count;
              next_ = 0;
              wait();
              take_tasks(0);
              task_ = nullptr;
            }};
  }

 private:
  void take_tasks(Index ith) {
    for (Index i = next_++; i < count_; i = next_++) (*task_)(i, ith);
    wait();  // all are done
  }

  Index size_;
  std::barrier<> barrier_;
  std::function<void(Index)> graph_;  // empty: the threads end
  const fastrope::TaskRef* task_;     // null: the operation is over
  Index count_;
  std::atomic<Index> next_;
  std::vector<std::jthread> threads_;
};

constexpr Index kLayers = 4, kHeads = 8, kKvHeads = 2, kDim = 64, kContext = 1024, kPrompt = 508;
constexpr const char* kStatus[] = {"ok", "shape mismatch", "workspace too small", "executor failed"};

/// A layer's tensors for every token of the context, as projections and rotations would have made them.
struct Layer {
  std::vector<float> q = std::vector<float>(kContext * kHeads * kDim), out = q;  // [context, heads, d]
  std::vector<float> k = std::vector<float>(kContext * kKvHeads * kDim), v = k;  // [context, kv_heads, d]

  /// Attention of n tokens from `first` on over the cache's rows up to the last of them.
  RunStatus attend(const fastrope::Plan<float>& plan, Index first, Index n,
                   std::vector<std::byte>& workspace) {
    const auto rows = [](std::vector<float>& x, Index heads, Index begin, Index count) {
      float* data = x.data() + begin * heads * kDim;
      return fastrope::TensorView<float>(data, heads, count, kDim, kDim, heads * kDim);
    };
    return plan.run(rows(q, kHeads, first, n), rows(k, kKvHeads, 0, first + n),
                    rows(v, kKvHeads, 0, first + n), rows(out, kHeads, first, n), workspace);
  }
  bool operator==(const Layer&) const = default;
};

struct Engine {
  ThreadPool& pool;
  fastrope::Plan<float> plan;
  std::vector<std::byte> workspace;
  std::array<Layer, kLayers> layers;
  Index length = 0;

  explicit Engine(ThreadPool& p)
      : pool(p),
        plan(fastrope::make_plan({kHeads, kKvHeads, kPrompt, kContext, kDim, kDim},
                                 {.mask = fastrope::Mask::causal(), .executor = p.executor()})),
        workspace(plan.workspace_bytes()) {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    for (Layer& x : layers)
      for (auto* tensor : {&x.q, &x.k, &x.v})
        for (float& e : *tensor) e = normal(random);
  }

  /// Takes n tokens, the prompt or one after it, through the layers. A layer that fails ends the step.
  RunStatus step(Index n) {
    RunStatus status = RunStatus::ok;
    const auto graph = [&](Index ith) {
      for (Layer& layer : layers) {
        pool.operation(ith, [&] { status = layer.attend(plan, length, n, workspace); });
        if (status != RunStatus::ok) return;
        pool.wait();  // here other operations would follow, each thread with its share
      }
    };
    pool.compute(std::ref(graph));
    if (status == RunStatus::ok) length += n;
    return status;
  }
};

/// One step and a line about it. Returns whether it went well and as in the other engine.
bool run(Engine& engine, Engine& other, Index n) {
  const long before = allocations;
  const auto start = std::chrono::steady_clock::now();
  const RunStatus status = engine.step(n);
  const std::chrono::duration<double, std::milli> time = std::chrono::steady_clock::now() - start;
  const long allocated = allocations - before;
  const bool same = status == RunStatus::ok && other.step(n) == status && engine.layers == other.layers;
  std::printf("%4td  %6td  %7.2f  %-19s  %11ld  %s\n", n, engine.length, time.count(),
              kStatus[static_cast<int>(status)], allocated, same ? "yes" : "-");
  return same && allocated == 0;
}

}  // namespace

int main(int argc, char** argv) try {
  ThreadPool pool(argc > 1 ? std::atoll(argv[1]) : 2), one(1);
  Engine engine(pool), serial(one);
  std::puts("rows  tokens       ms  status               allocations  as serial, bit for bit");
  bool good = run(engine, serial, kPrompt);
  for (int token = 0; token < 8; ++token) good = run(engine, serial, 1) && good;
  engine.workspace.clear();  // a step that fails writes nothing, and can be repeated
  return !run(engine, serial, 1) && good ? EXIT_SUCCESS : EXIT_FAILURE;
} catch (const std::exception& error) {
  std::fprintf(stderr, "engine_threads: %s\n", error.what());
  return EXIT_FAILURE;
}
