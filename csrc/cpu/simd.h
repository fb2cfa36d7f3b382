#pragma once

// Vectors of lanes for one instruction set. The file that includes this has told the compiler the target and
// has defined RHOVAE_ISA, the namespace that keeps the sets apart, RHOVAE_BYTES, the width of a register, and
// RHOVAE_X86_64_LEVEL (compilers do not define __AVX2__ and the like in time for a target set by pragma). The
// compiler's vector extension supplies the operators; what it lacks or does badly is here.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "../core/macros.h"

#define RHOVAE_INLINE inline __attribute__((always_inline))

namespace rhovae::RHOVAE_ISA {

constexpr int kBytes = RHOVAE_BYTES;
using F32 = float __attribute__((vector_size(kBytes)));
using F64 = double __attribute__((vector_size(kBytes)));
using I32 = int32_t __attribute__((vector_size(kBytes)));
using I64 = int64_t __attribute__((vector_size(kBytes)));
using U32 = uint32_t __attribute__((vector_size(kBytes)));
using U64 = uint64_t __attribute__((vector_size(kBytes)));

// A type of number and its vector: V of values, I and U of integers as wide, n lanes.
template <class C>
struct Lanes;
template <>
struct Lanes<float> {
  using V = F32;
  using I = I32;
  using U = U32;
  static constexpr int n = kBytes / 4;
};
template <>
struct Lanes<double> {
  using V = F64;
  using I = I64;
  using U = U64;
  static constexpr int n = kBytes / 8;
};
template <class C>
using V = typename Lanes<C>::V;

template <class C>
RHOVAE_INLINE V<C> splat(C value) {
  return V<C>{} + value;
}

template <class C>
RHOVAE_INLINE V<C> load(const C* from) {
  V<C> v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

template <class C>
RHOVAE_INLINE void store(C* to, V<C> v) {
  std::memcpy(to, &v, sizeof v);
}

// The first `count` lanes, the rest zero: nothing past them is touched.
template <class C>
RHOVAE_INLINE V<C> load_some(const C* from, int count) {
  if (count >= Lanes<C>::n) return load(from);
#if RHOVAE_X86_64_LEVEL == 4
  if constexpr (sizeof(C) == 4)
    return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1u), from);
  else
    return _mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << count) - 1u), from);
#else
  V<C> v{};
  std::memcpy(&v, from, static_cast<size_t>(count) * sizeof(C));
  return v;
#endif
}

template <class C>
RHOVAE_INLINE void store_some(C* to, V<C> v, int count) {
  if (count >= Lanes<C>::n) return store(to, v);
#if RHOVAE_X86_64_LEVEL == 4
  if constexpr (sizeof(C) == 4)
    _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << count) - 1u), v);
  else
    _mm512_mask_storeu_pd(to, static_cast<__mmask8>((1u << count) - 1u), v);
#else
  std::memcpy(to, &v, static_cast<size_t>(count) * sizeof(C));
#endif
}

// 0, 1, 2, ...
template <class T, size_t... i>
RHOVAE_INLINE T iota_of(std::index_sequence<i...>) {
  return T{i...};
}
template <class C>
RHOVAE_INLINE typename Lanes<C>::I iota() {
  return iota_of<typename Lanes<C>::I>(std::make_index_sequence<Lanes<C>::n>{});
}

// Lane i of the result is lane Pattern::from(i) of a and b laid end to end.
template <class C, class Pattern, size_t... i>
RHOVAE_INLINE V<C> shuffle_lanes(V<C> a, V<C> b, std::index_sequence<i...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, Pattern::from(static_cast<int>(i))...);
#else
  return __builtin_shuffle(a, b, typename Lanes<C>::I{Pattern::from(static_cast<int>(i))...});
#endif
}
template <class C, class Pattern>
RHOVAE_INLINE V<C> shuffle(V<C> a, V<C> b) {
  return shuffle_lanes<C, Pattern>(a, b, std::make_index_sequence<Lanes<C>::n>{});
}

// n lanes out of a and b laid end to end, from lane `start` on.
template <int start>
struct Window {
  static constexpr int from(int i) { return start + i; }
};
template <class C, int start>
RHOVAE_INLINE V<C> window(V<C> a, V<C> b) {
#if RHOVAE_X86_64_LEVEL == 4
  // One instruction, and no register for the indices.
  if constexpr (sizeof(C) == 4)
    return (F32)_mm512_alignr_epi32((__m512i)b, (__m512i)a, start);
  else
    return (F64)_mm512_alignr_epi64((__m512i)b, (__m512i)a, start);
#else
  return shuffle<C, Window<start>>(a, b);
#endif
}

// Lane i takes lane i - by; `fill` supplies what comes in from below (from its top lanes).
template <class C, int by>
RHOVAE_INLINE V<C> shift_up(V<C> fill, V<C> v) {
  return window<C, Lanes<C>::n - by>(fill, v);
}
// Lane i takes lane i + by; `fill` supplies what comes in from above (from its bottom lanes).
template <class C, int by>
RHOVAE_INLINE V<C> shift_down(V<C> v, V<C> fill) {
  return window<C, by>(v, fill);
}

template <int n>
struct InterleaveLow {
  static constexpr int from(int i) { return (i & 1) * n + i / 2; }
};
template <int n>
struct InterleaveHigh {
  static constexpr int from(int i) { return (i & 1) * n + (n + i) / 2; }
};
template <int lane>
struct Broadcast {
  static constexpr int from(int) { return lane; }
};
template <class C>
RHOVAE_INLINE V<C> broadcast_last(V<C> v) {
  return shuffle<C, Broadcast<Lanes<C>::n - 1>>(v, v);
}
template <class C>
RHOVAE_INLINE V<C> broadcast_first(V<C> v) {
  return shuffle<C, Broadcast<0>>(v, v);
}

// In a fixed order, so that a sum is the same in every run.
template <class C>
RHOVAE_INLINE C sum_lanes(V<C> v) {
  if constexpr (Lanes<C>::n >= 16) v += window<C, 8>(v, v);
  if constexpr (Lanes<C>::n >= 8) v += window<C, 4>(v, v);
  if constexpr (Lanes<C>::n >= 4) v += window<C, 2>(v, v);
  v += window<C, 1>(v, v);
  return v[0];
}

RHOVAE_INLINE F32 sqrt_lanes(F32 v) {
#if RHOVAE_X86_64_LEVEL == 4
  return _mm512_sqrt_ps(v);
#elif RHOVAE_X86_64_LEVEL == 3
  return _mm256_sqrt_ps(v);
#elif defined(__SSE2__)
  return _mm_sqrt_ps(v);
#else
  for (int i = 0; i < Lanes<float>::n; ++i) v[i] = std::sqrt(v[i]);
  return v;
#endif
}
RHOVAE_INLINE F64 sqrt_lanes(F64 v) {
#if RHOVAE_X86_64_LEVEL == 4
  return _mm512_sqrt_pd(v);
#elif RHOVAE_X86_64_LEVEL == 3
  return _mm256_sqrt_pd(v);
#elif defined(__SSE2__)
  return _mm_sqrt_pd(v);
#else
  for (int i = 0; i < Lanes<double>::n; ++i) v[i] = std::sqrt(v[i]);
  return v;
#endif
}

// Philox over lanes of 64 bits: each holds one counter's word in its low half, and whatever in its high half,
// which the multiplication ignores. So a round is two multiplications, two shifts and two three-way exclusive
// ors.
struct LaneWord {
  using Word = U64;
  using Product = U64;
  static RHOVAE_INLINE U64 multiply(uint32_t multiplier, U64 word) {
    const U64 m = U64{} + multiplier;
#if RHOVAE_X86_64_LEVEL == 4
    return (U64)_mm512_mul_epu32((__m512i)word, (__m512i)m);
#elif RHOVAE_X86_64_LEVEL == 3
    return (U64)_mm256_mul_epu32((__m256i)word, (__m256i)m);
#elif defined(__SSE2__)
    return (U64)_mm_mul_epu32((__m128i)word, (__m128i)m);
#else
    return (word & 0xFFFFFFFFu) * m;
#endif
  }
  static RHOVAE_INLINE U64 high(U64 p) { return p >> 32; }
  static RHOVAE_INLINE U64 low(U64 p) { return p; }
  static RHOVAE_INLINE U64 xor3(U64 a, U64 b, uint32_t c) { return a ^ b ^ (U64{} + c); }
};

// Low halves of `even` and `odd`, side by side.
RHOVAE_INLINE U32 join_words(U64 even, U64 odd) {
  return (U32)((even & 0xFFFFFFFFu) | (odd << 32));
}
// Two words of 32 bits to one of 64, lane by lane.
RHOVAE_INLINE U64 join_halves(U64 high, U64 low) {
  return (high << 32) | (low & 0xFFFFFFFFu);
}

}  // namespace rhovae::RHOVAE_ISA
