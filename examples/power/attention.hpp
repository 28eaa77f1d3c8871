// The attention of one layer with all that it keeps of the past: a state, or a cache in bfloat16.
#pragma once

#include <algorithm>
#include <cstddef>
#include <fastrope/fastrope.hpp>
#include <stdexcept>
#include <utility>
#include <vector>

#include "layer.hpp"
#include "models.hpp"

namespace power {

inline constexpr Index kChunk = 1024;  // tokens of a prompt at a time

class Attention {
 public:
  virtual ~Attention() = default;
  /// The next tokens; fills t.out.
  virtual void run(Tokens& t) = 0;
  /// The next tokens, of which nobody asks what they attend to.
  virtual void skip(Tokens& t) { run(t); }
  /// That are kept of the past.
  virtual std::size_t bytes() const = 0;

 protected:
  static void require(fastrope::RunStatus status) {
    if (status != fastrope::RunStatus::ok) throw std::runtime_error("attention was refused");
  }
};

/// A polynomial of the score, by a state of constant size.
class StateAttention : public Attention {
 public:
  StateAttention(const Model& m, const fastrope::Executor& executor)
      : d_(m.polynomial.d),
        d_v_(m.polynomial.d_v),
        sequence_(m.polynomial.heads, m.polynomial.kv_heads, d_, d_v_, options(m, executor)) {}

  void run(Tokens& t) override {
    const auto q = heads_of(std::as_const(t.q), d_), k = heads_of(std::as_const(t.k), d_),
               v = heads_of(std::as_const(t.v), d_v_);
    const auto out = heads_of(t.out, d_v_);
    if (q.rows > 1)
      sequence_.prefill(q, k, v, out, {t.gates.data(), t.gates.rows(), t.gates.cols()});
    else
      require(sequence_.step(q, k, v, out, {t.gates.data(), static_cast<std::size_t>(t.gates.size())}));
  }
  std::size_t bytes() const override { return sequence_.state_bytes(); }

 private:
  static fastrope::Options options(const Model& m, const fastrope::Executor& executor) {
    fastrope::Options options{.mask = fastrope::Mask::causal(), .scale = m.scale, .executor = executor};
    options.kernel = m.kernel;
    options.normaliser = m.normaliser;
    return options;
  }

  Index d_, d_v_;
  fastrope::RecurrentAttention<float> sequence_;
};

/// Softmax, over a cache that grows, or over the last `window` tokens alone.
class CacheAttention : public Attention {
 public:
  CacheAttention(const Heads& heads, Index window, Index most, const fastrope::Executor& executor)
      : heads_(heads),
        window_(window),
        most_(window > 0 ? window + kChunk : most),
        keys_(static_cast<std::size_t>(heads.kv_heads * most_ * heads.d)),
        values_(static_cast<std::size_t>(heads.kv_heads * most_ * heads.d_v)),
        plan_(fastrope::make_plan<float>(
            {heads.heads, heads.kv_heads, kChunk, most_, heads.d, heads.d_v},
            {.mask = window > 0 ? fastrope::Mask::sliding_window(window) : fastrope::Mask::causal(),
             .executor = executor})),
        workspace_(plan_.workspace_bytes()) {}

  void run(Tokens& t) override {
    skip(t);
    require(plan_.run(heads_of(std::as_const(t.q), heads_.d), cache(keys_, heads_.d),
                      cache(values_, heads_.d_v), heads_of(t.out, heads_.d_v), workspace_));
  }
  void skip(Tokens& t) override {
    const Index n = t.k.rows();
    if (kept_ + n > most_) {  // the rest of the window moves to the front
      const Index rest = std::min(kept_, window_ - 1);
      move_to_front(keys_, heads_.d, rest);
      move_to_front(values_, heads_.d_v, rest);
      kept_ = rest;
    }
    append(t.k, heads_.d, keys_);
    append(t.v, heads_.d_v, values_);
    kept_ += n;
  }
  std::size_t bytes() const override {
    const Index tokens = window_ > 0 ? std::min(kept_, window_) : kept_;
    return static_cast<std::size_t>(heads_.kv_heads * tokens * (heads_.d + heads_.d_v)) *
           sizeof(fastrope::bfloat16);
  }

 private:
  using Rows = std::vector<fastrope::bfloat16>;  // [kv_heads, most, columns]

  fastrope::TensorView<const fastrope::bfloat16> cache(const Rows& x, Index d) const {
    return {x.data(), heads_.kv_heads, kept_, d, most_ * d, d};
  }
  void append(const Matrix& from, Index d, Rows& to) const {
    for (Index h = 0; h < heads_.kv_heads; ++h)
      for (Index i = 0; i < from.rows(); ++i)
        for (Index c = 0; c < d; ++c)
          to[static_cast<std::size_t>((h * most_ + kept_ + i) * d + c)] =
              fastrope::bfloat16(from(i, h * d + c));
  }
  void move_to_front(Rows& x, Index d, Index tokens) const {
    for (Index h = 0; h < heads_.kv_heads; ++h) {
      auto* head = x.data() + h * most_ * d;
      std::copy_n(head + (kept_ - tokens) * d, tokens * d, head);
    }
  }

  Heads heads_;
  Index window_, most_;
  Rows keys_, values_;
  fastrope::Plan<float> plan_;
  std::vector<std::byte> workspace_;
  Index kept_ = 0;
};

}  // namespace power
