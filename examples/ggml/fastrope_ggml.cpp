// fastrope as a backend of ggml: a device of type ACCEL that takes GGML_OP_FLASH_ATTN_EXT and nothing else.
//
//     ggml_backend_load("libfastrope_ggml.so");  // before a context is made; or GGML_BACKEND_PATH
//
// Tensors stay where the CPU backend has them. What a mask says (mask_plane.hpp) is kept until its bytes
// change, so that the layers of a graph share it. Runs of rows, which is nearly all that engines ask for, are
// served by plans with capacity, made once while a cache grows; other ranges by a plan that the layers share;
// the rest by a dense bias.
//
// With FASTROPE_TOLERANCE=t in the environment when a context is made, prompts are looked at: their heads may
// take fastrope's approximate paths, whose results are within t max|V| of exact ones. Single steps are exact.
//
// To read a type of keys and values more, say how in with_rows() and claim it in is_supported().
#include "fastrope_ggml.h"

#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <fastrope/fastrope.hpp>
#include <iostream>
#include <list>
#include <map>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "counters.hpp"
#include "ggml-backend-impl.h"
#include "mask_plane.hpp"

namespace {

using fastrope::float16;
using fastrope::Index;
using fastrope::Range;
using fastrope::TensorView;
using fastrope_ggml::MaskPlane;
using fastrope_ggml::Run;

// --- What is counted ---

fastrope_ggml::Counters counters;

// --- Plans ---

/// Plans for shapes and options, each made when it is first asked for.
class Plans {
 public:
  /// A plan that takes these shapes. The options' spans must live while it is used; their contents are
  /// compared.
  const fastrope::Plan<float>& find(const fastrope::Shapes& shapes, const fastrope::Options& options) {
    for (const Kept& kept : kept_)
      if (kept.takes(shapes, options)) return kept.plan;
    if (std::size(kept_) == kMost) kept_.pop_front();
    fastrope::Shapes capacity = shapes;
    if (!options.key_ranges.given() && options.dense_bias.data == nullptr) {
      // As a cache grows, few plans are made.
      capacity.n_q = round_to_power(shapes.n_q);
      capacity.n_k = std::max<Index>(round_to_power(shapes.n_k), 1024);
    }
    ++counters.plans;
    return kept_.emplace_back(capacity, options).plan;
  }

 private:
  static constexpr std::size_t kMost = 128;  // a plan for each layer, where layers have sinks of their own

  struct Kept {
    fastrope::Options options;
    std::vector<float> sinks;
    fastrope::Plan<float> plan;

    Kept(const fastrope::Shapes& shapes, const fastrope::Options& wanted)
        : options(wanted),
          sinks(wanted.sinks.begin(), wanted.sinks.end()),
          plan(fastrope::make_plan<float>(shapes, wanted)) {}

    bool takes(const fastrope::Shapes& s, const fastrope::Options& o) const {
      fastrope::Shapes sizes = plan.shapes();
      if (plan.has_capacity() && s.n_q <= sizes.n_q && s.n_k <= sizes.n_k) {
        sizes.n_q = s.n_q;
        sizes.n_k = s.n_k;
      }
      return sizes == s && options.scale == o.scale && options.softcap == o.softcap &&
             options.mask == o.mask && options.executor.workers() == o.executor.workers() &&
             options.key_ranges.ranges.data() == o.key_ranges.ranges.data() &&
             options.key_ranges.ranges.size() == o.key_ranges.ranges.size() &&
             options.key_ranges.per_row == o.key_ranges.per_row &&
             options.dense_bias.data == o.dense_bias.data &&
             options.dense_bias.head_stride == o.dense_bias.head_stride &&
             options.dense_bias.row_stride == o.dense_bias.row_stride && std::ranges::equal(sinks, o.sinks);
    }
  };

  static Index round_to_power(Index n) {
    return static_cast<Index>(std::bit_ceil(static_cast<std::size_t>(std::max<Index>(n, 1))));
  }

  std::list<Kept> kept_;
};

// --- The operation ---

/// f(view) of a stream's rows as fastrope sees them: some, or those that are listed. Nothing for types that
/// it does not read.
template <class F>
void with_rows(const ggml_tensor* x, Index stream, Range rows, std::span<const std::int32_t> cells, F&& f) {
  const char* data = static_cast<const char*>(x->data) + stream * static_cast<Index>(x->nb[3]);
  const auto view = [&]<class T>(std::type_identity<T>) {
    const auto* first = reinterpret_cast<const T*>(data);
    const auto row = static_cast<Index>(x->nb[1] / sizeof(T)),
               head = static_cast<Index>(x->nb[2] / sizeof(T));
    if (cells.empty())
      f(TensorView<const T>(first + rows.begin * row, x->ne[2], rows.size(), x->ne[0], head, row));
    else  // pages of a row
      f(fastrope::PagedView<const T>{first, x->ne[2], std::ssize(cells), x->ne[0], 1, cells, row, head, row});
  };
  switch (x->type) {
    case GGML_TYPE_F32:
      return view(std::type_identity<float>{});
    case GGML_TYPE_F16:
      return view(std::type_identity<float16>{});
    case GGML_TYPE_BF16:
      return view(std::type_identity<fastrope::bfloat16>{});
    case GGML_TYPE_Q8_0:
      return view(std::type_identity<fastrope::Q8_0>{});
    case GGML_TYPE_Q4_0:
      return view(std::type_identity<fastrope::Q4_0>{});
    default:
      return;
  }
}

/// The parameters of a node.
struct Parameters {
  float scale, max_bias, softcap;

  explicit Parameters(const ggml_tensor* node) { std::memcpy(this, node->op_params, sizeof *this); }
};

/// What a head's mask is multiplied by, as ggml has it.
float alibi_slope(float max_bias, Index heads, Index h) {
  const auto power = static_cast<Index>(std::bit_floor(static_cast<std::size_t>(heads)));
  const float first = std::exp2(-max_bias / static_cast<float>(power));
  const float second = std::exp2(-max_bias / 2 / static_cast<float>(power));
  return h < power ? std::pow(first, static_cast<float>(h + 1))
                   : std::pow(second, static_cast<float>(2 * (h - power) + 1));
}

/// What a cast to F16 was made from. llama.cpp hands a cache of F32 over so; there is more to be read in it.
/// Only where the floats are no result of a graph, whose memory another may have by now.
const ggml_tensor* before_cast(const ggml_tensor* x) {
  if (x->op != GGML_OP_CPY || x->type != GGML_TYPE_F16) return x;
  const ggml_tensor* from = x->src[0];
  const ggml_tensor* owner = from->view_src != nullptr ? from->view_src : from;
  const bool stays = owner->op == GGML_OP_NONE && owner->buffer != nullptr &&
                     ggml_backend_buffer_is_host(owner->buffer) &&
                     ggml_backend_buffer_get_usage(owner->buffer) != GGML_BACKEND_BUFFER_USAGE_COMPUTE;
  const bool is_the_same =
      from->type == GGML_TYPE_F32 && from->nb[0] == sizeof(float) && ggml_are_same_shape(from, x);
  return stays && is_the_same ? from : x;
}

class Backend {
 public:
  /// tolerance: of prompts, over max|V|; 0: all is exact.
  explicit Backend(double tolerance) : tolerance_(tolerance) {}

  void set_threads(int threads) {
    if (threads != executor_.workers()) executor_ = fastrope::Executor::openmp(std::max(threads, 1));
  }

  /// Throws fastrope::Error where the node cannot be run.
  void attend(const ggml_tensor* node) {
    const ggml_tensor *q = node->src[0], *k = node->src[1], *mask = node->src[3];
    for (Index stream = 0; stream < q->ne[3]; ++stream) {
      if (mask == nullptr) {
        ++counters.runs;
        attend_run(node, stream, {.rows = {0, q->ne[1]}, .keys = {0, k->ne[1]}});
        continue;
      }
      const auto* values = reinterpret_cast<const std::uint16_t*>(
          static_cast<const char*>(mask->data) + stream % mask->ne[3] * static_cast<Index>(mask->nb[3]));
      auto& [plane, plans] = mask_at(values);
      if (plane.read(values, q->ne[1], mask->ne[0], static_cast<Index>(mask->nb[1] / sizeof *values))) {
        ++counters.masks;
        plans = {};
      }
      switch (plane.kind()) {
        case MaskPlane::Kind::runs:
          ++counters.runs;
          for (const Run& run : plane.runs()) attend_run(node, stream, run);
          break;
        case MaskPlane::Kind::ranges: {
          ++counters.ranges;
          fastrope::Options options = options_of(node);
          options.key_ranges = plane.ranges();
          run(node, {stream, {0, q->ne[2]}, {0, q->ne[1]}, plane.keys()}, plans, options);
          break;
        }
        case MaskPlane::Kind::dense:
          ++counters.dense;
          attend_dense(node, stream, values, plans);
      }
    }
  }

 private:
  /// A plane of a mask and the plans for its ranges or its values.
  struct ReadMask {
    MaskPlane plane;
    Plans plans;
  };

  /// Graphs that are made anew have their masks elsewhere: where many bytes are kept, they are forgotten.
  ReadMask& mask_at(const void* values) {
    constexpr std::size_t kMostBytes = std::size_t{1} << 28;
    std::size_t bytes = 0;
    for (const auto& [at, mask] : masks_) bytes += mask.plane.bytes();
    if (bytes > kMostBytes && !masks_.contains(values)) masks_.clear();
    return masks_[values];
  }

  fastrope::Options options_of(const ggml_tensor* node) const {
    const Parameters p(node);
    fastrope::Options options;
    options.scale = p.scale;
    options.softcap = p.softcap;
    options.executor = executor_;
    if (const ggml_tensor* sinks = node->src[4])
      options.sinks = {static_cast<const float*>(sinks->data), static_cast<std::size_t>(sinks->ne[0])};
    return options;
  }

  void attend_run(const ggml_tensor* node, Index stream, const Run& of) {
    fastrope::Options options = options_of(node);
    if (of.grows) options.mask = fastrope::Mask::causal();
    if (of.window > 0) options.mask = fastrope::Mask::sliding_window(of.window);
    run(node, {stream, {0, node->src[0]->ne[2]}, of.rows, of.keys, of.cells}, plans_, options);
  }

  /// The mask as a bias. Where heads have slopes, each has a bias of its own, of some heads at a time.
  void attend_dense(const ggml_tensor* node, Index stream, const std::uint16_t* values, Plans& plans) {
    const ggml_tensor *q = node->src[0], *mask = node->src[3];
    const Index n_q = q->ne[1], n_kv = mask->ne[0], heads = q->ne[2], group = heads / node->src[1]->ne[2];
    const auto* bias = reinterpret_cast<const float16*>(values);
    const auto stride = static_cast<Index>(mask->nb[1] / sizeof *bias);
    const float max_bias = Parameters(node).max_bias;
    fastrope::Options options = options_of(node);
    if (max_bias == 0) {
      options.dense_bias = TensorView<const float16>(bias, heads, n_q, n_kv, 0, stride);
      return run(node, {stream, {0, heads}, {0, n_q}, {0, n_kv}}, plans, options);
    }
    constexpr Index kMostElements = Index{1} << 24;
    const Index some = group * std::max<Index>(1, kMostElements / std::max<Index>(1, n_q * n_kv * group));
    biases_.resize(static_cast<std::size_t>(std::min(some, heads) * n_q * n_kv));
    const std::span<const float> sinks = options.sinks;
    for (Index h = 0; h < heads; h += some) {
      const Range part{h, std::min(h + some, heads)};
      executor_.parallel_for(part.size() * n_q, [&](Index task, Index) {
        const float slope = alibi_slope(max_bias, heads, part.begin + task / n_q);
        const float16* row = bias + task % n_q * stride;
        fastrope::simd::convert(row, n_kv, biases_.data() + task * n_kv);
        for (Index j = 0; j < n_kv; ++j) biases_[static_cast<std::size_t>(task * n_kv + j)] *= slope;
      });
      options.dense_bias = TensorView<const float>(biases_.data(), part.size(), n_q, n_kv, n_q * n_kv, n_kv);
      if (!sinks.empty())
        options.sinks =
            sinks.subspan(static_cast<std::size_t>(part.begin), static_cast<std::size_t>(part.size()));
      run(node, {stream, part, {0, n_q}, {0, n_kv}}, plans, options);
    }
  }

  /// Some heads and rows of a stream over some of its keys.
  struct Part {
    Index stream;
    Range heads, rows, keys;
    std::span<const std::int32_t> cells = {};
  };

  void run(const ggml_tensor* node, const Part& part, Plans& plans, const fastrope::Options& options) {
    const ggml_tensor *q = node->src[0], *k = before_cast(node->src[1]), *v = before_cast(node->src[2]);
    const Index group = q->ne[2] / k->ne[2];
    const Range kv_heads{part.heads.begin / group, part.heads.end / group};
    const auto of_heads = [](auto view, Range heads) {
      view.data += heads.begin * view.head_stride;
      view.heads = heads.size();
      return view;
    };
    // Rows of q [d, n_q, heads, streams] and of the result [d_v, heads, n_q, streams].
    const auto floats = [&](const ggml_tensor* x, int row, int head) {
      char* data = static_cast<char*>(x->data) + part.stream * static_cast<Index>(x->nb[3]) +
                   part.rows.begin * static_cast<Index>(x->nb[row]);
      return of_heads(TensorView<float>(reinterpret_cast<float*>(data), x->ne[head], part.rows.size(),
                                        x->ne[0], static_cast<Index>(x->nb[head] / sizeof(float)),
                                        static_cast<Index>(x->nb[row] / sizeof(float))),
                      part.heads);
    };
    auto status = fastrope::RunStatus::shape_mismatch;
    with_rows(k, part.stream, part.keys, part.cells, [&](auto keys) {
      with_rows(v, part.stream, part.keys, part.cells, [&](auto values) {
        status = run_plan(floats(q, 1, 2), of_heads(keys, kv_heads), of_heads(values, kv_heads),
                          floats(node, 2, 1), plans, options);
      });
    });
    if (status != fastrope::RunStatus::ok) throw std::runtime_error("the tensors are not those of the plan");
  }

  template <class K, class V>
  fastrope::RunStatus run_plan(const TensorView<float>& q, const K& k, const V& v,
                               const TensorView<float>& out, Plans& plans, fastrope::Options options) {
    if (tolerance_ > 0 && q.rows >= kFewestOfPrompt) {
      if (pays_to_look(q, k)) {
        options.tolerance = tolerance_;
        ++counters.plans;
        const auto plan = fastrope::make_plan(q, k, v, options);
        counters.choices.add(plan.report());
        return plan.run(q, k, v, out, workspace_for(plan));
      }
      counters.choices.add(fastrope::Path::exact, "too few keys for a look at them to pay", q.heads);
    }
    const auto& plan = plans.find({q.heads, k.heads, q.rows, k.rows, q.cols, v.cols}, options);
    return plan.run(q, k, v, out, workspace_for(plan));
  }

  /// Rows of a prompt, where fewer are drafted tokens at most.
  static constexpr Index kFewestOfPrompt = 64;

  /// A look and the decision take 7 ms a key head of size 64 and 4096 keys, 13 ms of 16384, and 30 ms of size
  /// 128. Exact attention takes as long for some 2048 d^2 pairs of rows: 8192 keys for 512 rows of 2 heads of
  /// 64.
  template <class K>
  static bool pays_to_look(const TensorView<float>& q, const K& k) {
    return q.heads * q.rows * k.rows >= 2048 * q.cols * q.cols * k.heads;
  }

  std::span<std::byte> workspace_for(const fastrope::Plan<float>& plan) {
    if (plan.workspace_bytes() > workspace_bytes_) {
      workspace_.reset();
      workspace_bytes_ = 0;
      workspace_ = std::make_unique_for_overwrite<std::byte[]>(plan.workspace_bytes());
      workspace_bytes_ = plan.workspace_bytes();
    }
    return {workspace_.get(), workspace_bytes_};
  }

  double tolerance_;
  fastrope::Executor executor_ = fastrope::Executor::serial();
  Plans plans_;                                  // with capacity
  std::map<const void*, ReadMask> masks_ = {};   // by where their values lie
  std::vector<float> biases_ = {};               // [heads, n_q, n_kv], of ALiBi
  std::unique_ptr<std::byte[]> workspace_ = {};  // not initialised
  std::size_t workspace_bytes_ = 0;
};

/// Whether Backend::attend computes a node.
bool is_supported(const ggml_tensor* node) {
  const ggml_tensor *q = node->src[0], *k = node->src[1], *v = node->src[2], *mask = node->src[3],
                    *sinks = node->src[4];
  const Parameters p(node);
  const auto has_rows = [](const ggml_tensor* x) {
    const bool readable = x->type == GGML_TYPE_F32 || x->type == GGML_TYPE_F16 || x->type == GGML_TYPE_BF16 ||
                          x->type == GGML_TYPE_Q8_0 || x->type == GGML_TYPE_Q4_0;
    return readable && x->nb[0] == ggml_type_size(x->type);
  };
  return q->type == GGML_TYPE_F32 && node->type == GGML_TYPE_F32 && has_rows(q) && has_rows(k) &&
         has_rows(v) && k->ne[2] == v->ne[2] && q->ne[2] % k->ne[2] == 0 && k->ne[3] == q->ne[3] &&
         v->ne[3] == q->ne[3] && std::abs(p.scale) <= 1e30f && p.softcap >= 0 && p.max_bias >= 0 &&
         (mask == nullptr ||
          (mask->type == GGML_TYPE_F16 && mask->nb[0] == sizeof(float16) && mask->ne[2] == 1 &&
           mask->ne[0] == k->ne[1] && mask->ne[1] >= q->ne[1] && q->ne[3] % mask->ne[3] == 0)) &&
         (sinks == nullptr ||
          (sinks->type == GGML_TYPE_F32 && ggml_is_contiguous(sinks) && sinks->ne[0] == q->ne[2]));
}

// --- ggml's interface ---

const char* device_name(ggml_backend_dev_t) { return "fastrope"; }

ggml_status graph_compute(ggml_backend_t backend, ggml_cgraph* graph) {
  const auto begin = std::chrono::steady_clock::now();
  ggml_status status = GGML_STATUS_SUCCESS;
  for (int i = 0; i < ggml_graph_n_nodes(graph) && status == GGML_STATUS_SUCCESS; ++i) {
    const ggml_tensor* node = ggml_graph_node(graph, i);
    // Views are nothing to compute.
    if (node->op != GGML_OP_FLASH_ATTN_EXT || (node->flags & GGML_TENSOR_FLAG_COMPUTE) == 0) continue;
    try {
      static_cast<Backend*>(backend->context)->attend(node);
      ++counters.nodes;
    } catch (const std::exception& error) {
      std::cerr << "fastrope: " << node->name << ": " << error.what() << '\n';
      ++counters.failed;
      status = GGML_STATUS_FAILED;
    }
  }
  counters.nanoseconds += (std::chrono::steady_clock::now() - begin).count();
  return status;
}

const ggml_backend_i backend_interface = {
    .get_name = [](ggml_backend_t backend) { return device_name(backend->device); },
    .free =
        [](ggml_backend_t backend) {
          delete static_cast<Backend*>(backend->context);
          delete backend;
        },
    .set_tensor_async = nullptr,
    .get_tensor_async = nullptr,
    .set_tensor_2d_async = nullptr,
    .get_tensor_2d_async = nullptr,
    .cpy_tensor_async = nullptr,
    .synchronize = nullptr,
    .graph_plan_create = nullptr,
    .graph_plan_free = nullptr,
    .graph_plan_update = nullptr,
    .graph_plan_compute = nullptr,
    .graph_compute = graph_compute,
    .event_record = nullptr,
    .event_wait = nullptr,
    .graph_optimize = nullptr,
};

/// Of FASTROPE_TOLERANCE. Throws fastrope::Error where that is no tolerance.
double wanted_tolerance() {
  const char* text = std::getenv("FASTROPE_TOLERANCE");
  if (text == nullptr || *text == '\0') return 0;
  char* end = nullptr;
  fastrope::Options options;
  options.tolerance = std::strtod(text, &end);
  if (*end != '\0') throw fastrope::Error(std::string("FASTROPE_TOLERANCE=") + text + " is not a number");
  fastrope::require_tolerance(options);
  return options.tolerance;
}

/// Null, which makes no context, where the tolerance that is wanted is none.
ggml_backend_t init_backend(ggml_backend_dev_t device, const char*) try {
  static ggml_guid guid = {'f', 'a', 's', 't', 'r', 'o', 'p', 'e', '-', 'g', 'g', 'm', 'l', 0, 0, 1};
  return new ggml_backend{.guid = &guid,
                          .iface = backend_interface,
                          .device = device,
                          .context = new Backend(wanted_tolerance())};
} catch (const std::exception& error) {
  std::cerr << "fastrope: " << error.what() << '\n';
  return nullptr;
}

void device_props(ggml_backend_dev_t device, ggml_backend_dev_props* props) {
  *props = {};
  props->name = device_name(device);
  props->description = device->iface.get_description(device);
  props->type = GGML_BACKEND_DEVICE_TYPE_ACCEL;
  props->caps.buffer_from_host_ptr = true;
}

bool supports_op(ggml_backend_dev_t, const ggml_tensor* op) {
  if (op->op != GGML_OP_FLASH_ATTN_EXT) return false;
  const bool supported = is_supported(op);
  if (!supported) ++counters.refused;
  return supported;
}

const ggml_backend_device_i device_interface = {
    .get_name = device_name,
    .get_description = [](ggml_backend_dev_t) { return "fastrope's attention"; },
    .get_memory = [](ggml_backend_dev_t, size_t* free, size_t* total) { *free = *total = 0; },
    .get_type = [](ggml_backend_dev_t) { return GGML_BACKEND_DEVICE_TYPE_ACCEL; },
    .get_props = device_props,
    .init_backend = init_backend,
    .get_buffer_type = [](ggml_backend_dev_t) { return ggml_backend_cpu_buffer_type(); },
    .get_host_buffer_type = nullptr,
    .buffer_from_host_ptr = [](ggml_backend_dev_t, void* data, size_t size,
                               size_t) { return ggml_backend_cpu_buffer_from_ptr(data, size); },
    .supports_op = supports_op,
    .supports_buft = [](ggml_backend_dev_t,
                        ggml_backend_buffer_type_t type) { return ggml_backend_buft_is_host(type); },
    .offload_op = nullptr,
    .event_new = nullptr,
    .event_free = nullptr,
    .event_synchronize = nullptr,
};

void* proc_address(ggml_backend_reg_t, const char* name) {
  if (std::strcmp(name, "ggml_backend_set_n_threads") == 0) {
    const ggml_backend_set_n_threads_t set_threads = [](ggml_backend_t backend, int threads) {
      static_cast<Backend*>(backend->context)->set_threads(threads);
    };
    return reinterpret_cast<void*>(set_threads);
  }
  if (std::strcmp(name, "fastrope_ggml_stats") == 0) {
    const fastrope_ggml_stats_t stats = [] { return counters.stats(); };
    return reinterpret_cast<void*>(stats);
  }
  if (std::strcmp(name, "fastrope_ggml_summary") == 0) {
    const fastrope_ggml_summary_t summary = [](char* text, size_t size) {
      const std::string all = counters.summary();
      if (size > 0) text[all.copy(text, size - 1)] = '\0';
      return all.size();
    };
    return reinterpret_cast<void*>(summary);
  }
  return nullptr;
}

ggml_backend_dev_t device(ggml_backend_reg_t reg, size_t) {
  static ggml_backend_device only = {.iface = device_interface, .reg = reg, .context = nullptr};
  return &only;
}

}  // namespace

/// What ggml's loader looks for.
extern "C" ggml_backend_reg_t ggml_backend_init() {
  static ggml_backend_reg reg = {.api_version = GGML_BACKEND_API_VERSION,
                                 .iface = {.get_name = [](ggml_backend_reg_t) { return "fastrope"; },
                                           .get_device_count = [](ggml_backend_reg_t) { return size_t{1}; },
                                           .get_device = device,
                                           .get_proc_address = proc_address},
                                 .context = nullptr};
  return &reg;
}
