#pragma once

// x_k = m_k x_{k-1} + b_k over the lanes of a register: log2(lanes) rounds of shift, multiply and add, then
// the carry from the register before. Upward (towards later steps) for x and its tangent, downward for the
// adjoint.

#include "../core/ar1.h"
#include "simd.h"

namespace rhovae::RHOVAE_ISA {

// One multiplier for all steps: its powers are worked out once a row.
template <class C>
struct UniformScan {
  V<C> power[4];  // m, m^2, m^4, m^8
  V<C> ramp;      // m, m^2, m^3, ...

  explicit RHOVAE_INLINE UniformScan(C m) {
    power[0] = splat<C>(m);
    for (int i = 1; i < 4; ++i) power[i] = power[i - 1] * power[i - 1];
    C run = 1;
    for (int lane = 0; lane < Lanes<C>::n; ++lane) ramp[lane] = run *= m;
  }

  // previous: the register before, whose last lane is the carry.
  RHOVAE_INLINE V<C> up(V<C> b, V<C> previous) const {
    constexpr int n = Lanes<C>::n;
    const V<C> zero{};
    b = advance(power[0], shift_up<C, 1>(zero, b), b);
    if constexpr (n > 2) b = advance(power[1], shift_up<C, 2>(zero, b), b);
    if constexpr (n > 4) b = advance(power[2], shift_up<C, 4>(zero, b), b);
    if constexpr (n > 8) b = advance(power[3], shift_up<C, 8>(zero, b), b);
    return advance(ramp, broadcast_last<C>(previous), b);
  }
};

template <class C>
RHOVAE_INLINE V<C> scan_up(V<C> m, V<C> b, V<C> previous) {
  constexpr int n = Lanes<C>::n;
  const V<C> zero{}, one = splat<C>(1);
  b = advance(m, shift_up<C, 1>(zero, b), b), m *= shift_up<C, 1>(one, m);
  if constexpr (n > 2) b = advance(m, shift_up<C, 2>(zero, b), b), m *= shift_up<C, 2>(one, m);
  if constexpr (n > 4) b = advance(m, shift_up<C, 4>(zero, b), b), m *= shift_up<C, 4>(one, m);
  if constexpr (n > 8) b = advance(m, shift_up<C, 8>(zero, b), b), m *= shift_up<C, 8>(one, m);
  return advance(m, broadcast_last<C>(previous), b);
}

// x_k = m_k x_{k+1} + b_k; next: the register after, whose first lane is the carry.
template <class C>
RHOVAE_INLINE V<C> scan_down(V<C> m, V<C> b, V<C> next) {
  constexpr int n = Lanes<C>::n;
  const V<C> zero{}, one = splat<C>(1);
  b = advance(m, shift_down<C, 1>(b, zero), b), m *= shift_down<C, 1>(m, one);
  if constexpr (n > 2) b = advance(m, shift_down<C, 2>(b, zero), b), m *= shift_down<C, 2>(m, one);
  if constexpr (n > 4) b = advance(m, shift_down<C, 4>(b, zero), b), m *= shift_down<C, 4>(m, one);
  if constexpr (n > 8) b = advance(m, shift_down<C, 8>(b, zero), b), m *= shift_down<C, 8>(m, one);
  return advance(m, broadcast_first<C>(next), b);
}

}  // namespace rhovae::RHOVAE_ISA
