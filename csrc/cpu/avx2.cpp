// The kernels for x86-64-v3. The standard headers come before the target is set: their inline functions,
// compiled for it, could otherwise be linked into code that runs on a lesser processor.
#if defined(__x86_64__)
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("arch=x86-64-v3"))), apply_to = function)
#else
#pragma GCC target("arch=x86-64-v3")
#endif

#define RHOVAE_ISA avx2
#define RHOVAE_BYTES 32
#define RHOVAE_X86_64_LEVEL 3
#include "instruction_set.h"

namespace rhovae::cpu {
extern const Kernels k_avx2;
const Kernels k_avx2 = RHOVAE_KERNELS;
}  // namespace rhovae::cpu

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
