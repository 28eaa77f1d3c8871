// How good the dispatcher's choices are: every path that can run is timed, and the chosen one held against
// the fastest.
//
//     build/release/bench/choices
//
// Heads of one query head, d_v = d, uniform on spheres of |x| <= radius, one thread; paths predicted to take
// more than 8 times the exact one are not run. A row: the time of each path (- where it cannot run or was not
// run), the one that was chosen, its regret, time over that of the fastest path, less 1; the look, planning
// time as a share of the exact path's; and the error of 8 rows beside the promise, of the chosen path. The
// last lines count.
#include <algorithm>
#include <cstdio>
#include <utility>
#include <vector>

#include "path_times.hpp"

namespace {

using bench::Bias;
using bench::MadeHead;
using fastrope::Index;
using fastrope::Path;

std::vector<MadeHead> heads() {
  std::vector<MadeHead> list;
  for (const bool causal : {false, true})
    for (const Index n : {1024, 4096, 16384}) {
      for (const Index d : {4, 8, 16, 64})
        for (const auto& [radius, tolerance] : {std::pair{0.25, 1e-2}, {1.0, 1e-2}, {2.0, 1e-3}})
          if (n < 16384 || d < 64) list.push_back({n, d, radius, tolerance, causal});
      for (const Index d : {4, 8}) {
        list.push_back({n, d, 0.5, 1e-2, causal, Bias::t5});
        list.push_back({n, d, 0.5, 1e-2, causal, Bias::table});
      }
    }
  return list;
}

}  // namespace

int main() {
  std::printf("%-10s %-6s %6s %3s %6s %7s %9s %10s %9s  %-10s %7s %6s %9s %9s\n", "positions", "mask", "n",
              "d", "radius", "toler.", "exact ms", "polynomial", "toeplitz", "chosen", "regret", "look",
              "error", "promised");
  int cases = 0, with_choice = 0, within_10 = 0, within_25 = 0, short_looks = 0, looks = 0, broken = 0;
  double worst = 0;
  for (const MadeHead& head : heads()) {
    const auto c = head.attention_case();
    auto in = bench::on_spheres<float>(c, head.radius);
    const auto times = bench::path_times(c, in, head.n > 10000 ? 3 : head.n > 2000 ? 7 : 15, 8);
    const auto make = [&] { return fastrope::make_plan(in.q.view(), in.k.view(), in.v.view(), c.options()); };
    const double look = bench::median_seconds(9, make) / times.front().seconds;
    const auto plan = make();
    const fastrope::HeadReport& report = plan.report().heads.front();
    double best = times.front().seconds;
    const bench::PathTime* chosen = nullptr;
    double of_path[3] = {0, 0, 0};
    for (const bench::PathTime& t : times) {
      best = std::min(best, t.seconds);
      of_path[static_cast<int>(t.path) - 1] = t.seconds;
      if (t.path == report.path) chosen = &t;
    }
    const double regret = chosen->seconds / best - 1, promised = report.error_bound;
    std::printf("%-10s %-6s %6td %3td %6.2f %7.0e", name_of(head.bias), head.causal ? "causal" : "full",
                head.n, head.d, head.radius, head.tolerance);
    for (int p = 0; p < 3; ++p)
      of_path[p] > 0 ? std::printf(" %*.3f", p == 1 ? 10 : 9, of_path[p] * 1e3)
                     : std::printf(" %*s", p == 1 ? 10 : 9, "-");
    std::printf("  %-10s %6.1f%% %5.1f%% %9.1e %9.1e\n", to_string(report.path), 100 * regret, 100 * look,
                chosen->error, promised);
    std::fflush(stdout);
    ++cases;
    with_choice += times.size() > 1;
    within_10 += regret <= 0.10;
    within_25 += regret <= 0.25;
    worst = std::max(worst, regret);
    if (report.path != Path::exact && chosen->error > promised) ++broken;
    if (head.n >= 4096) {
      ++looks;
      short_looks += look <= 0.02;
    }
  }
  std::printf(
      "\n%d cases, %d of them with two paths or more. Within 10 %% of the fastest: %d (%.0f %%), within 25 "
      "%%: %d "
      "(%.0f %%), largest regret %.0f %%.\nThe look is at most 2 %% of the exact path in %d of %d cases with "
      "n >= "
      "4096. Broken promises: %d.\n",
      cases, with_choice, within_10, 100.0 * within_10 / cases, within_25, 100.0 * within_25 / cases,
      100 * worst, short_looks, looks, broken);
  return broken > 0 ? 1 : 0;
}
