// GroupLook: what planning has looked at of a key head and its query heads.
//
// A sample of the rows tells what is worth measuring; one pass over them measures it.
#pragma once

#include <cmath>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "fastrope/core/error.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/stored_rows.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/measure/problem_rows.hpp"
#include "fastrope/measure/row_bounds.hpp"
#include "fastrope/measure/side.hpp"
#include "fastrope/measure/value_bounds.hpp"
#include "fastrope/plan/low_rank.hpp"
#include "fastrope/plan/projection_choice.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// What is remembered of one key head's rows.
struct KeyMemory {
  /// Keys as some query heads want them measured.
  struct Measured {
    ProjectionChoice choice = {};
    RowBounds keys = {};
    Index chosen_at = 0;  ///< keys that there were then
  };

  RowBounds lengths = {};
  ValueBounds values = {};
  std::map<std::tuple<Index, Index, bool>, Measured> measured = {};  ///< by query heads, may_weigh_keys
  std::optional<Shift> key_shift = {};  ///< of all that is measured: keys are packed once for all heads
  Index shift_chosen_at = 0;            ///< keys that there were then
};

/// The rows of a key head and of its query heads, as planning looks at them: nothing is read before it is
/// asked for, and what was measured is kept. Requires a query head.
class GroupLook {
 public:
  GroupLook(std::vector<std::unique_ptr<Side>> queries, std::unique_ptr<Side> keys,
            std::unique_ptr<Side> values, KeyMemory memory = {})
      : queries_(std::move(queries)),
        keys_(std::move(keys)),
        values_(std::move(values)),
        memory_(std::move(memory)),
        query_norms_(queries_.size()) {
    // Keys that have doubled may have moved.
    if (keys_->count() < 2 * memory_.shift_chosen_at) return;
    memory_.key_shift.reset();
    memory_.measured.clear();
  }

  const Side& queries(Index head) const { return *queries_[static_cast<std::size_t>(head)]; }
  const Side& keys() const { return *keys_; }
  /// What the next look at the same keys, and more, may begin with.
  KeyMemory& memory() { return memory_; }

  /// At least max_i |q_i|_2 of a head of the group; infinity if a query is not finite.
  double query_norm(Index head) {
    std::optional<double>& norm = query_norms_[static_cast<std::size_t>(head)];
    if (!norm) {
      RowBounds bounds;
      queries(head).extend(bounds);
      norm = largest(bounds.norms());
    }
    return *norm;
  }
  /// At least max_j |k_j|_2; infinity if a key is not finite.
  double key_norm() {
    if (!key_norm_) {
      keys_->extend(memory_.lengths);
      key_norm_ = largest(memory_.lengths.norms());
    }
    return *key_norm_;
  }

  /// Which of q, k and v is not finite, as far as anybody asked; else empty.
  std::string not_finite(Index head) {
    const char* which = std::isinf(query_norm(head)) ? "q" : std::isinf(key_norm()) ? "k" : nullptr;
    if (which == nullptr && looked_at_values_ && !memory_.values.finite()) which = "v";
    if (which == nullptr) return {};
    return detail::message(which, " is not finite (or its norms overflow), so entries have no bound");
  }

  /// All of them are read.
  const ValueBounds& value_bounds() {
    if (!looked_at_values_) values_->extend(memory_.values);
    looked_at_values_ = true;
    return memory_.values;
  }

  /// That of the values if they were looked at; at most 1.
  double known_spread() const { return looked_at_values_ ? memory_.values.spread() : 1; }

  /// Low-rank features of some heads of the group; request.value_spread is found here. Without a fit,
  /// `reason` says why.
  std::optional<LowRankFit> fit(Range heads, std::span<const FarPairs> far, LowRankRequest request,
                                std::string& reason) {
    std::vector<const Side*> some;
    for (Index h = heads.begin; h < heads.end; ++h) some.push_back(&queries(h));
    const Shift* shift = memory_.key_shift ? &*memory_.key_shift : nullptr;
    const LowRankRows rows{some, keys_.get(), far, shift};
    request.value_spread = sampled_spread();
    auto [at, is_new] = memory_.measured.try_emplace({heads.begin, heads.end, request.may_weigh_keys});
    KeyMemory::Measured& measured = at->second;
    if (is_new) {
      auto choice = choose_projection(rows, request, reason);
      if (!choice) {
        memory_.measured.erase(at);
        return std::nullopt;
      }
      measured = {*choice, RowBounds(choice->of_keys()), keys_->count()};
    }
    const std::vector<RowBounds> queries = measure_rows(rows, request.scale, measured.choice, measured.keys);
    if (shift == nullptr) {
      memory_.key_shift = measured.choice.keys;
      memory_.shift_chosen_at = keys_->count();
    }
    key_norm_ = largest(measured.keys.norms());
    for (Index h = heads.begin; h < heads.end; ++h)
      query_norms_[static_cast<std::size_t>(h)] =
          largest(queries[static_cast<std::size_t>(h - heads.begin)].norms());
    request.value_spread = value_bounds().spread();
    for (Index h = heads.begin; h < heads.end; ++h)
      if (reason = not_finite(h); !reason.empty()) return std::nullopt;
    ProjectionChoice choice = measured.choice;
    choice.mean_key = mean_key(measured);
    return fit_low_rank(choice, {queries, &measured.keys}, far, request, reason);
  }

 private:
  /// A mean of keys, of which those that came after the choice may lie as far out as any.
  double mean_key(const KeyMemory::Measured& measured) const {
    const double known = static_cast<double>(measured.chosen_at) / static_cast<double>(keys_->count());
    if (known == 1) return measured.choice.mean_key;
    const double reach = largest(measured.keys.distances());
    if (measured.choice.queries.centre != Centre::none) return reach;
    return known * measured.choice.mean_key + (1 - known) * reach;
  }

  /// About that of all values.
  double sampled_spread() {
    if (looked_at_values_) return memory_.values.spread();
    ValueBounds bounds;
    bounds.add(values_->sample({0, values_->count()}, 128));
    return bounds.spread();
  }

  std::vector<std::unique_ptr<Side>> queries_;
  std::unique_ptr<Side> keys_;
  std::unique_ptr<Side> values_;
  KeyMemory memory_;
  std::vector<std::optional<double>> query_norms_;
  std::optional<double> key_norm_ = {};
  bool looked_at_values_ = false;
};

/// A look at key head kv and its query heads. The problem and the tensors must outlive it.
template <class Real>
GroupLook group_look(const Problem& problem, Index kv, const StoredRows& q, const StoredRows& k,
                     const StoredRows& v, KeyMemory memory = {}) {
  std::vector<std::unique_ptr<Side>> queries;
  for (Index h = kv * problem.group(); h < (kv + 1) * problem.group(); ++h)
    queries.push_back(std::make_unique<SideOf<Real>>(query_rows<Real>(problem, h, q)));
  return {std::move(queries), std::make_unique<SideOf<Real>>(key_rows<Real>(problem, kv, k)),
          std::make_unique<SideOf<Real>>(value_rows<Real>(problem, kv, v)), std::move(memory)};
}

}  // namespace fastrope::inline FASTROPE_TARGET
