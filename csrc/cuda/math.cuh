#pragma once

// The functions that the core asks of an arithmetic type, and the normals' own, faster ones. The exponential
// and the logarithm come with what lies beyond their linear terms: near 0, and near 1, by a series.

#include "../core/normal.h"
#include "../core/parameters.h"
#include "platform.cuh"

namespace rhovae::cuda {

template <class V>
struct Functions;

template <>
struct Functions<float> {
  using Real = float;
  // NaN stays NaN.
  static __device__ __forceinline__ float at_most(float v, float bound) { return v > bound ? bound : v; }
  static __device__ __forceinline__ float at_least(float v, float bound) { return v < bound ? bound : v; }
  static __device__ __forceinline__ float exp(float v) { return ::expf(v); }
  static __device__ __forceinline__ Exponential<float> exp_of(float x) {
    const float value = ::expf(x);
    // e^x - 1 - x by its series, to x^9: 3e-8 of it at |x| = 0.7.
    float series = 1.0f / 362880;
    series = __fmaf_rn(series, x, 1.0f / 40320);
    series = __fmaf_rn(series, x, 1.0f / 5040);
    series = __fmaf_rn(series, x, 1.0f / 720);
    series = __fmaf_rn(series, x, 1.0f / 120);
    series = __fmaf_rn(series, x, 1.0f / 24);
    series = __fmaf_rn(series, x, 1.0f / 6);
    series = __fmaf_rn(series, x, 0.5f);
    const float excess = x * x * series;
    const bool near_zero = ::fabsf(x) < 0.7f;
    const float less_one = near_zero ? x + excess : value - 1.0f;
    return {value, less_one, near_zero ? excess : less_one - at_most(x, 128.0f)};
  }
  static __device__ __forceinline__ Logarithm<float> log_of(float v, float less_one) {
    // Elsewhere to 2^-22 relative, but absolute near 1.
    const float value = 0.693147180559945309f * fast_log2_of_any(v);
    // log(1 + m) = 2 artanh(t) = 2t + t^3 (2/3 + 2/5 t^2 + ...), t = m/(2 + m); |t| < 0.23.
    const float t = __fdividef(less_one, 2.0f + less_one), square = t * t;
    float series = 2.0f / 11;
    series = __fmaf_rn(series, square, 2.0f / 9);
    series = __fmaf_rn(series, square, 2.0f / 7);
    series = __fmaf_rn(series, square, 2.0f / 5);
    series = __fmaf_rn(series, square, 2.0f / 3);
    const float beyond_linear = t * square * series;
    const bool near_one = ::fabsf(less_one) < 0.375f;
    return {near_one ? __fmaf_rn(2.0f, t, beyond_linear) : value,
            near_one ? __fmaf_rn(less_one, t, -beyond_linear) : less_one - value};
  }
  static __device__ __forceinline__ float sqrt(float v) { return fast_sqrt(v); }
  static __device__ __forceinline__ float abs(float v) { return ::fabsf(v); }
  static __device__ __forceinline__ float copysign(float v, float sign) { return ::copysignf(v, sign); }
  static __device__ __forceinline__ float invalid_unless_positive(float v) {
    return v > 0.0f ? v : float_of(0x7FC00000u);
  }
};

template <>
struct Functions<double> {
  using Real = double;
  // NaN stays NaN.
  static __device__ __forceinline__ double at_most(double v, double bound) { return v > bound ? bound : v; }
  static __device__ __forceinline__ double at_least(double v, double bound) { return v < bound ? bound : v; }
  static __device__ __forceinline__ double exp(double v) { return ::exp(v); }
  static __device__ __forceinline__ Exponential<double> exp_of(double x) {
    const double less_one = ::expm1(x);
    return {::exp(x), less_one, less_one - at_most(x, 1024.0)};
  }
  static __device__ __forceinline__ Logarithm<double> log_of(double v, double less_one) {
    const double value = ::fabs(less_one) < 0.5 ? ::log1p(less_one) : ::log(v);
    return {value, less_one - value};
  }
  static __device__ __forceinline__ double sqrt(double v) { return ::sqrt(v); }
  static __device__ __forceinline__ double abs(double v) { return ::fabs(v); }
  static __device__ __forceinline__ double copysign(double v, double sign) { return ::copysign(v, sign); }
  static __device__ __forceinline__ double invalid_unless_positive(double v) {
    return v > 0.0 ? v : double_of(0, 0x7FF80000u);
  }
};

template <class V>
struct NormalFunctions;

template <>
struct NormalFunctions<float> {
  static __device__ __forceinline__ float minus_two_log_uniform(uint32_t word) {
    const float u = __fmaf_rn(static_cast<float>(word), 0x1p-32f, 0x1p-33f);
    float out = -2.0f * 0.693147180559945309f * fast_log2(u);
    // Next to 1 the fast logarithm is only good to 2^-22 absolute, which the square root makes visible. There
    // -2 ln u = 2 (1 - u) + O((1 - u)^2), which is exact but for what is left out.
    if (u > 1.0f - 3e-4f) out = __fmaf_rn(-2.0f, u, 2.0f);
    return out;
  }
  // As a signed number the word lies in [-1/2, 1/2) turns: the same angle, where the fast functions are best.
  static __device__ __forceinline__ void sincos_uniform(uint32_t word, float& sine, float& cosine) {
    constexpr float kRadians = 6.283185307179586477f * 0x1p-32f;
    const float angle = __fmaf_rn(static_cast<float>(static_cast<int32_t>(word)), kRadians, 0.5f * kRadians);
    sine = fast_sine(angle);
    cosine = fast_cosine(angle);
  }
  static __device__ __forceinline__ float sqrt(float v) { return fast_sqrt(v); }
};

template <>
struct NormalFunctions<double> {
  static __device__ __forceinline__ double uniform(uint64_t word) {
    return __fma_rn(static_cast<double>(word), 0x1p-64, 0x1p-65);
  }
  static __device__ __forceinline__ double minus_two_log_uniform(uint64_t word) {
    return -2.0 * ::log(uniform(word));
  }
  static __device__ __forceinline__ void sincos_uniform(uint64_t word, double& sine, double& cosine) {
    sine_cosine_of_turns(uniform(word), sine, cosine);
  }
  static __device__ __forceinline__ double sqrt(double v) { return ::sqrt(v); }
};

template <class V>
__device__ __forceinline__ Scale<V> scale_of(bool logits, V given) {
  return logits ? scale_from_log<Functions<V>>(given) : scale_from_value<Functions<V>>(given);
}
template <class V>
__device__ __forceinline__ Correlation<V> correlation_of(bool logits, V given) {
  return logits ? correlation_from_logit<Functions<V>>(given) : correlation_from_value<Functions<V>>(given);
}

}  // namespace rhovae::cuda
