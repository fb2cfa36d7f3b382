#pragma once

// The one place that knows what compiles a kernel: nvcc, or g++ through the emulator of the tests. Every
// intrinsic and every line of PTX has its wrapper here, and its counterpart in the emulator's header.

#include <cstdint>

#if defined(RHOVAE_CUDA_EMULATOR)
#include "cuda_emulator.h"
#else

#include <cuda_runtime.h>

#define RHOVAE_LAUNCH(kernel, grid, block, stream, arguments) kernel<<<grid, block, 0, stream>>>(arguments)

namespace rhovae::cuda {

constexpr unsigned kWholeWarp = 0xFFFFFFFFu;

// A lane whose partner lies outside its segment of `width` lanes receives its own value.
template <class V>
__device__ __forceinline__ V shuffle_up(V v, int distance, int width) {
  return __shfl_up_sync(kWholeWarp, v, distance, width);
}
template <class V>
__device__ __forceinline__ V shuffle_down(V v, int distance, int width) {
  return __shfl_down_sync(kWholeWarp, v, distance, width);
}
template <class V>
__device__ __forceinline__ V shuffle_xor(V v, int mask) {
  return __shfl_xor_sync(kWholeWarp, v, mask);
}
template <class V>
__device__ __forceinline__ V broadcast(V v, int lane, int width) {
  return __shfl_sync(kWholeWarp, v, lane, width);
}
__device__ __forceinline__ bool true_for_warp(bool v) {
  return __all_sync(kWholeWarp, v);
}
// The value itself, by a way that the compiler does not see through: it would otherwise compute it anew at
// every use.
__device__ __forceinline__ int of_first_lane(int v) {
  return __shfl_sync(kWholeWarp, v, 0);
}
__device__ __forceinline__ int kept(int v) {
  return __shfl_sync(kWholeWarp, v, threadIdx.x % 32);
}
__device__ __forceinline__ void block_barrier() {
  __syncthreads();
}

// The special-function unit. log2: 2^-22 absolute near 1, relative elsewhere. sine and cosine on [-pi, pi]:
// 2^-20.5.
__device__ __forceinline__ float fast_log2(float v) {
  float out;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(v));
  return out;
}
// Denormal numbers too.
__device__ __forceinline__ float fast_log2_of_any(float v) {
  float out;
  asm("lg2.approx.f32 %0, %1;" : "=f"(out) : "f"(v));
  return out;
}
__device__ __forceinline__ float fast_sqrt(float v) {
  float out;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(v));
  return out;
}
__device__ __forceinline__ float fast_sine(float v) {
  float out;
  asm("sin.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(v));
  return out;
}
__device__ __forceinline__ float fast_cosine(float v) {
  float out;
  asm("cos.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(v));
  return out;
}
__device__ __forceinline__ void sine_cosine_of_turns(double turns, double& sine, double& cosine) {
  sincospi(2.0 * turns, &sine, &cosine);
}

// Memory that no thread writes while the kernel runs: one element, or 16 or 8 aligned bytes at once.
template <class T>
__device__ __forceinline__ T load_constant(const T* at) {
  return __ldg(at);
}
__device__ __forceinline__ uint4 load_16_bytes(const void* at) {
  return __ldg(static_cast<const uint4*>(at));
}
__device__ __forceinline__ uint2 load_8_bytes(const void* at) {
  return __ldg(static_cast<const uint2*>(at));
}
template <class T>
__device__ __forceinline__ void store_element(T* at, T v) {
  __stwb(at, v);
}
__device__ __forceinline__ void store_16_bytes(void* at, uint4 v) {
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(at)), "r"(v.x),
               "r"(v.y), "r"(v.z), "r"(v.w)
               : "memory");
}
__device__ __forceinline__ void store_8_bytes(void* at, uint2 v) {
  asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(at)), "r"(v.x), "r"(v.y)
               : "memory");
}

// Keeps a value in its register: the compiler would otherwise compute it anew wherever it is used.
__device__ __forceinline__ float pinned(float v) {
  asm("" : "+f"(v));
  return v;
}
__device__ __forceinline__ double pinned(double v) {
  asm("" : "+d"(v));
  return v;
}
__device__ __forceinline__ uint32_t pinned(uint32_t v) {
  asm("" : "+r"(v));
  return v;
}
template <class T>
__device__ __forceinline__ T* pinned(T* v) {
  asm("" : "+l"(v));
  return v;
}
__device__ __forceinline__ int pinned(int v) {
  asm("" : "+r"(v));
  return v;
}

// Rounded once.
__device__ __forceinline__ float fused_multiply_add(float a, float b, float c) {
  return __fmaf_rn(a, b, c);
}
__device__ __forceinline__ double fused_multiply_add(double a, double b, double c) {
  return __fma_rn(a, b, c);
}

__device__ __forceinline__ uint32_t bits_of(float v) {
  return __float_as_uint(v);
}
__device__ __forceinline__ float float_of(uint32_t bits) {
  return __uint_as_float(bits);
}
__device__ __forceinline__ double double_of(uint32_t low, uint32_t high) {
  return __hiloint2double(static_cast<int>(high), static_cast<int>(low));
}
__device__ __forceinline__ uint2 bits_of(double v) {
  return make_uint2(static_cast<uint32_t>(__double2loint(v)), static_cast<uint32_t>(__double2hiint(v)));
}

// Two of the half types in a word, the first in the low bits; rounded to nearest even.
__device__ __forceinline__ float float16_to_float(uint32_t bits) {
  float out;
  asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(static_cast<uint16_t>(bits)));
  return out;
}
__device__ __forceinline__ uint32_t pack_bfloat16(float low, float high) {
  uint32_t out;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
  return out;
}
__device__ __forceinline__ uint32_t pack_float16(float low, float high) {
  uint32_t out;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
  return out;
}

}  // namespace rhovae::cuda

#endif
