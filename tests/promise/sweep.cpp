// The sweep: problems FIRST .. FIRST + COUNT - 1, each at the tightest tolerance that is accepted for it.
//   promise_sweep FIRST COUNT [--log FILE] [--workers N] [--small]
// A line for every block of 1000 seeds is added to the log, so that what was done is not done again; the
// totals are those of all blocks asked for. Exits with 1 where a promise was broken.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <map>
#include <mutex>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "support/promise_check.hpp"

namespace {

using namespace fastrope_test;

constexpr std::uint64_t kBlock = 1000;

struct Arguments {
  std::uint64_t first = 0, count = 0;
  std::string log = "build/promise.log";
  unsigned workers = std::max(1u, std::thread::hardware_concurrency());
  PromiseSize size = PromiseSize::any;
};

/// Seeds [first, first + count).
struct Block {
  std::uint64_t first = 0, count = 0;
};

std::string key_of(const Block& block, PromiseSize size) {
  return std::to_string(block.first) + ' ' + std::to_string(block.count) +
         (size == PromiseSize::small ? " small" : " any");
}

/// The tallies of finished blocks: "FIRST COUNT any|small SECONDS" and a tally. Lines with # are violations.
std::map<std::string, PromiseTally> read_log(const std::string& file) {
  std::map<std::string, PromiseTally> done;
  std::ifstream log(file);
  for (std::string line; std::getline(log, line);) {
    if (line.empty() || line.front() == '#') continue;
    std::istringstream text(line);
    std::string first, count, size, seconds;
    text >> first >> count >> size >> seconds;
    done[first + ' ' + count + ' ' + size] = PromiseTally::of_line(text);
  }
  return done;
}

int sweep(const Arguments& arguments) {
  std::map<std::string, PromiseTally> done = read_log(arguments.log);
  PromiseTally all;
  std::vector<Block> blocks;
  for (std::uint64_t begin = 0; begin < arguments.count; begin += kBlock) {
    const Block block{arguments.first + begin, std::min(kBlock, arguments.count - begin)};
    const auto known = done.find(key_of(block, arguments.size));
    if (known == done.end())
      blocks.push_back(block);
    else
      all += known->second;
  }
  std::ofstream log(arguments.log, std::ios::app);
  if (!log) {
    std::cerr << "cannot write " << arguments.log << '\n';
    return 2;
  }
  std::mutex mutex;
  std::atomic<std::size_t> next = 0;
  const auto work = [&] {
    for (std::size_t b = next++; b < blocks.size(); b = next++) {
      const auto start = std::chrono::steady_clock::now();
      PromiseTally tally;
      for (std::uint64_t i = 0; i < blocks[b].count; ++i)
        check_promise(blocks[b].first + i, arguments.size, tally);
      const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
      const std::lock_guard lock(mutex);
      for (const std::string& violation : tally.violations) {
        std::cerr << violation << '\n';
        log << "# " << violation << '\n';
      }
      log << key_of(blocks[b], arguments.size) << ' ' << seconds.count() << tally.to_line() << std::endl;
      all += tally;
    }
  };
  std::vector<std::thread> team;
  for (unsigned worker = 0; worker < arguments.workers; ++worker) team.emplace_back(work);
  for (std::thread& worker : team) worker.join();
  all.print(std::cout);
  return all.all().violations == 0 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  Arguments arguments;
  std::vector<std::string> numbers;
  for (int a = 1; a < argc; ++a) {
    const std::string text = argv[a];
    if (text == "--small")
      arguments.size = PromiseSize::small;
    else if (text == "--log" && a + 1 < argc)
      arguments.log = argv[++a];
    else if (text == "--workers" && a + 1 < argc)
      arguments.workers = static_cast<unsigned>(std::max(1, std::atoi(argv[++a])));
    else
      numbers.push_back(text);
  }
  if (numbers.size() != 2) {
    std::cerr << "usage: promise_sweep FIRST COUNT [--log FILE] [--workers N] [--small]\n";
    return 2;
  }
  arguments.first = std::stoull(numbers[0]);
  arguments.count = std::stoull(numbers[1]);
  return sweep(arguments);
}
