#pragma once

// CUDA for g++, for tests: the kernels' own sources, run on the CPU. A block's threads are fibres that take
// turns; shuffles and barriers are where a fibre waits for the others. Aborts, saying where, on a barrier
// that part of a block does not reach, a shuffle that part of a warp does not reach, and a misaligned wide
// access. Blocks run one after the other. The order in which the fibres of a block run is shuffled by a seed:
// a missing barrier then shows.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static  // one block at a time, one host thread

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  explicit dim3(unsigned x_) : x(x_) {}
};
struct uint2 {
  uint32_t x, y;
};
struct uint4 {
  uint32_t x, y, z, w;
};
inline uint2 make_uint2(uint32_t x, uint32_t y) {
  return {x, y};
}
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) {
  return {x, y, z, w};
}

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
inline cudaError_t cudaGetLastError() {
  return cudaSuccess;
}

namespace cuda_emulator {

struct Index {
  unsigned x, y, z;
};
struct Thread {
  Index thread_index, block_index, block_size, grid_size;
};
Thread& current();

// What a waiting fibre says of itself: the exchange of a warp or the barrier of the block, and the line it
// stands at.
enum class Wait { Shuffle, Barrier };
struct Place {
  const char* file;
  int line;
};

// Gives 8 bytes to the warp and waits for all 32 lanes; returns what lane `from` gave.
uint64_t exchange(uint64_t mine, int from, Place place);
void barrier(Place place);
[[noreturn]] void fail(const char* what, Place place);

void set_seed(uint64_t seed);  // 0: fibres in order
void launch(dim3 grid, dim3 block, const std::function<void()>& kernel);

template <class V>
V shuffle(V v, int from, Place place) {
  uint64_t bits = 0;
  std::memcpy(&bits, &v, sizeof v);
  bits = exchange(bits, from, place);
  std::memcpy(&v, &bits, sizeof v);
  return v;
}
inline int lane() {
  return static_cast<int>(current().thread_index.x % 32);
}

}  // namespace cuda_emulator

#define threadIdx (cuda_emulator::current().thread_index)
#define blockIdx (cuda_emulator::current().block_index)
#define blockDim (cuda_emulator::current().block_size)
#define gridDim (cuda_emulator::current().grid_size)
#define RHOVAE_LAUNCH(kernel, grid, block, stream, arguments) \
  (static_cast<void>(stream), cuda_emulator::launch(grid, block, [&] { kernel(arguments); }))

inline float __fmaf_rn(float a, float b, float c) {
  return std::fma(a, b, c);
}
inline float __fdividef(float a, float b) {
  return a / b;
}
inline double __fma_rn(double a, double b, double c) {
  return std::fma(a, b, c);
}

// The counterparts of csrc/cuda/platform.cuh.
namespace rhovae::cuda {

inline float fused_multiply_add(float a, float b, float c) {
  return std::fma(a, b, c);
}
inline double fused_multiply_add(double a, double b, double c) {
  return std::fma(a, b, c);
}

#define RHOVAE_HERE                    \
  cuda_emulator::Place {               \
    __builtin_FILE(), __builtin_LINE() \
  }

template <class V>
V shuffle_up(V v, int distance, int width, cuda_emulator::Place here = RHOVAE_HERE) {
  const int lane = cuda_emulator::lane();
  return cuda_emulator::shuffle(v, lane % width >= distance ? lane - distance : lane, here);
}
template <class V>
V shuffle_down(V v, int distance, int width, cuda_emulator::Place here = RHOVAE_HERE) {
  const int lane = cuda_emulator::lane();
  return cuda_emulator::shuffle(v, lane % width + distance < width ? lane + distance : lane, here);
}
template <class V>
V shuffle_xor(V v, int mask, cuda_emulator::Place here = RHOVAE_HERE) {
  return cuda_emulator::shuffle(v, cuda_emulator::lane() ^ mask, here);
}
template <class V>
V broadcast(V v, int from, int width, cuda_emulator::Place here = RHOVAE_HERE) {
  return cuda_emulator::shuffle(v, cuda_emulator::lane() / width * width + (from & (width - 1)), here);
}
inline bool true_for_warp(bool v, cuda_emulator::Place here = RHOVAE_HERE) {
  int all = v;
  for (int mask = 1; mask < 32; mask *= 2) all &= shuffle_xor(all, mask, here);
  return all != 0;
}
inline void block_barrier(cuda_emulator::Place here = RHOVAE_HERE) {
  cuda_emulator::barrier(here);
}

#undef RHOVAE_HERE

// The special-function unit, at the worst that its documentation allows: which side it errs to follows from
// the bits.
inline float worst(double exact, double error, float argument) {
  uint32_t bits;
  std::memcpy(&bits, &argument, 4);
  const bool up = (bits * 0x9E3779B1u >> 16 & 1u) != 0;
  return static_cast<float>(up ? exact + error : exact - error);
}
inline float fast_log2(float v) {
  const double exact = std::log2(static_cast<double>(v));
  return worst(exact, v > 0.5f && v < 2.0f ? 0x1p-22 : 0x1p-22 * std::abs(exact), v);
}
inline float fast_log2_of_any(float v) {
  return fast_log2(v);
}
inline float fast_sqrt(float v) {
  return std::sqrt(v);
}
inline float fast_sine(float v) {
  return worst(std::sin(static_cast<double>(v)), 0x1p-21, v);
}
inline float fast_cosine(float v) {
  return worst(std::cos(static_cast<double>(v)), 0x1p-21, v);
}
inline void sine_cosine_of_turns(double turns, double& sine, double& cosine) {
  constexpr double kTwoPi = 6.283185307179586476925286766559;
  sine = std::sin(kTwoPi * turns);
  cosine = std::cos(kTwoPi * turns);
}

inline int kept(int v) {
  return v;
}
inline int of_first_lane(int v) {
  return v;
}
template <class V>
inline V pinned(V v) {
  return v;
}

template <class T>
inline T load_constant(const T* at) {
  return *at;
}
template <class T>
inline void store_element(T* at, T v) {
  *at = v;
}
template <class W>
inline W* wide(const void* at) {
  if (reinterpret_cast<uintptr_t>(at) % sizeof(W))
    cuda_emulator::fail("misaligned wide access", {__FILE__, __LINE__});
  return static_cast<W*>(const_cast<void*>(at));
}
inline uint4 load_16_bytes(const void* at) {
  return *wide<uint4>(at);
}
inline uint2 load_8_bytes(const void* at) {
  return *wide<uint2>(at);
}
inline void store_16_bytes(void* at, uint4 v) {
  *wide<uint4>(at) = v;
}
inline void store_8_bytes(void* at, uint2 v) {
  *wide<uint2>(at) = v;
}

template <class To, class From>
inline To bits_to(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}
inline uint32_t bits_of(float v) {
  return bits_to<uint32_t>(v);
}
inline float float_of(uint32_t bits) {
  return bits_to<float>(bits);
}
inline double double_of(uint32_t low, uint32_t high) {
  return bits_to<double>(uint64_t{high} << 32 | low);
}
inline uint2 bits_of(double v) {
  const uint64_t bits = bits_to<uint64_t>(v);
  return {static_cast<uint32_t>(bits), static_cast<uint32_t>(bits >> 32)};
}

inline uint32_t to_bfloat16(float v) {
  const uint32_t u = bits_of(v);
  if ((u & 0x7FFFFFFFu) > 0x7F800000u) return 0x7FFFu;
  return (u + 0x7FFFu + (u >> 16 & 1u)) >> 16;
}
inline float float16_to_float(uint32_t bits) {
  const int exponent = static_cast<int>(bits >> 10 & 31u), fraction = static_cast<int>(bits & 1023u);
  const float size = exponent == 31  ? (fraction ? NAN : INFINITY)
                     : exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                                     : std::ldexp(static_cast<float>(1024 + fraction), exponent - 25);
  return bits & 0x8000u ? -size : size;
}
inline uint32_t to_float16(float v) {
  const uint32_t sign = bits_of(v) >> 16 & 0x8000u;
  if (std::isnan(v)) return 0x7FFFu;
  if (std::abs(v) >= 65520.0f) return sign | 0x7C00u;
  int exponent;
  std::frexp(v, &exponent);  // |v| in [2^(exponent - 1), 2^exponent)
  const int step = (exponent < -13 ? -13 : exponent) - 11;
  const auto units = static_cast<uint32_t>(std::nearbyint(std::ldexp(std::abs(v), -step)));
  return sign | (units + (static_cast<uint32_t>(step + 24) << 10));
}
inline uint32_t pack_bfloat16(float low, float high) {
  return to_bfloat16(high) << 16 | to_bfloat16(low);
}
inline uint32_t pack_float16(float low, float high) {
  return to_float16(high) << 16 | to_float16(low);
}

}  // namespace rhovae::cuda
