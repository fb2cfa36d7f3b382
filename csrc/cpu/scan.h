#pragma once

// x_k = m_k x_{k-1} + b_k over the lanes of a register: log2(lanes) rounds of shift, multiply and add, then
// the carry from the register before. Upward (towards later steps) for x and its tangent, downward for the
// adjoint. `carry` holds the last x of the register before in every lane and is moved on by one multiply and
// add of its own, the same that gives x's last lane: so registers wait for no shuffle of one another.

#include "../core/ar1.h"
#include "simd.h"

namespace rhovae::RHOVAE_ISA {

// One multiplier for all steps: its powers are worked out once a row.
template <class C>
struct UniformScan {
  V<C> power[4];  // m, m^2, m^4, m^8
  V<C> ramp;      // m, m^2, m^3, ...
  V<C> decay;     // the last of them

  explicit RHOVAE_INLINE UniformScan(C m) {
    constexpr int n = Lanes<C>::n;
    const V<C> one = splat<C>(1);
    power[0] = ramp = splat<C>(m);
    for (int i = 1; i < 4; ++i) power[i] = power[i - 1] * power[i - 1];
    ramp *= shift_up<C, 1>(one, ramp);
    if constexpr (n > 2) ramp *= shift_up<C, 2>(one, ramp);
    if constexpr (n > 4) ramp *= shift_up<C, 4>(one, ramp);
    if constexpr (n > 8) ramp *= shift_up<C, 8>(one, ramp);
    decay = broadcast_last<C>(ramp);
  }

  RHOVAE_INLINE V<C> up(V<C> b, V<C>& carry) const {
    constexpr int n = Lanes<C>::n;
    const V<C> zero{};
    b = advance(power[0], shift_up<C, 1>(zero, b), b);
    if constexpr (n > 2) b = advance(power[1], shift_up<C, 2>(zero, b), b);
    if constexpr (n > 4) b = advance(power[2], shift_up<C, 4>(zero, b), b);
    if constexpr (n > 8) b = advance(power[3], shift_up<C, 8>(zero, b), b);
    const V<C> before = carry;
    carry = advance(decay, before, broadcast_last<C>(b));
    return advance(ramp, before, b);
  }
};

template <class C>
RHOVAE_INLINE V<C> scan_up(V<C> m, V<C> b, V<C>& carry) {
  constexpr int n = Lanes<C>::n;
  const V<C> zero{}, one = splat<C>(1);
  b = advance(m, shift_up<C, 1>(zero, b), b), m *= shift_up<C, 1>(one, m);
  if constexpr (n > 2) b = advance(m, shift_up<C, 2>(zero, b), b), m *= shift_up<C, 2>(one, m);
  if constexpr (n > 4) b = advance(m, shift_up<C, 4>(zero, b), b), m *= shift_up<C, 4>(one, m);
  if constexpr (n > 8) b = advance(m, shift_up<C, 8>(zero, b), b), m *= shift_up<C, 8>(one, m);
  const V<C> before = carry;
  carry = advance(broadcast_last<C>(m), before, broadcast_last<C>(b));
  return advance(m, before, b);
}

// x_k = m_k x_{k+1} + b_k; carry: the first x of the register after, in every lane.
template <class C>
RHOVAE_INLINE V<C> scan_down(V<C> m, V<C> b, V<C>& carry) {
  constexpr int n = Lanes<C>::n;
  const V<C> zero{}, one = splat<C>(1);
  b = advance(m, shift_down<C, 1>(b, zero), b), m *= shift_down<C, 1>(m, one);
  if constexpr (n > 2) b = advance(m, shift_down<C, 2>(b, zero), b), m *= shift_down<C, 2>(m, one);
  if constexpr (n > 4) b = advance(m, shift_down<C, 4>(b, zero), b), m *= shift_down<C, 4>(m, one);
  if constexpr (n > 8) b = advance(m, shift_down<C, 8>(b, zero), b), m *= shift_down<C, 8>(m, one);
  const V<C> after = carry;
  carry = advance(broadcast_first<C>(m), after, broadcast_first<C>(b));
  return advance(m, after, b);
}

}  // namespace rhovae::RHOVAE_ISA
