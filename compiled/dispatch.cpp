// The functions of fastrope.h: each calls the table of the level that this processor runs.
//
// Compiled for the baseline and without any template, so that a linker finds nothing in this object that it
// could take for what another one needs.
#if defined(__x86_64__)
#include <cpuid.h>
#endif
#include <stdlib.h>
#include <string.h>

#include "fastrope/version.hpp"
#include "table.hpp"

using fastrope_compiled::KeepError;
using fastrope_compiled::Level;
using fastrope_compiled::Table;

// levels.inc is FASTROPE_LEVEL(name) for each level that was built, the widest first.
#define FASTROPE_LEVEL(name) extern "C" const Table* fastrope_level_##name(KeepError);
#include "levels.inc"
#undef FASTROPE_LEVEL

namespace {

// Which levels this processor runs, by CPUID and by the registers that the system keeps for a process.
#if defined(__x86_64__)

/// A member for each level that there may be, named as core/target.hpp names what the level is compiled for.
class Processor {
 public:
  Processor() {
    unsigned unused;
    __get_cpuid(1, &unused, &unused, &leaf_1_, &unused);
    __get_cpuid(0x80000001, &unused, &unused, &extended_, &unused);
    unsigned most = 0;
    __get_cpuid_count(7, 0, &most, &leaf_7b_, &leaf_7c_, &leaf_7d_);
    if (most >= 1) __get_cpuid_count(7, 1, &leaf_7_1_, &unused, &unused, &unused);
    if (has(leaf_1_, 27)) {
      unsigned low = 0, high = 0;
      __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
      kept_ = low;
    }
  }

  /// x86-64-v2: SSSE3, CX16, SSE4.1, SSE4.2, POPCNT, LAHF.
  bool sse4() const {
    return has(leaf_1_, 9) && has(leaf_1_, 13) && has(leaf_1_, 19) && has(leaf_1_, 20) && has(leaf_1_, 23) &&
           has(extended_, 0);
  }
  /// x86-64-v3: with FMA, MOVBE, AVX, F16C, LZCNT, BMI1, AVX2, BMI2, and vectors of 256 bits.
  bool avx2() const {
    return sse4() && has(leaf_1_, 12) && has(leaf_1_, 22) && has(leaf_1_, 28) && has(leaf_1_, 29) &&
           has(extended_, 5) && has(leaf_7b_, 3) && has(leaf_7b_, 5) && has(leaf_7b_, 8) && keeps(0x6);
  }
  /// x86-64-v4: with AVX512F, DQ, CD, BW and VL, and vectors of 512 bits.
  bool avx512() const {
    return avx2() && has(leaf_7b_, 16) && has(leaf_7b_, 17) && has(leaf_7b_, 28) && has(leaf_7b_, 30) &&
           has(leaf_7b_, 31) && keeps(0xe6);
  }
  bool avx512_vnni() const { return avx512() && has(leaf_7c_, 11); }
  bool avx512_bf16_vnni() const { return avx512_vnni() && has(leaf_7_1_, 5); }
  /// With tiles. Whether the system lets this process use them, kernels ask (core/matrix_tiles.hpp).
  bool amx_bf16_vnni() const {
    return avx512_bf16_vnni() && has(leaf_7d_, 22) && has(leaf_7d_, 24) && keeps(0x60000);
  }

 private:
  static bool has(unsigned word, int bit) { return (word >> bit & 1) != 0; }
  bool keeps(unsigned registers) const { return (kept_ & registers) == registers; }

  unsigned leaf_1_ = 0, extended_ = 0, leaf_7b_ = 0, leaf_7c_ = 0, leaf_7d_ = 0, leaf_7_1_ = 0;
  unsigned kept_ = 0;  // XCR0
};

#else

/// Elsewhere there is one level, which every processor runs: NEON on Arm, or what the compiler's flags allow.
class Processor {
 public:
  bool neon() const { return true; }
  bool baseline() const { return true; }
};

#endif

/// Text that is cut where there is no more room.
struct Message {
  char text[1024] = "";

  void append(const char* more) {
    const size_t used = strlen(text), room = sizeof text - 1 - used, length = strlen(more);
    const size_t taken = length < room ? length : room;
    memcpy(text + used, more, taken);
    text[used + taken] = '\0';
  }
};

thread_local Message last_error;

void keep_error(const char* text) noexcept {
  Message kept;
  kept.append(text);  // which may be a part of the last one
  last_error = kept;
}

constexpr struct {
  const char* name;
  bool (Processor::*runs)() const;
  Level level;
} kLevels[] = {
#define FASTROPE_LEVEL(name) {#name, &Processor::name, fastrope_level_##name},
#include "levels.inc"
#undef FASTROPE_LEVEL
};

/// The level that runs, or why none does.
struct Choice {
  const Table* table = nullptr;
  Message refusal;

  Choice() {
    const Processor processor;
    const char* asked = getenv("FASTROPE_TARGET");
    if (asked != nullptr && *asked == '\0') asked = nullptr;
    bool exists = false;
    for (const auto& level : kLevels) {
      if (asked != nullptr && strcmp(asked, level.name) != 0) continue;
      exists = true;
      if (!(processor.*level.runs)()) continue;
      table = level.level(keep_error);
      return;
    }
    if (asked != nullptr) {
      refusal.append("the environment has FASTROPE_TARGET=");
      refusal.append(asked);
      refusal.append(exists ? ", which this processor does not run" : ", which this library does not have");
      refusal.append(": unset it, or one of these may be asked for:");
    } else {
      refusal.append("this processor runs none of the instruction sets that this library has; it runs:");
    }
    for (const auto& level : kLevels)
      if ((processor.*level.runs)()) {
        refusal.append(" ");
        refusal.append(level.name);
      }
  }
};

/// Null, with the message kept, where nothing runs.
const Table* table() {
  static const Choice choice;
  if (choice.table == nullptr) keep_error(choice.refusal.text);
  return choice.table;
}

}  // namespace

extern "C" {

#define FASTROPE_FUNCTION(result, failed, name, parameters, arguments) \
  FASTROPE_API result fastrope_##name parameters {                     \
    const Table* const chosen = table();                               \
    return chosen != nullptr ? chosen->name arguments : failed;        \
  }
#include "functions.inc"
#undef FASTROPE_FUNCTION

FASTROPE_API const char* fastrope_last_error(void) { return last_error.text; }

#define FASTROPE_TEXT_(x) #x
#define FASTROPE_TEXT(x) FASTROPE_TEXT_(x)
FASTROPE_API const char* fastrope_version(void) {
  return FASTROPE_TEXT(FASTROPE_VERSION_MAJOR) "." FASTROPE_TEXT(FASTROPE_VERSION_MINOR) "." FASTROPE_TEXT(
      FASTROPE_VERSION_PATCH);
}

FASTROPE_API const char* fastrope_target(void) {
  const Table* const chosen = table();
  return chosen != nullptr ? chosen->target : nullptr;
}

}  // extern "C"
