#pragma once

// bfloat16 and float16 to float32 and back, a run at a time, rounded to nearest even; bits in uint16_t.

#include "simd.h"

namespace rhovae::RHOVAE_ISA {

RHOVAE_INLINE uint32_t bits_of(float v) {
  uint32_t u;
  std::memcpy(&u, &v, 4);
  return u;
}
RHOVAE_INLINE float float_of(uint32_t u) {
  float v;
  std::memcpy(&v, &u, 4);
  return v;
}

struct BFloat16 {
  static RHOVAE_INLINE float widen(uint16_t h) { return float_of(static_cast<uint32_t>(h) << 16); }
  static RHOVAE_INLINE uint16_t narrow(float v) {
    const uint32_t u = bits_of(v);
    if ((u & 0x7FFFFFFFu) > 0x7F800000u) return static_cast<uint16_t>(u >> 16 | 0x40u);  // NaN stays NaN
    return static_cast<uint16_t>((u + 0x7FFFu + (u >> 16 & 1u)) >> 16);
  }
};

struct Float16 {
  static RHOVAE_INLINE float widen(uint16_t h) {
    const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
    const uint32_t rest = static_cast<uint32_t>(h & 0x7FFFu) << 13;
    if (rest >= 0x0F800000u) return float_of(sign | 0x70000000u | rest);  // infinity, NaN
    // Shifting the exponent by a multiplication puts subnormals right too.
    return float_of(sign | bits_of(float_of(rest) * 0x1p112f));
  }
  static RHOVAE_INLINE uint16_t narrow(float v) {
    const uint32_t u = bits_of(v);
    const uint16_t sign = static_cast<uint16_t>(u >> 16 & 0x8000u);
    const uint32_t size = u & 0x7FFFFFFFu;
    if (size > 0x7F800000u) return sign | 0x7E00u;
    if (size >= 0x47800000u) return sign | 0x7C00u;
    if (size < 0x38800000u) {  // subnormal: adding 1/2 aligns its last bit with a float's, and rounds
      const float aligned = float_of(size) + 0.5f;
      return sign | static_cast<uint16_t>(bits_of(aligned) - 0x3F000000u);
    }
    return sign | static_cast<uint16_t>((size - 0x38000000u + 0xFFFu + (size >> 13 & 1u)) >> 13);
  }
};

template <class Half>
RHOVAE_INLINE void widen(const uint16_t* from, float* to, int64_t count) {
  int64_t k = 0;
#if RHOVAE_X86_64_LEVEL == 4
  for (; k + 16 <= count; k += 16) {
    const __m256i h = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + k));
    if constexpr (std::is_same_v<Half, Float16>)
      store<float>(to + k, _mm512_cvtph_ps(h));
    else
      store<float>(to + k, (F32)_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
  }
#elif RHOVAE_X86_64_LEVEL == 3
  for (; k + 8 <= count; k += 8) {
    const __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + k));
    if constexpr (std::is_same_v<Half, Float16>)
      store<float>(to + k, _mm256_cvtph_ps(h));
    else
      store<float>(to + k, (F32)_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
  }
#endif
  for (; k < count; ++k) to[k] = Half::widen(from[k]);
}

template <class Half>
RHOVAE_INLINE void narrow(const float* from, uint16_t* to, int64_t count) {
  int64_t k = 0;
#if RHOVAE_X86_64_LEVEL == 4
  for (; k + 16 <= count; k += 16) {
    __m256i h;
    const F32 v = load(from + k);
    if constexpr (std::is_same_v<Half, Float16>) {
      h = _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
    } else {
      const U32 u = (U32)v;
      const U32 rounded = (u + 0x7FFFu + (u >> 16 & 1u)) >> 16;
      h = _mm512_cvtepi32_epi16((__m512i)(v == v ? rounded : (u >> 16 | 0x40u)));
    }
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + k), h);
  }
#elif RHOVAE_X86_64_LEVEL == 3
  if constexpr (std::is_same_v<Half, Float16>) {
    for (; k + 8 <= count; k += 8) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + k),
                       _mm256_cvtps_ph(load(from + k), _MM_FROUND_TO_NEAREST_INT));
    }
  }
#endif
  for (; k < count; ++k) to[k] = Half::narrow(from[k]);
}

}  // namespace rhovae::RHOVAE_ISA
