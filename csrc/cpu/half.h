#pragma once

// bfloat16 and float16 to float32 and back, rounded to nearest even.

#include "simd.h"

namespace rhovae::RHOVAE_ISA {

struct BFloat16 {
  static RHOVAE_INLINE F32 widen(HalfU16 h) {
#if RHOVAE_X86_64_LEVEL == 4
    // Into the upper half of every lane at once.
    const __m512i places = (__m512i)(iota<float>() << 16);
    return (F32)_mm512_maskz_permutexvar_epi16(0xAAAAAAAAu, places, _mm512_castsi256_si512((__m256i)h));
#else
    return (F32)(__builtin_convertvector(h, U32) << 16);
#endif
  }
  static RHOVAE_INLINE HalfU16 narrow(F32 v) {
    const U32 u = (U32)v;
    const U32 rounded = u + 0x7FFFu + (u >> 16 & 1u);
    return __builtin_convertvector((v == v ? rounded : (u | 0x400000u)) >> 16, HalfU16);  // NaN stays NaN
  }
};

#if RHOVAE_X86_64_LEVEL == 4
// Not part of x86-64-v4, though most processors that have this level have it; it takes numbers below
// float32's normal ones for zero.
inline const bool kHasBFloat16Instruction = __builtin_cpu_supports("avx512bf16");

struct BFloat16ByInstruction : BFloat16 {
  static RHOVAE_INLINE HalfU16 narrow(F32 v) {
    HalfU16 h;
    __asm__("vcvtneps2bf16 %1, %0" : "=v"(h) : "v"(v));
    return h;
  }
};
#endif

struct Float16 {
#if RHOVAE_X86_64_LEVEL == 4
  static RHOVAE_INLINE F32 widen(HalfU16 h) { return _mm512_cvtph_ps((__m256i)h); }
  static RHOVAE_INLINE HalfU16 narrow(F32 v) {
    return (HalfU16)_mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
  }
#elif RHOVAE_X86_64_LEVEL == 3
  static RHOVAE_INLINE F32 widen(HalfU16 h) { return _mm256_cvtph_ps((__m128i)h); }
  static RHOVAE_INLINE HalfU16 narrow(F32 v) {
    return (HalfU16)_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
  }
#else
  static RHOVAE_INLINE F32 widen(HalfU16 h) {
    const U32 u = __builtin_convertvector(h, U32);
    const U32 sign = (u & 0x8000u) << 16, rest = (u & 0x7FFFu) << 13;
    // Shifting the exponent by a multiplication puts subnormals right too; infinity and NaN are not shifted.
    const U32 number = (U32)((F32)rest * 0x1p112f);
    return (F32)(sign | (rest >= 0x0F800000u ? (rest | 0x70000000u) : number));
  }
  static RHOVAE_INLINE HalfU16 narrow(F32 v) {
    const U32 u = (U32)v, size = u & 0x7FFFFFFFu;
    // Subnormal: adding 1/2 aligns its last bit with a float's, and rounds.
    const U32 subnormal = (U32)((F32)size + 0.5f) - 0x3F000000u;
    const U32 normal = (size - 0x38000000u + 0xFFFu + (size >> 13 & 1u)) >> 13;
    U32 h = size < 0x38800000u ? subnormal : normal;
    h = size >= 0x47800000u ? U32{} + 0x7C00u : h;
    h = size > 0x7F800000u ? U32{} + 0x7E00u : h;
    return __builtin_convertvector(h | (u >> 16 & 0x8000u), HalfU16);
  }
#endif
};

}  // namespace rhovae::RHOVAE_ISA
