#pragma once

// s, rho and what follows from them, ready for the chain: for a group of rows with a value each, or step by
// step.

#include "../core/parameters.h"
#include "functions.h"
#include "kernels.h"
#include "runs.h"

namespace rhovae::RHOVAE_ISA {

template <class C>
RHOVAE_INLINE Scale<V<C>> scale_of(bool logits, V<C> given) {
  return logits ? scale_from_log<Functions<C>>(given) : scale_from_value<Functions<C>>(given);
}
template <class C>
RHOVAE_INLINE Correlation<V<C>> correlation_of(bool logits, V<C> given) {
  return logits ? correlation_from_logit<Functions<C>>(given) : correlation_from_value<Functions<C>>(given);
}

// What leaves a row unchanged: s = 1, rho = 0.
template <class C>
RHOVAE_INLINE C neutral_scale(bool logits) {
  return logits ? C(0) : C(1);
}

// A value a row, a row a lane; `neutral` in the lanes without one.
template <class C>
RHOVAE_INLINE V<C> row_values(const Problem& p, const Operand& from, Group group, C neutral) {
  alignas(kBytes) C buffer[Lanes<C>::n];
  store<C>(buffer, splat<C>(neutral));
  if (p.lead.axes == 1 && from.stride[0] == 1 && group.rows == Lanes<C>::n) {
    read_run<C>(from, group.first, group.rows, buffer);
  } else {
    for (int lane = 0; lane < group.rows; ++lane) {
      buffer[lane] = read_one<C>(from, row_start(p.lead, from, group.first + lane));
    }
  }
  return load<C>(buffer);
}

// s and rho of a group of rows that have one value each, a row a lane: they share the exponentials.
template <class C>
struct PerRow {
  V<C> s, log_s, kl_of_s, rho, c, minus_log_c;

  RHOVAE_INLINE PerRow(const Problem& p, Group group) {
    const V<C> scale = p.scale.step ? splat<C>(neutral_scale<C>(p.logits))
                                    : row_values(p, p.scale, group, neutral_scale<C>(p.logits));
    const V<C> correlation = p.rho.step ? V<C>{} : row_values(p, p.rho, group, C(0));
    const Scale<V<C>> a = scale_of<C>(p.logits, scale);
    const Correlation<V<C>> b = correlation_of<C>(p.logits, correlation);
    s = a.s, log_s = a.log_s, kl_of_s = a.kl;
    rho = b.rho, c = b.c, minus_log_c = b.minus_log_c;
  }
};

// f(params, group) for every group of n rows. Two groups' parameters are worked out together: each is a long
// chain of operations that wait for one another, and leaves room for a second.
template <class C, class F>
RHOVAE_INLINE void over_groups(const Problem& p, int64_t begin, int64_t end, const F& f) {
  constexpr int n = Lanes<C>::n;
  const auto group_from = [&](int64_t first) -> Group {
    const int64_t rows = first < end ? end - first : 0;
    return {first, static_cast<int>(rows < n ? rows : n)};
  };
  for (int64_t row = begin; row < end; row += 2 * n) {
    const Group groups[2] = {group_from(row), group_from(row + n)};
    const PerRow<C> params[2] = {{p, groups[0]}, {p, groups[1]}};
    for (int i = 0; i < 2 && groups[i].rows > 0; ++i) f(params[i], groups[i]);
  }
}

using cpu::kShortRow;
using cpu::kTile;

template <class C>
using TileBuffer = C[cpu::kLongTileBytes / sizeof(C) + 2 * Lanes<C>::n];

// What a kernel asks of s and rho beside themselves: nothing, for gradients; the terms of the KL; or the logs
// of the density.
enum class Terms { Gradient, Kl, Density };  // Density: of its gradients too

// The s that a kernel works with. A log s may run away: gradients multiply by a finite s, the density divides
// by one that is not zero.
template <class C, Terms terms>
RHOVAE_INLINE V<C> working_scale(const Problem& p, V<C> s) {
  if (terms == Terms::Kl || !p.logits) return s;
  return terms == Terms::Gradient ? Functions<C>::at_most(s, kLargestTerm<C>)
                                  : Functions<C>::at_least(s, kSmallestScale<C>);
}

template <class C, Terms terms>
RHOVAE_INLINE V<C> working_c(V<C> c) {
  return terms == Terms::Density ? Functions<C>::at_least(c, kSmallestC<C>) : c;
}

// Steps [first, first + count) of one row, from the values given per step (`start`: the row's place in the
// tensor).
template <class C, Terms terms>
RHOVAE_INLINE void scale_run(const Problem& p, int64_t start, int64_t first, int64_t count, C* s, C* term) {
  read_run(p.scale, start + first, count, s);
  pad(s, count, neutral_scale<C>(p.logits));
  for (int64_t i = 0; i < count; i += Lanes<C>::n) {
    const Scale<V<C>> v = scale_of<C>(p.logits, load<C>(s + i));
    store<C>(s + i, working_scale<C, terms>(p, v.s));
    if constexpr (terms == Terms::Kl) store<C>(term + i, v.kl);
    if constexpr (terms == Terms::Density) store<C>(term + i, v.log_s);
  }
}

// What ties the last register of `count` steps to the one after, which the adjoint reads: nothing.
template <class C>
RHOVAE_INLINE void untie_end(int64_t count, C* rho, C* c) {
  if (count % Lanes<C>::n == 0) return;  // the first step of the next tile, which is there
  const int64_t end = (count / Lanes<C>::n + 1) * Lanes<C>::n;
  rho[end] = 0, c[end] = 1;
}

// One step further than asked: rho[count] is what ties the run to the next one. Before the row's first step
// and after its last there is no tie: rho = 0, c = 1. Returns the mean of c^2.
template <class C, Terms terms>
RHOVAE_INLINE C rho_run(const Problem& p, int64_t start, int64_t first, int64_t count, C* rho, C* c,
                        C* minus_log_c) {
  const int64_t from = first == 0 ? 1 : first;
  const int64_t until = first + count < p.steps ? first + count + 1 : p.steps;
  rho[0] = 0;
  if (until > from) read_run(p.rho, start + from - 1, until - from, rho + (from - first));
  for (int64_t i = until - first; i <= count; ++i) rho[i] = 0;
  pad(rho, count + 1, C(0));
  V<C> sum{};
  int64_t summed = 0;
  for (int64_t i = 0; i <= count; i += Lanes<C>::n) {
    const Correlation<V<C>> v = correlation_of<C>(p.logits, load<C>(rho + i));
    store<C>(rho + i, v.rho);
    store<C>(c + i, working_c<C, terms>(v.c));
    if constexpr (terms != Terms::Gradient) store<C>(minus_log_c + i, v.minus_log_c);
    sum += v.c * v.c;
    summed += Lanes<C>::n;
  }
  untie_end<C>(count, rho, c);
  const int64_t ties = until - from;  // what is beside them has c = 1
  return ties > 0 ? (sum_lanes<C>(sum) - static_cast<C>(summed - ties)) / static_cast<C>(ties) : C(1);
}

// The same buffers where the row has one rho.
template <class C, Terms terms>
RHOVAE_INLINE void rho_run_uniform(const PerRow<C>& row, int lane, int64_t steps, int64_t first,
                                   int64_t count, C* rho, C* c) {
  const C rho_row = row.rho[lane], c_row = working_c<C, terms>(row.c)[lane];
  for (int64_t i = 0; i <= count; ++i) {
    const bool tied = first + i > 0 && first + i < steps;
    rho[i] = tied ? rho_row : C(0);
    c[i] = tied ? c_row : C(1);
  }
  pad(rho, count + 1, C(0));
  pad(c, count + 1, C(1));
  untie_end<C>(count, rho, c);
}

}  // namespace rhovae::RHOVAE_ISA
