// Terms: what all ranks of a call must give alike, and what each may give.
#pragma once

#include <functional>
#include <iterator>
#include <span>
#include <sstream>
#include <string>
#include <vector>

#include "fastrope/core/error.hpp"
#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/position/rope.hpp"
#include "fastrope/problem/options.hpp"
#include "fastrope/problem/problem.hpp"
#include "fastrope/problem/shapes.hpp"

namespace fastrope::inline FASTROPE_TARGET::mpi::detail {

/// What all ranks must give alike: names, and numbers that say it.
class Terms {
 public:
  template <class T>
  void add(const char* name, const T& value) {
    std::ostringstream text;
    text.precision(17);
    text << value;
    names_.push_back(name);
    numbers_.push_back(static_cast<Index>(std::hash<std::string>{}(text.str())));
  }
  template <class Numbers>
  void add_all(const char* name, const Numbers& values) {
    std::ostringstream text;
    text.precision(17);
    for (const auto& value : values) text << value << ' ';
    add(name, text.str());
  }
  const std::vector<Index>& numbers() const { return numbers_; }
  const char* name(std::size_t i) const { return names_[i]; }

 private:
  std::vector<const char*> names_ = {};
  std::vector<Index> numbers_ = {};
};

inline Terms terms_of(const Shapes& s, const Options& o, std::span<const Index> types) {
  Terms terms;
  terms.add("heads", s.heads);
  terms.add("kv_heads", s.kv_heads);
  terms.add("d", s.d);
  terms.add("d_v", s.d_v);
  terms.add_all("the types of q, k and v or the instruction set", types);
  terms.add("mask", std::to_string(o.mask.first) + ' ' + std::to_string(o.mask.last));
  terms.add("tolerance", o.tolerance);
  terms.add("path", o.path);
  terms.add("softcap", o.softcap);
  terms.add_all("scale", o.scale ? std::vector<double>{*o.scale} : std::vector<double>{});
  terms.add_all("sinks", o.sinks);
  terms.add_all("bias", o.bias.values().empty() ? o.bias.slopes() : o.bias.values());
  terms.add("bias's first lag", o.bias.first_lag());
  terms.add("rope_already_applied", o.rope_already_applied);
  std::ostringstream rope;
  if (o.rope) {
    const RopeFrequencies f = rope_frequencies(*o.rope, s.d);
    rope.precision(17);
    rope << static_cast<int>(o.rope->pairing) << ' ' << o.rope->rotary_begin << ' ' << f.attention_factor;
    for (const double theta : f.theta) rope << ' ' << theta;
    for (const Index section : f.section_of_pair) rope << ' ' << section;
  }
  terms.add("rope", rope.str());
  std::vector<double> weights;
  if (o.weights)
    for (Index entry = 0; entry < std::ssize(o.weights->support()); ++entry)
      for (Position lag = o.weights->first_lag(); lag <= o.weights->last_lag(); ++lag)
        weights.push_back((*o.weights)(lag, entry));
  terms.add_all("weights", weights);
  terms.add_all("kernel", o.kernel.coefficients());
  terms.add_all("normaliser",
                std::vector<double>{static_cast<double>(o.normaliser.kind()), o.normaliser.constant()});
  terms.add("verify", o.verify);
  terms.add("key_ranges' per_row", o.key_ranges.per_row);
  terms.add("the rows of query_section_positions", o.query_section_positions.rows);
  terms.add("the rows of key_section_positions", o.key_section_positions.rows);
  terms.add("the rows of log_gates", o.log_gates.rows);
  terms.add("the rows of log_input_gates", o.log_input_gates.rows);
  terms.add("whether dense_bias is given", o.dense_bias.data != nullptr);
  terms.add("whether dense_mask is given", o.dense_mask.data != nullptr);
  return terms;
}

/// Refuses rows of this rank that clash with the options. keys: of all ranks.
inline void require_local(const Shapes& s, Index keys, const Options& o) {
  if (o.verify < 0) fastrope::detail::fail("a spot check is of 0 rows or more, got ", o.verify);
  const auto require = [](const char* name, Index given, Index n) {
    if (given != 0 && given != n)
      fastrope::detail::fail(name, " has ", given, " positions for ", n, " rows of this rank");
  };
  require("query_positions", std::ssize(o.query_positions), s.n_q);
  require("key_positions", std::ssize(o.key_positions), s.n_k);
  const auto require_columns = [](const char* name, const auto& view, Index n) {
    if (view.rows > 0 && (view.cols != n || (n > 0 && view.data == nullptr)))
      fastrope::detail::fail(name, " is [", view.rows, ", ", view.cols, "] for ", n, " rows of this rank");
  };
  require_columns("query_section_positions", o.query_section_positions, s.n_q);
  require_columns("key_section_positions", o.key_section_positions, s.n_k);
  require_columns("log_gates", o.log_gates, s.n_k);
  require_columns("log_input_gates", o.log_input_gates, s.n_k);
  Options of_rows = o;  // its ranges, dense bias and dense mask are of all keys
  of_rows.query_positions = of_rows.key_positions = {};
  of_rows.query_section_positions = of_rows.key_section_positions = {};
  of_rows.log_gates = of_rows.log_input_gates = {};
  if (s.n_q > 0) Problem({s.heads, s.kv_heads, s.n_q, keys, s.d, s.d_v}, of_rows);
}

}  // namespace fastrope::inline FASTROPE_TARGET::mpi::detail
