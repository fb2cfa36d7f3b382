#pragma once

// One formula for host and device: under nvcc every function of the core is compiled for both.
// always_inline also keeps a function compiled for one instruction set from being linked into another.
#if defined(__CUDACC__)
#define RHOVAE_HD __host__ __device__ __forceinline__
#define RHOVAE_UNROLL _Pragma("unroll")
#else
#define RHOVAE_HD inline __attribute__((always_inline))
#define RHOVAE_UNROLL _Pragma("GCC unroll 16")
#endif
