// The kernels for any processor: registers of 128 bits, which the compiler maps to what the target has (SSE2
// and NEON among them).
#define RHOVAE_ISA portable
#define RHOVAE_BYTES 16
#define RHOVAE_X86_64_LEVEL 0
#include "instruction_set.h"

namespace rhovae::cpu {
extern const Kernels k_portable;
const Kernels k_portable = RHOVAE_KERNELS;
}  // namespace rhovae::cpu
