#pragma once

// The element types, and a thread's run of elements: 16 bytes of the tensor that sets the type.

#include "../core/problem.h"
#include "platform.cuh"

namespace rhovae::cuda {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

template <class T>
struct ElementOf {
  using Arithmetic = float;
};
template <>
struct ElementOf<double> {
  using Arithmetic = double;
};
template <class T>
using Arithmetic = typename ElementOf<T>::Arithmetic;

template <class T>
constexpr int kItems = 16 / sizeof(T);

template <class T>
constexpr Type kType = Type::Float32;
template <>
constexpr Type kType<double> = Type::Float64;
template <>
constexpr Type kType<BFloat16> = Type::BFloat16;
template <>
constexpr Type kType<Float16> = Type::Float16;

__device__ __forceinline__ float widen(float v) {
  return v;
}
__device__ __forceinline__ double widen(double v) {
  return v;
}
__device__ __forceinline__ float widen(BFloat16 v) {
  return float_of(static_cast<uint32_t>(v.bits) << 16);
}
__device__ __forceinline__ float widen(Float16 v) {
  return float16_to_float(v.bits);
}

template <class T>
__device__ __forceinline__ T narrow(Arithmetic<T> v) {
  return v;
}
template <>
__device__ __forceinline__ BFloat16 narrow<BFloat16>(float v) {
  return {static_cast<uint16_t>(pack_bfloat16(v, 0.0f))};
}
template <>
__device__ __forceinline__ Float16 narrow<Float16>(float v) {
  return {static_cast<uint16_t>(pack_float16(v, 0.0f))};
}

__device__ __forceinline__ float load_one(const float* at) {
  return load_constant(at);
}
__device__ __forceinline__ double load_one(const double* at) {
  return load_constant(at);
}
__device__ __forceinline__ BFloat16 load_one(const BFloat16* at) {
  return {load_constant(&at->bits)};
}
__device__ __forceinline__ Float16 load_one(const Float16* at) {
  return {load_constant(&at->bits)};
}

__device__ __forceinline__ void store_one(float* at, float v) {
  store_element(at, v);
}
__device__ __forceinline__ void store_one(double* at, double v) {
  store_element(at, v);
}
__device__ __forceinline__ void store_one(BFloat16* at, BFloat16 v) {
  store_element(&at->bits, v.bits);
}
__device__ __forceinline__ void store_one(Float16* at, Float16 v) {
  store_element(&at->bits, v.bits);
}

// A 4-byte word holds one float or two of the half types; a double takes two words.
template <class T, class V, int N>
__device__ __forceinline__ void unpack(const uint32_t* words, V (&to)[N]) {
#pragma unroll
  for (int j = 0; j < N; ++j) {
    if constexpr (sizeof(T) == 8)
      to[j] = static_cast<V>(double_of(words[2 * j], words[2 * j + 1]));
    else if constexpr (sizeof(T) == 4)
      to[j] = static_cast<V>(float_of(words[j]));
    else if constexpr (kType<T> == Type::BFloat16) {
      to[j] = float_of(j % 2 ? words[j / 2] & 0xFFFF0000u : words[j / 2] << 16);
    } else {
      to[j] = float16_to_float(j % 2 ? words[j / 2] >> 16 : words[j / 2] & 0xFFFFu);
    }
  }
}
template <class T, class V, int N>
__device__ __forceinline__ void pack(const V (&from)[N], uint32_t* words) {
#pragma unroll
  for (int j = 0; j < N; ++j) {
    if constexpr (sizeof(T) == 8) {
      const uint2 bits = bits_of(static_cast<double>(from[j]));
      words[2 * j] = bits.x;
      words[2 * j + 1] = bits.y;
    } else if constexpr (sizeof(T) == 4) {
      words[j] = bits_of(static_cast<float>(from[j]));
    } else if (j % 2 == 0) {
      words[j / 2] = kType<T> == Type::BFloat16 ? pack_bfloat16(from[j], from[j + 1])
                                                : pack_float16(from[j], from[j + 1]);
    }
  }
}

// N elements at an address that is a multiple of 16, or of their size where that is less.
template <class T, class V, int N>
__device__ __forceinline__ void load_run(const T* at, V (&to)[N]) {
  constexpr int kWords = N * sizeof(T) / 4;
  uint32_t words[kWords];
  if constexpr (kWords == 2) {
    const uint2 v = load_8_bytes(at);
    words[0] = v.x, words[1] = v.y;
  } else {
#pragma unroll
    for (int i = 0; i < kWords; i += 4) {
      const uint4 v = load_16_bytes(reinterpret_cast<const char*>(at) + 4 * i);
      words[i] = v.x, words[i + 1] = v.y, words[i + 2] = v.z, words[i + 3] = v.w;
    }
  }
  unpack<T>(words, to);
}
template <class T, class V, int N>
__device__ __forceinline__ void store_run(T* at, const V (&from)[N]) {
  constexpr int kWords = N * sizeof(T) / 4;
  uint32_t words[kWords];
  pack<T>(from, words);
  if constexpr (kWords == 2) {
    store_8_bytes(at, make_uint2(words[0], words[1]));
  } else {
#pragma unroll
    for (int i = 0; i < kWords; i += 4) {
      store_16_bytes(reinterpret_cast<char*>(at) + 4 * i,
                     make_uint4(words[i], words[i + 1], words[i + 2], words[i + 3]));
    }
  }
}
template <class T, int N>
constexpr int kRunAlignment = N * sizeof(T) < 16 ? N * sizeof(T) : 16;

}  // namespace rhovae::cuda
