// Report: what was chosen for each head, and why the other paths lost.
#pragma once

#include <cmath>
#include <iomanip>
#include <locale>
#include <ostream>
#include <sstream>
#include <string>
#include <vector>

#include "fastrope/core/index.hpp"
#include "fastrope/core/target.hpp"
#include "fastrope/plan/head_report.hpp"
#include "fastrope/problem/problem.hpp"

namespace fastrope::inline FASTROPE_TARGET {

/// The plan of a call.
struct Report {
  Shapes shapes = {};
  double tolerance = 0;
  std::size_t workspace_bytes = 0;
  std::vector<HeadReport> heads = {};
  /// [heads * n_q], of a call by attend() with a polynomial kernel, of which nothing is promised before: |out
  /// - exact| <= row_bounds[h * n_q + i] max|V|, V that of head h's key head; may be infinite, 0 for a row
  /// without keys.
  std::vector<double> row_bounds = {};

  /// All of it, for tools; numbers that are not finite are null.
  std::string to_json() const;
};

namespace detail {

/// Text that is filled up with blanks on the left.
inline std::string column(int width, const std::string& text) {
  const auto size = static_cast<std::size_t>(width);
  return text.size() < size ? std::string(size - text.size(), ' ') + text : text;
}

template <class Number>
std::string number(Number x) {
  std::ostringstream text;
  text << std::setprecision(3) << x;
  return text.str();
}

inline void print_candidate(std::ostream& out, const Candidate& c, bool chosen) {
  const bool approximates = c.rank > 0, counted = c.seconds > 0;
  const auto cell = [&](int width, bool known, auto x) { out << column(width, known ? number(x) : "-"); };
  out << (chosen ? "  > " : "    ") << std::left << std::setw(10) << to_string(c.path) << std::right;
  cell(9, approximates, c.entry_bound);
  cell(8, approximates, c.degree);
  cell(9, approximates, c.rank);
  cell(10, counted, c.work.flops() * 1e-9);
  cell(10, counted, c.seconds * 1e3);
  cell(10, approximates || c.feasible, c.error_bound);
  cell(10, approximates, c.rounding);
  out << "  " << c.reason;
  if (!c.how.empty()) out << " (" << c.how << ')';
  if (c.simplex_rank > static_cast<double>(c.rank)) out << ", full rank " << number(c.simplex_rank);
  out << '\n';
}

/// One JSON object, member by member.
class JsonObject {
 public:
  template <class Value>
  JsonObject& member(const char* name, const Value& value) {
    text_ += text_.empty() ? "{" : ", ";
    text_ += quoted(name) + ": " + json(value);
    return *this;
  }
  std::string end() const { return text_.empty() ? "{}" : text_ + "}"; }

 private:
  static std::string quoted(const std::string& text) {
    std::string out = "\"";
    for (const char c : text) {
      if (c == '"' || c == '\\') out += '\\';
      if (static_cast<unsigned char>(c) < 0x20)
        out += ' ';
      else
        out += c;
    }
    return out + '"';
  }
  static std::string json(const std::string& text) { return quoted(text); }
  static std::string json(const char* text) { return quoted(text); }
  static std::string json(bool x) { return x ? "true" : "false"; }
  static std::string json(Index x) { return std::to_string(x); }
  static std::string json(double x) {
    if (!std::isfinite(x)) return "null";
    std::ostringstream text;
    text.imbue(std::locale::classic());
    text << std::setprecision(17) << x;
    return text.str();
  }
  static std::string json(const std::vector<std::string>& objects) {
    std::string out = "[";
    for (std::size_t i = 0; i < objects.size(); ++i) out += (i > 0 ? ", " : "") + objects[i];
    return out + "]";
  }

  std::string text_ = {};
};

inline std::string json_of(const Candidate& c) {
  return JsonObject()
      .member("path", to_string(c.path))
      .member("feasible", c.feasible)
      .member("entry_bound", c.entry_bound)
      .member("degree", Index{c.degree})
      .member("rank", c.rank)
      .member("simplex_rank", c.simplex_rank)
      .member("error_bound", c.error_bound)
      .member("rounding", c.rounding)
      .member("flops", c.work.flops())
      .member("seconds", c.seconds)
      .member("exact_rows", c.exact_rows)
      .member("how", c.how)
      .member("reason", c.reason)
      .end();
}

inline std::string json_of(const HeadReport& head) {
  std::vector<std::string> candidates;
  for (const Candidate& c : head.candidates) candidates.push_back(json_of(c));
  JsonObject object;
  object.member("path", to_string(head.path))
      .member("entry_bound", head.entry_bound)
      .member("degree", Index{head.degree})
      .member("rank", head.rank)
      .member("error_bound", head.error_bound)
      .member("rounding", head.rounding)
      .member("repaired_rows", head.repaired_rows)
      .member("reason", head.reason);
  if (head.verified_rows > 0)
    object.member("verified_rows", head.verified_rows).member("observed_error", head.observed_error);
  return object.member("candidates", candidates).end();
}

}  // namespace detail

inline std::string Report::to_json() const {
  std::vector<std::string> list;
  for (const HeadReport& head : heads) list.push_back(detail::json_of(head));
  return detail::JsonObject()
      .member("heads", shapes.heads)
      .member("kv_heads", shapes.kv_heads)
      .member("n_q", shapes.n_q)
      .member("n_k", shapes.n_k)
      .member("d", shapes.d)
      .member("d_v", shapes.d_v)
      .member("tolerance", tolerance)
      .member("workspace_bytes", static_cast<Index>(workspace_bytes))
      .member("target", kTargetName)
      .member("plans", list)
      .end();
}

/// A line per head, and one per candidate under it; > is the one that runs. |x| bounds the entries that are
/// approximated, ms is predicted for one core, errors are relative to max|V|.
inline std::ostream& operator<<(std::ostream& out, const Report& report) {
  const Shapes& s = report.shapes;
  std::ostringstream text;
  text << "attention: " << s.heads << " heads (" << s.kv_heads << " of keys), n_q " << s.n_q << ", n_k "
       << s.n_k << ", d " << s.d << ", d_v " << s.d_v << ", tolerance " << report.tolerance << ", workspace "
       << report.workspace_bytes << " bytes, target " << kTargetName << '\n';
  for (std::size_t h = 0; h < report.heads.size(); ++h) {
    const HeadReport& head = report.heads[h];
    text << "head " << h << ": " << to_string(head.path) << ", entry bound "
         << detail::number(head.entry_bound) << ": " << head.reason << '\n';
    if (head.verified_rows > 0)
      text << "    error of " << head.verified_rows << " rows " << detail::number(head.observed_error)
           << ", promised " << detail::number(head.error_bound) << '\n';
    if (head.repaired_rows > 0) text << "    " << head.repaired_rows << " rows computed again exactly\n";
    if (h == 0) text << "    path         |x| <=  degree     rank     Gflop        ms  error <=  rounding\n";
    for (const Candidate& c : head.candidates) detail::print_candidate(text, c, c.path == head.path);
  }
  return out << text.str();
}

}  // namespace fastrope::inline FASTROPE_TARGET
