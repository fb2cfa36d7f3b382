#pragma once

// x_k = m_k x_{k-1} + b_k over the lanes of a register: log2(lanes) rounds of shift, multiply and add, then
// the carry from the register before. Upward (towards later steps) for x and its tangent, downward for the
// adjoint. The carry is moved on by a multiply and add of its own: so registers wait for no shuffle of one
// another.

#include "../core/ar1.h"
#include "../core/parameters.h"
#include "simd.h"

namespace rhovae::RHOVAE_ISA {

// The last x of the register before.
template <class C>
struct Carry {
  V<C> lanes;  // in every lane

  explicit RHOVAE_INLINE Carry(double x) : lanes(splat<C>(static_cast<C>(x))) {}
  RHOVAE_INLINE double value() const { return static_cast<double>(lanes[0]); }
  RHOVAE_INLINE void advance_by(V<C> decay, V<C> last) { lanes = advance(decay, lanes, last); }
};
// The same where some rho is so near to 1 that rounding in float32, of up to 3e-8 a step, would make a long
// row forget too much or nothing: kept in float64, as is what a register multiplies it by.
template <class C>
struct LongCarry {
  double exact;
  V<C> lanes;

  explicit RHOVAE_INLINE LongCarry(double x) : exact(x), lanes(splat<C>(static_cast<C>(x))) {}
  RHOVAE_INLINE double value() const { return exact; }
  RHOVAE_INLINE void advance_by(double decay, V<C> last) {
    exact = advance(decay, exact, static_cast<double>(last[0]));
    lanes = splat<C>(static_cast<C>(exact));
  }
};
template <class C, bool remembers>
using CarryOf = std::conditional_t<remembers, LongCarry<C>, Carry<C>>;

template <class C>
RHOVAE_INLINE double exact_gap(C m, C c) {
  return gap_of(std::fabs(static_cast<double>(m)), static_cast<double>(c));
}

// One multiplier for all steps: its powers are worked out once a row.
template <class C>
struct UniformScan {
  V<C> power[4];  // m, m^2, m^4, m^8
  V<C> ramp;      // m, m^2, m^3, ...
  V<C> decay;     // the last of them
  double exact_decay;

  RHOVAE_INLINE UniformScan(C m, C c) : exact_decay(1.0 - exact_gap(m, c)) {
    constexpr int n = Lanes<C>::n;
    const V<C> one = splat<C>(1);
    power[0] = ramp = splat<C>(m);
    for (int i = 1; i < 4; ++i) power[i] = power[i - 1] * power[i - 1];
    ramp *= shift_up<C, 1>(one, ramp);
    if constexpr (n > 2) ramp *= shift_up<C, 2>(one, ramp);
    if constexpr (n > 4) ramp *= shift_up<C, 4>(one, ramp);
    if constexpr (n > 8) ramp *= shift_up<C, 8>(one, ramp);
    decay = broadcast_last<C>(ramp);
    for (int i = 1; i < n; i *= 2) exact_decay *= exact_decay;  // an even power: the sign is gone
  }

  template <class Carry>
  RHOVAE_INLINE V<C> up(V<C> b, Carry& carry) const {
    return join(within(b), carry);
  }

  // The register as if nothing came before it; then what came before, joined to it.
  RHOVAE_INLINE V<C> within(V<C> b) const {
    constexpr int n = Lanes<C>::n;
    const V<C> zero{};
    b = advance(power[0], shift_up<C, 1>(zero, b), b);
    if constexpr (n > 2) b = advance(power[1], shift_up<C, 2>(zero, b), b);
    if constexpr (n > 4) b = advance(power[2], shift_up<C, 4>(zero, b), b);
    if constexpr (n > 8) b = advance(power[3], shift_up<C, 8>(zero, b), b);
    return b;
  }
  template <class Carry>
  RHOVAE_INLINE V<C> join(V<C> b, Carry& carry) const {
    const V<C> before = carry.lanes;
    if constexpr (std::is_same_v<Carry, LongCarry<C>>)
      carry.advance_by(exact_decay, broadcast_last<C>(b));
    else
      carry.advance_by(decay, broadcast_last<C>(b));
    return advance(ramp, before, b);
  }
};

// The product of a register's multipliers.
template <class C>
RHOVAE_INLINE double exact_product(V<C> m, V<C> c) {
  double product = 1;
  for (int lane = 0; lane < Lanes<C>::n; ++lane) {
    product *= std::copysign(1.0 - exact_gap(m[lane], c[lane]), static_cast<double>(m[lane]));
  }
  return product;
}

// m and c = sqrt(1 - m^2), from which a LongCarry has m exactly.
template <class C, class Carry>
RHOVAE_INLINE V<C> scan_up(V<C> m, [[maybe_unused]] V<C> c, V<C> b, Carry& carry) {
  constexpr int n = Lanes<C>::n;
  [[maybe_unused]] const V<C> each = m;
  const V<C> zero{}, one = splat<C>(1);
  b = advance(m, shift_up<C, 1>(zero, b), b), m *= shift_up<C, 1>(one, m);
  if constexpr (n > 2) b = advance(m, shift_up<C, 2>(zero, b), b), m *= shift_up<C, 2>(one, m);
  if constexpr (n > 4) b = advance(m, shift_up<C, 4>(zero, b), b), m *= shift_up<C, 4>(one, m);
  if constexpr (n > 8) b = advance(m, shift_up<C, 8>(zero, b), b), m *= shift_up<C, 8>(one, m);
  const V<C> before = carry.lanes;
  if constexpr (std::is_same_v<Carry, LongCarry<C>>)
    carry.advance_by(exact_product<C>(each, c), broadcast_last<C>(b));
  else
    carry.advance_by(broadcast_last<C>(m), broadcast_last<C>(b));
  return advance(m, before, b);
}

// x_k = m_k x_{k+1} + b_k; carry: the first x of the register after.
template <class C, class Carry>
RHOVAE_INLINE V<C> scan_down(V<C> m, [[maybe_unused]] V<C> c, V<C> b, Carry& carry) {
  constexpr int n = Lanes<C>::n;
  [[maybe_unused]] const V<C> each = m;
  const V<C> zero{}, one = splat<C>(1);
  b = advance(m, shift_down<C, 1>(b, zero), b), m *= shift_down<C, 1>(m, one);
  if constexpr (n > 2) b = advance(m, shift_down<C, 2>(b, zero), b), m *= shift_down<C, 2>(m, one);
  if constexpr (n > 4) b = advance(m, shift_down<C, 4>(b, zero), b), m *= shift_down<C, 4>(m, one);
  if constexpr (n > 8) b = advance(m, shift_down<C, 8>(b, zero), b), m *= shift_down<C, 8>(m, one);
  const V<C> after = carry.lanes;
  if constexpr (std::is_same_v<Carry, LongCarry<C>>)
    carry.advance_by(exact_product<C>(each, c), broadcast_first<C>(b));
  else
    carry.advance_by(broadcast_first<C>(m), broadcast_first<C>(b));
  return advance(m, after, b);
}

}  // namespace rhovae::RHOVAE_ISA
