#include "cpu/isa.h"

#include <atomic>
#include <cstdlib>
#include <cstring>

namespace sparsekern {
namespace {

Isa best() {
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq"))
    return Isa::avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::avx2;
  return Isa::scalar;
}

// -1: unknown name, or more than this CPU has.
int parse(const char* name) {
  if (name == nullptr || *name == '\0' || !std::strcmp(name, "auto")) return static_cast<int>(best());
  int level = !std::strcmp(name, "scalar") || !std::strcmp(name, "default") ? 0
              : !std::strcmp(name, "avx2")                                  ? 1
              : !std::strcmp(name, "avx512")                                ? 2
                                                                            : -1;
  return level <= static_cast<int>(best()) ? level : -1;
}

std::atomic<int>& current() {
  static std::atomic<int> level{[] {
    int wanted = parse(std::getenv("SPARSEKERN_ISA"));
    return wanted < 0 ? static_cast<int>(best()) : wanted;
  }()};
  return level;
}

}  // namespace

Isa isa() { return static_cast<Isa>(current().load(std::memory_order_relaxed)); }

}  // namespace sparsekern

extern "C" __attribute__((visibility("default"))) const char* sparsekern_isa() {
  static const char* names[] = {"scalar", "avx2", "avx512"};
  return names[static_cast<int>(sparsekern::isa())];
}

extern "C" __attribute__((visibility("default"))) int sparsekern_set_isa(const char* name) {
  int level = sparsekern::parse(name);
  if (level < 0) return -1;
  sparsekern::current().store(level);
  return 0;
}
