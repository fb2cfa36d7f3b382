#pragma once

// Vectors of lanes for one instruction set. The file that includes this has told the compiler the target and
// has defined RHOVAE_ISA, the namespace that keeps the sets apart, RHOVAE_BYTES, the width of a register, and
// RHOVAE_X86_64_LEVEL (compilers do not define __AVX2__ and the like in time for a target set by pragma). The
// compiler's vector extension supplies the operators; what it lacks or does badly is here.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "../core/macros.h"

#define RHOVAE_INLINE inline __attribute__((always_inline))
// For a lambda that a hot loop calls, between its parameters and its body: GCC leaves one that has several
// callers out of line, and what it shares with the loop then goes through memory.
#define RHOVAE_INLINE_BODY __attribute__((always_inline))
// For hot loops that need every register: compiled alone, whatever surrounds the call.
#define RHOVAE_ALONE __attribute__((noinline))

namespace rhovae::RHOVAE_ISA {

constexpr int kBytes = RHOVAE_BYTES;
using F32 = float __attribute__((vector_size(kBytes)));
using F64 = double __attribute__((vector_size(kBytes)));
using I32 = int32_t __attribute__((vector_size(kBytes)));
using I64 = int64_t __attribute__((vector_size(kBytes)));
using U32 = uint32_t __attribute__((vector_size(kBytes)));
using U64 = uint64_t __attribute__((vector_size(kBytes)));
// Half a register: what is narrower than the arithmetic's type.
using HalfU16 = uint16_t __attribute__((vector_size(kBytes / 2)));
using HalfF32 = float __attribute__((vector_size(kBytes / 2)));

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

// 0, 1, 2, ...
template <class T, size_t... i>
RHOVAE_INLINE T iota_of(std::index_sequence<i...>) {
  return T{i...};
}
template <class C>
RHOVAE_INLINE typename Lanes<C>::I iota() {
  return iota_of<typename Lanes<C>::I>(std::make_index_sequence<Lanes<C>::n>{});
}

// The first lanes of a register, fewer than it has: known where this is made, so that no load or store asks.
struct Part {
  int lanes;
  constexpr operator int() const { return lanes; }
};

// The first `count` of up to `size` values, by powers of two: a copy of any length would be a call.
template <class T, int size>
RHOVAE_INLINE void copy_some(T* to, const T* from, int count) {
  if constexpr (size > 1) {
    constexpr int half = size / 2;
    if (count & half) std::memcpy(to, from, half * sizeof(T));
    copy_some<T, half>(to + (count & half), from + (count & half), count);
  }
}

// The first lanes of a register, or of half a one, the rest zero: nothing past them is touched.
template <class T, class Vector = V<T>>
RHOVAE_INLINE Vector load_some(const T* from, Part part) {
#if RHOVAE_X86_64_LEVEL == 4
  const uint32_t mask = (1u << part.lanes) - 1u;
  if constexpr (sizeof(T) == 2)
    return (Vector)_mm256_maskz_loadu_epi16(static_cast<__mmask16>(mask), from);
  else if constexpr (sizeof(Vector) < kBytes)
    return (Vector)_mm256_maskz_loadu_ps(static_cast<__mmask8>(mask), from);
  else if constexpr (sizeof(T) == 4)
    return (Vector)_mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), from);
  else
    return (Vector)_mm512_maskz_loadu_pd(static_cast<__mmask8>(mask), from);
#else
#if RHOVAE_X86_64_LEVEL == 3
  if constexpr (sizeof(T) == 4 && sizeof(Vector) == kBytes)
    return (Vector)_mm256_maskload_ps(from, (__m256i)(iota<float>() < part.lanes));
  if constexpr (sizeof(T) == 8)
    return (Vector)_mm256_maskload_pd(from, (__m256i)(iota<double>() < static_cast<int64_t>(part.lanes)));
#endif
  constexpr int lanes = sizeof(Vector) / sizeof(T);
  T values[lanes] = {};
  copy_some<T, lanes>(values, from, part.lanes);
  Vector v;
  std::memcpy(&v, values, sizeof v);
  return v;
#endif
}
template <class T, class Vector = V<T>>
RHOVAE_INLINE Vector load_some(const T* from, int count) {
  constexpr int lanes = sizeof(Vector) / sizeof(T);
  if (count < lanes) return load_some<T, Vector>(from, Part{count});
  Vector v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

template <class T, class Vector>
RHOVAE_INLINE void store_some(T* to, Vector v, Part part) {
#if RHOVAE_X86_64_LEVEL == 4
  const uint32_t mask = (1u << part.lanes) - 1u;
  if constexpr (sizeof(T) == 2)
    _mm256_mask_storeu_epi16(to, static_cast<__mmask16>(mask), (__m256i)v);
  else if constexpr (sizeof(Vector) < kBytes)
    _mm256_mask_storeu_ps(to, static_cast<__mmask8>(mask), (__m256)v);
  else if constexpr (sizeof(T) == 4)
    _mm512_mask_storeu_ps(to, static_cast<__mmask16>(mask), (__m512)v);
  else
    _mm512_mask_storeu_pd(to, static_cast<__mmask8>(mask), (__m512d)v);
#else
  constexpr int lanes = sizeof(Vector) / sizeof(T);
  T values[lanes];
  std::memcpy(values, &v, sizeof v);
  copy_some<T, lanes>(to, values, part.lanes);
#endif
}
template <class T, class Vector>
RHOVAE_INLINE void store_some(T* to, Vector v, int count) {
  constexpr int lanes = sizeof(Vector) / sizeof(T);
  count < lanes ? store_some(to, v, Part{count}) : static_cast<void>(std::memcpy(to, &v, sizeof v));
}

// f(i, left) for every register of a run, i its first step, left how many of its lanes are the run's own: a
// constant for all but the last, a Part for that one.
template <class C, class F>
RHOVAE_INLINE void over_registers(int64_t count, const F& f) {
  constexpr int n = Lanes<C>::n;
  int64_t i = 0;
  for (; i + n <= count; i += n) f(i, std::integral_constant<int, n>{});
  if (i < count) f(i, Part{static_cast<int>(count - i)});
}

// Calls f with the condition as a constant, so that a loop has it settled.
template <class F>
RHOVAE_INLINE void with_constant(bool condition, const F& f) {
  condition ? f(std::true_type{}) : f(std::false_type{});
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
// Of 2 x 2 blocks of `size` lanes, left and right of two registers, what the transposed rows take.
template <int n, int size>
struct LeftBlocks {
  static constexpr int from(int i) { return i & size ? n + i - size : i; }
};
template <int n, int size>
struct RightBlocks {
  static constexpr int from(int i) { return i & size ? n + i : i + size; }
};
// Swaps, in the 2 size rows from `base` on, the blocks off the diagonal.
template <class C, int base, int size>
RHOVAE_INLINE void swap_blocks(V<C> (&rows)[Lanes<C>::n]) {
  constexpr int n = Lanes<C>::n;
#pragma GCC unroll 8
  for (int i = base; i < base + size; ++i) {
    const V<C> upper = rows[i], lower = rows[i + size];
    rows[i] = shuffle<C, LeftBlocks<n, size>>(upper, lower);
    rows[i + size] = shuffle<C, RightBlocks<n, size>>(upper, lower);
  }
}
// Transposed, in blocks of half the size at a time: of which the first `count` rows are wanted ...
template <class C, int base = 0, int size = Lanes<C>::n / 2>
RHOVAE_INLINE void transpose_to(V<C> (&rows)[Lanes<C>::n], int count) {
  swap_blocks<C, base, size>(rows);
  if constexpr (size > 1) {
    transpose_to<C, base, size / 2>(rows, count);
    if (count > size) transpose_to<C, base + size, size / 2>(rows, count - size);
  }
}
// ... or of which the first `count` are all that is there.
template <class C, int base = 0, int size = Lanes<C>::n / 2>
RHOVAE_INLINE void transpose_from(V<C> (&rows)[Lanes<C>::n], int count) {
  if constexpr (size > 1) {
    transpose_from<C, base, size / 2>(rows, count);
    if (count > size) transpose_from<C, base + size, size / 2>(rows, count - size);
  }
  swap_blocks<C, base, size>(rows);
}
// Lane i: the sum of row i's lanes. Transposed likewise, but added up on the way.
template <class C, int size = Lanes<C>::n / 2>
RHOVAE_INLINE V<C> sum_rows(V<C> (&rows)[Lanes<C>::n]) {
  swap_blocks<C, 0, size>(rows);
#pragma GCC unroll 8
  for (int i = 0; i < size; ++i) rows[i] += rows[i + size];
  if constexpr (size > 1)
    return sum_rows<C, size / 2>(rows);
  else
    return rows[0];
}
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

// The lesser or greater of two, the second where either is NaN.
RHOVAE_INLINE F32 least_lanes(F32 a, F32 b) {
#if RHOVAE_X86_64_LEVEL == 4
  return _mm512_min_ps(a, b);
#elif RHOVAE_X86_64_LEVEL == 3
  return _mm256_min_ps(a, b);
#else
  return a < b ? a : b;
#endif
}
RHOVAE_INLINE F64 least_lanes(F64 a, F64 b) {
#if RHOVAE_X86_64_LEVEL == 4
  return _mm512_min_pd(a, b);
#elif RHOVAE_X86_64_LEVEL == 3
  return _mm256_min_pd(a, b);
#else
  return a < b ? a : b;
#endif
}
RHOVAE_INLINE F32 greatest_lanes(F32 a, F32 b) {
#if RHOVAE_X86_64_LEVEL == 4
  return _mm512_max_ps(a, b);
#elif RHOVAE_X86_64_LEVEL == 3
  return _mm256_max_ps(a, b);
#else
  return a > b ? a : b;
#endif
}
RHOVAE_INLINE F64 greatest_lanes(F64 a, F64 b) {
#if RHOVAE_X86_64_LEVEL == 4
  return _mm512_max_pd(a, b);
#elif RHOVAE_X86_64_LEVEL == 3
  return _mm256_max_pd(a, b);
#else
  return a > b ? a : b;
#endif
}

#if RHOVAE_X86_64_LEVEL == 4
// v 2^n
RHOVAE_INLINE F32 scale_lanes(F32 v, F32 n) {
  return _mm512_scalef_ps(v, n);
}
RHOVAE_INLINE F64 scale_lanes(F64 v, F64 n) {
  return _mm512_scalef_pd(v, n);
}
#endif

// Integers to numbers, rounded once. 64 bits wide, few processors can: there the two halves become the low
// bits of 2^84 and 2^52, and what was too much is subtracted, exactly, before they are added.
RHOVAE_INLINE F32 to_real(I32 v) {
  return __builtin_convertvector(v, F32);
}
RHOVAE_INLINE F32 to_real(U32 v) {
  return __builtin_convertvector(v, F32);
}
#if RHOVAE_X86_64_LEVEL == 4 || defined(__aarch64__)
RHOVAE_INLINE F64 to_real(I64 v) {
  return __builtin_convertvector(v, F64);
}
RHOVAE_INLINE F64 to_real(U64 v) {
  return __builtin_convertvector(v, F64);
}
#else
RHOVAE_INLINE F64 join_parts(U64 high, U64 low, double excess) {
  const U64 large = (U64)(F64{} + 0x1p84), small = (U64)(F64{} + 0x1p52);
  return ((F64)(high | large) - excess) + (F64)((low & 0xFFFFFFFFu) | small);
}
RHOVAE_INLINE F64 to_real(U64 v) {
  return join_parts(v >> 32, v, 0x1p84 + 0x1p52);
}
RHOVAE_INLINE F64 to_real(I64 v) {
  return join_parts(((U64)v >> 32) ^ 0x80000000u, (U64)v, 0x1p84 + 0x1p63 + 0x1p52);
}
#endif
RHOVAE_INLINE F32 small_to_real(I32 v) {
  return to_real(v);
}
RHOVAE_INLINE F64 small_to_real(I64 v) {  // |v| < 2^51
  const F64 shift = F64{} + 0x1.8p52;
  return (F64)((I64)shift + v) - shift;
}

RHOVAE_INLINE U64 multiply_low_halves(U64 a, U64 b) {
#if RHOVAE_X86_64_LEVEL == 4
  return (U64)_mm512_mul_epu32((__m512i)a, (__m512i)b);
#elif RHOVAE_X86_64_LEVEL == 3
  return (U64)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
  return (U64)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
  return (a & 0xFFFFFFFFu) * (b & 0xFFFFFFFFu);
#endif
}

// Low halves of `even` and `odd`, side by side.
RHOVAE_INLINE U32 join_words(U64 even, U64 odd) {
#if RHOVAE_X86_64_LEVEL == 4
  return (U32)_mm512_mask_shuffle_epi32((__m512i)even, 0xAAAA, (__m512i)odd, _MM_PERM_CCAA);
#else
  return (U32)((even & 0xFFFFFFFFu) | (odd << 32));
#endif
}
// Two words of 32 bits to one of 64, lane by lane.
RHOVAE_INLINE U64 join_halves(U64 high, U64 low) {
  return (high << 32) | (low & 0xFFFFFFFFu);
}

}  // namespace rhovae::RHOVAE_ISA
