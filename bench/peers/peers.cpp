// The peers that are C or C++ libraries, one process a run, so that all do the same work on the same numbers.
//
//     peers list                 the peers that were built
//     peers write CASE FILE      CASE: heads:kv_heads n_q:n_k d full|causal, one argument each
//     peers run PEER FILE        a line of JSON; exit code 77 where the peer has no such attention
//
// Seconds are the median of several runs after one that is not counted; the error is the largest over max|V|,
// against double precision. scripts/peers calls it, in turns.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <random>

#include "case.hpp"
#include "oracle.hpp"

namespace {

using peers::Case;
using peers::Index;

[[noreturn]] void fail(const std::string& what) {
  std::fprintf(stderr, "error: %s\n", what.c_str());
  std::exit(1);
}

template <class C, class Transfer>
void transfer(C& c, Transfer&& all) {
  all(c.q);
  all(c.k);
  all(c.v);
  all(c.expected);
}

void write(const Case& c, const char* file) {
  std::ofstream out(file, std::ios::binary);
  const Index sizes[] = {c.heads, c.kv_heads, c.n_q, c.n_k, c.d, c.causal};
  out.write(reinterpret_cast<const char*>(sizes), sizeof(sizes));
  transfer(c, [&](const std::vector<float>& x) {
    out.write(reinterpret_cast<const char*>(x.data()),
              static_cast<std::streamsize>(x.size() * sizeof(float)));
  });
  if (!out) fail(std::string("cannot write ") + file);
}

Case read(const char* file) {
  std::ifstream in(file, std::ios::binary);
  Index sizes[6] = {};
  in.read(reinterpret_cast<char*>(sizes), sizeof(sizes));
  Case c{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5]};
  c.q.resize(c.query_size());
  c.k.resize(c.key_size());
  c.v.resize(c.key_size());
  c.expected.resize(c.query_size());
  transfer(c, [&](std::vector<float>& x) {
    in.read(reinterpret_cast<char*>(x.data()), static_cast<std::streamsize>(x.size() * sizeof(float)));
  });
  if (!in) fail(std::string(file) + " is not a case");
  return c;
}

/// Numbers that float16 has, so that caches of 16 bits hold the same.
void fill(Case& c) {
  std::mt19937_64 random(1);
  std::normal_distribution<float> normal;
  const auto some = [&](std::size_t size) {
    std::vector<float> x(size);
    for (float& y : x) y = peers::as_float16(normal(random));
    return x;
  };
  c.q = some(c.query_size());
  c.k = some(c.key_size());
  c.v = some(c.key_size());
  peers::compute_expected(c);
}

std::vector<peers::Peer> all_peers() {
  std::vector<peers::Peer> all = peers::fastrope_peers();
#ifdef PEERS_OPENBLAS
  all.push_back(peers::openblas());
#endif
#ifdef PEERS_ONEDNN
  all.push_back(peers::onednn());
#endif
#ifdef PEERS_TORCH
  all.push_back(peers::libtorch());
#endif
#ifdef PEERS_GGML
  all.push_back(peers::ggml());
#endif
  return all;
}

double largest_error(const Case& c, const std::vector<float>& out) {
  double most = 0, error = 0;
  for (const float x : c.v) most = std::max(most, std::abs(static_cast<double>(x)));
  for (std::size_t i = 0; i < out.size(); ++i) {
    const double off = std::abs(static_cast<double>(out[i]) - static_cast<double>(c.expected[i]));
    error = off <= error ? error : off;  // NaN stays
  }
  return error / most;
}

int run(const peers::Peer& peer, const Case& c) {
  std::vector<float> out(c.query_size(), NAN);
  const peers::Run once = peer.prepare(c, out);
  if (!once) return 77;
  using Clock = std::chrono::steady_clock;
  const auto timed = [&] {
    const auto start = Clock::now();
    once();
    return std::chrono::duration<double>(Clock::now() - start).count();
  };
  const double first = timed();
  std::vector<double> seconds;
  const int runs = std::clamp(static_cast<int>(1.5 / first), 3, 31);
  for (int i = 0; i < runs; ++i) seconds.push_back(timed());
  std::nth_element(seconds.begin(), seconds.begin() + runs / 2, seconds.end());
  std::printf("{\"peer\": \"%s\", \"version\": \"%s\", \"seconds\": %.6g, \"error\": %.3g}\n",
              peer.name.c_str(), peer.version.c_str(), seconds[static_cast<std::size_t>(runs / 2)],
              largest_error(c, out));
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "";
  if (what == "list" && argc == 2) {
    for (const peers::Peer& peer : all_peers()) std::printf("%s\n", peer.name.c_str());
    return 0;
  }
  if (what == "write" && argc == 7) {
    Case c;
    if (std::sscanf(argv[2], "%ld:%ld", &c.heads, &c.kv_heads) != 2 ||
        std::sscanf(argv[3], "%ld:%ld", &c.n_q, &c.n_k) != 2 || std::sscanf(argv[4], "%ld", &c.d) != 1)
      fail("a case is heads:kv_heads n_q:n_k d full|causal");
    c.causal = std::strcmp(argv[5], "causal") == 0;
    fill(c);
    write(c, argv[6]);
    return 0;
  }
  if (what == "run" && argc == 4) {
    for (const peers::Peer& peer : all_peers())
      if (peer.name == argv[2]) return run(peer, read(argv[3]));
    fail(std::string("no peer ") + argv[2]);
  }
  fail("usage: peers list | write HEADS:KV_HEADS N_Q:N_K D full|causal FILE | run PEER FILE");
}
