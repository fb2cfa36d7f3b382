#include "kernels.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

namespace rhovae::cpu {

#if defined(__x86_64__)
extern const Kernels k_avx512;
extern const Kernels k_avx2;
#endif
extern const Kernels k_portable;

const Kernels* find_kernels(const char* name) {
#if defined(__x86_64__)
  if (std::strcmp(name, "avx512") == 0) {
    const bool here = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl") && find_kernels("avx2");
    return here ? &k_avx512 : nullptr;
  }
  if (std::strcmp(name, "avx2") == 0) {
    const bool here = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                      __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
    return here ? &k_avx2 : nullptr;
  }
#endif
  return std::strcmp(name, "portable") == 0 ? &k_portable : nullptr;
}

static const Kernels& choose() {
  if (const char* forced = std::getenv("RHOVAE_CPU_CAPABILITY"); forced && *forced) {
    if (const Kernels* found = find_kernels(forced)) return *found;
    throw std::runtime_error(
        std::string("RHOVAE_CPU_CAPABILITY=") + forced +
        ": expected one of avx512, avx2, portable that this processor has; unset it to let "
        "rhovae choose the best");
  }
  for (const char* name : {"avx512", "avx2"}) {
    if (const Kernels* found = find_kernels(name)) return *found;
  }
  return k_portable;
}

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace rhovae::cpu
