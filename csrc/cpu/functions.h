#pragma once

// exp, log with what lies beyond their linear terms, and the two functions that Box-Muller takes of a random
// word, over lanes. Each reduces its argument exactly and sums a Taylor series short enough that the first
// term left out is below half a unit in the last place.

#include <limits>

#include "../core/parameters.h"
#include "simd.h"

namespace rhovae::RHOVAE_ISA {

template <class C>
struct Functions {
  using Real = C;
  using V = typename Lanes<C>::V;
  using I = typename Lanes<C>::I;
  using U = typename Lanes<C>::U;
  static constexpr bool kSingle = sizeof(C) == 4;
  static constexpr int kBits = 8 * sizeof(C);
  static constexpr int kMantissa = kSingle ? 23 : 52;
  static constexpr C kLog2 = static_cast<C>(0.693147180559945309417232121458);

  static RHOVAE_INLINE V constant(double value) { return splat<C>(static_cast<C>(value)); }
  static RHOVAE_INLINE V sqrt(V v) { return sqrt_lanes(v); }
  static RHOVAE_INLINE U sign_bit() { return U{} + (static_cast<decltype(U{}[0] + 0)>(1) << (kBits - 1)); }
  static RHOVAE_INLINE V abs(V v) { return (V)((U)v & ~sign_bit()); }
  // NaN stays: of a NaN and a number the second is taken.
  static RHOVAE_INLINE V at_most(V v, double bound) { return least_lanes(constant(bound), v); }
  static RHOVAE_INLINE V at_least(V v, double bound) { return greatest_lanes(constant(bound), v); }
  static RHOVAE_INLINE V copysign(V size, V sign) {
    return (V)(((U)size & ~sign_bit()) | ((U)sign & sign_bit()));
  }
  static RHOVAE_INLINE V invalid_unless_positive(V v) {
    return v > 0 ? v : constant(std::numeric_limits<double>::quiet_NaN());
  }

  // sum_{i < count} coefficient(i) x^i, by Horner; recursive, so that every coefficient is a constant.
  template <class Series, int i = 0>
  static RHOVAE_INLINE V series(V x) {
    constexpr double coefficient = Series::coefficient(i);
    if constexpr (i + 1 == Series::count)
      return constant(coefficient);
    else
      return series<Series, i + 1>(x) * x + constant(coefficient);
  }
  static constexpr double factorial(int n) { return n < 2 ? 1.0 : n * factorial(n - 1); }

  // exp(x) = 2^n exp(r), |r| <= log(2)/2, and exp(r) = 1 + r + r^2 (1/2 + r/6 + ...).
  struct ExpSeries {
    static constexpr int count = kSingle ? 6 : 12;
    static constexpr double coefficient(int i) { return 1.0 / factorial(i + 2); }
  };
  static RHOVAE_INLINE Exponential<V> exp_of(V x) {
    x = at_most(x, kSingle ? 89.0 : 710.0);
    constexpr double lowest = kSingle ? -104.0 : -746.0;
    const V bounded = at_least(x, lowest);
    // Adding 1.5 * 2^mantissa rounds to an integer and leaves it in the low bits.
    const V rounder = constant(kSingle ? 12582912.0 : 6755399441055744.0);
    const V shifted = bounded * constant(1.44269504088896340735992468100) + rounder;
    const V n = shifted - rounder;
    const I exponent = (I)shifted - (I)rounder;
    // log 2 in two parts: the first has few enough bits for n times it to be exact.
    const V r = (bounded - n * constant(kSingle ? 0.693359375 : 6.93147180369123816490e-01)) -
                n * constant(kSingle ? -2.12194440054690582770e-4 : 1.90821492927058770002e-10);
    const V beyond_linear = r * r * series<ExpSeries>(r), reduced = r + beyond_linear;
    const V value = times_power_of_two(1 + reduced, n, exponent);
    // As far as it matters that 1 is taken away; the square of what is larger is infinite in any case.
    const V some = at_least(at_most(n, 100), -100);
    const V power = power_of_two((I)(some + rounder) - (I)rounder);
    const V less_one = power * reduced + (power - 1);
    return {value, less_one, n == 0 ? beyond_linear : less_one - x};
  }
  static RHOVAE_INLINE V exp(V x) { return exp_of(x).value; }
  // v 2^n, for n as a number and as an integer, also where that is subnormal or past the largest number.
  static RHOVAE_INLINE V times_power_of_two(V v, [[maybe_unused]] V n, [[maybe_unused]] I exponent) {
#if RHOVAE_X86_64_LEVEL == 4
    return scale_lanes(v, n);
#else
    const I half = exponent >> 1;
    return v * power_of_two(half) * power_of_two(exponent - half);
#endif
  }
  static RHOVAE_INLINE V power_of_two(I n) { return (V)((n + (kSingle ? 127 : 1023)) << kMantissa); }

  // log(1 + f) = 2 artanh(t) = 2t + t^3 (2/3 + 2/5 t^2 + ...), t = f/(2 + f); |t| <= 0.172 for 1 + f in
  // [sqrt 1/2, sqrt 2].
  struct ArtanhSeries {
    static constexpr int count = kSingle ? 4 : 9;
    static constexpr double coefficient(int i) { return 2.0 / (2 * i + 3); }
  };
  // v = 2^exponent (1 + f) with 1 + f in [sqrt 1/2, sqrt 2], for a normal positive v.
  static RHOVAE_INLINE void split(V v, V& f, I& exponent) {
    const I above_sqrt_half = (I)v - (I)constant(0.70710678118654752440);
    if constexpr (kSingle) {
      exponent = above_sqrt_half >> kMantissa;
    } else {  // few processors shift 64 bits with their sign: made positive first
      constexpr int64_t bias = 1023;
      exponent = (I)((U)(above_sqrt_half + (bias << kMantissa)) >> kMantissa) - bias;
    }
    f = (V)((I)v - (exponent << kMantissa)) - 1;
  }

  static RHOVAE_INLINE Logarithm<V> log_of(V v, V less_one) {
    const V smallest = constant(kSingle ? 1.17549435082228750797e-38 : 2.22507385850720138309e-308);
    const auto subnormal = v < smallest;
    const V scale_up = constant(kSingle ? 33554432.0 : 18014398509481984.0);  // 2^25, 2^54
    V f;
    I exponent;
    split(subnormal ? v * scale_up : v, f, exponent);
    exponent -= subnormal ? I{} + (kSingle ? 25 : 54) : I{};
    const auto near_one = exponent == 0;
    f = near_one ? less_one : f;
    const V t = f / (2 + f), beyond_linear = t * (t * t) * series<ArtanhSeries>(t * t);
    const V normal = 2 * t + (beyond_linear + small_to_real(exponent) * kLog2);
    const V infinity = constant(std::numeric_limits<double>::infinity());
    const V at_edge = v == 0 ? -infinity : (v > 0 ? v : constant(std::numeric_limits<double>::quiet_NaN()));
    const V value = ((v > 0) & (v < infinity)) ? normal : at_edge;
    return {value, near_one ? f * t - beyond_linear : less_one - value};
  }

  struct MinusTwoArtanhSeries {
    static constexpr int count = ArtanhSeries::count + 1;
    static constexpr double coefficient(int i) { return -4.0 / (2 * i + 1); }
  };
  // -2 ln u, u = (w + 1/2) 2^-bits. Near u = 1, where a rounded u would lose what matters, f = u - 1 comes
  // exactly from the word read as a signed integer.
  static RHOVAE_INLINE V minus_two_log_uniform(U w) {
    const C unit = kSingle ? static_cast<C>(0x1p-32) : static_cast<C>(0x1p-64);
    V f;
    I exponent;
    split(to_real(w) * unit + unit / 2, f, exponent);
    f = exponent == 0 ? to_real((I)w) * unit + unit / 2 : f;
    const V t = f / (2 + f);
    return t * series<MinusTwoArtanhSeries>(t * t) + small_to_real(exponent) * (-2 * kLog2);
  }

  // sin and cos of 2 pi u: the nearest quarter turn from the word's top bits, the rest, within an eighth, as
  // a series.
  struct SinSeries {
    static constexpr int count = kSingle ? 5 : 9;
    static constexpr double coefficient(int i) { return (i % 2 ? -1.0 : 1.0) / factorial(2 * i + 1); }
  };
  struct CosSeries {
    static constexpr int count = kSingle ? 5 : 9;
    static constexpr double coefficient(int i) { return (i % 2 ? -1.0 : 1.0) / factorial(2 * i); }
  };
  static RHOVAE_INLINE void sincos_uniform(U w, V& sine, V& cosine) {
    using Bit = decltype(U{}[0] + 0);
    const U quarter = w + (static_cast<Bit>(1) << (kBits - 3));  // its top two bits: the nearest quarter turn
    const I rest = (I)(w << 2);                                  // four times the distance to it, signed
    const C quarter_unit = static_cast<C>(6.283185307179586476925286766559 * (kSingle ? 0x1p-34 : 0x1p-66));
    const V angle = to_real(rest) * quarter_unit + 2 * quarter_unit;
    const V square = angle * angle;
    const V s = angle * series<SinSeries>(square);
    const V c = series<CosSeries>(square);
    const Bit one_quarter = static_cast<Bit>(1) << (kBits - 2);
    const auto odd = (quarter & one_quarter) != 0;
    sine = (V)((U)(odd ? c : s) ^ (quarter & sign_bit()));
    cosine = (V)((U)(odd ? s : c) ^ ((quarter + one_quarter) & sign_bit()));
  }
};

}  // namespace rhovae::RHOVAE_ISA
