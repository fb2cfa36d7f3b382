#pragma once

// Rows shorter than kShortRow, a row a lane: their noise and their parameters, step by step.

#include "tile.h"

namespace rhovae::RHOVAE_ISA {

constexpr int64_t kStretch = 16;

// f(k, count) for steps [k, k + count): `stretch` of them again and again, and the last ones, up to half as
// many more, together.
template <class F>
RHOVAE_INLINE void over_stretches(int64_t steps, int64_t stretch, const F& f) {
  for (int64_t k = 0; k < steps;) {
    const int64_t left = steps - k, count = left < stretch + stretch / 2 ? left : stretch;
    f(k, count);
    k += count;
  }
}

// The noise of steps [first, first + count). meanwhile(k, count): what memory is to be asked for while that
// of steps [k, k + count) is drawn.
template <class C, class Meanwhile>
RHOVAE_INLINE void eps_across(const Problem& p, const LaneKeys& keys, Group group, int64_t sample,
                              int64_t first, int64_t count, C* to, const Meanwhile& meanwhile) {
  if (p.eps.data) {
    meanwhile(first, count);
    return read_across<C>(p, p.eps, group, first, count, C(0), to, sample);
  }
  U64 ids[2]{};
  rows_across<C>(static_cast<uint64_t>(group.first), ids);
  for (U64& id : ids) {
    id = noise_row(p.noise.row_offset, id, static_cast<uint64_t>(p.samples), static_cast<uint64_t>(sample));
  }
  over_stretches(count, kStretch, [&](int64_t k, int64_t some) RHOVAE_INLINE_BODY {
    meanwhile(first + k, some);
    normals_across<C>(keys, p.noise.offset + static_cast<uint64_t>((first + k) / kNormalsPerBlock<C>), ids,
                      to + k * Lanes<C>::n, some);
  });
}

template <class C>
using ShortBuffer = C[(kShortRow + 8) * Lanes<C>::n];

// The sum of f(k * n) over steps k from `first` on, a few at a time: so it keeps its digits.
template <class C, class F>
RHOVAE_INLINE V<C> sum_steps(int64_t first, int64_t steps, const F& f) {
  constexpr int n = Lanes<C>::n;
  V<C> sum{};
  for (int64_t k = first; k < steps; k += kStretch) {
    const int64_t until = k + kStretch < steps ? k + kStretch : steps;
    V<C> part{};
    for (int64_t i = k; i < until; ++i) part += f(i * n);
    sum += part;
  }
  return sum;
}

// The parameters of a group, a row a lane; at = k * n, and rho(at) ties steps k - 1 and k, for k in [1,
// steps). One value a row for all of them ...
template <class C, Terms terms>
struct UniformAcross {
  const PerRow<C>& row;
  const V<C> scale;

  RHOVAE_INLINE UniformAcross(const Problem& p, const PerRow<C>& row, Group, Scratch&)
      : row(row), scale(working_scale<C, terms>(p, row.s)) {}
  RHOVAE_INLINE void prefetch_next(const Problem&, Group, int64_t, int64_t) const {}
  RHOVAE_INLINE V<C> s(int64_t) const { return scale; }
  RHOVAE_INLINE V<C> rho(int64_t) const { return row.rho; }
  RHOVAE_INLINE V<C> c(int64_t) const { return row.c; }
  RHOVAE_INLINE V<C> kl_of_s(int64_t) const { return row.kl_of_s; }
  RHOVAE_INLINE V<C> minus_log_c(int64_t) const { return row.minus_log_c; }
  // What s and rho add to the rows' KL.
  RHOVAE_INLINE V<C> kl_without_means(int64_t steps) const {
    return static_cast<C>(steps) * kl_of_s(0) + static_cast<C>(steps - 1) * minus_log_c(0);
  }
};

// ... or one a step for s or rho or both.
template <class C, Terms terms>
class StepsAcross {
 public:
  RHOVAE_INLINE StepsAcross(const Problem& p, const PerRow<C>& row, Group group, Scratch& scratch)
      : s_buffer(scratch.make<ShortBuffer<C>>()),
        kl_of_s_buffer(scratch.make<ShortBuffer<C>>()),
        rho_buffer(scratch.make<ShortBuffer<C>>()),
        c_buffer(scratch.make<ShortBuffer<C>>()),
        minus_log_c_buffer(scratch.make<ShortBuffer<C>>()),
        scale_step(p.scale.step),
        rho_step(p.rho.step) {
    constexpr int n = Lanes<C>::n;
    if (p.scale.step) {
      read_across<C>(p, p.scale, group, 0, p.steps, neutral_scale<C>(p.logits), s_buffer);
      for (int64_t i = 0; i < p.steps * n; i += n) {
        const Scale<V<C>> v = scale_of<C>(p.logits, load<C>(s_buffer + i));
        store<C>(s_buffer + i, working_scale<C, terms>(p, v.s));
        if constexpr (terms == Terms::Kl) store<C>(kl_of_s_buffer + i, v.kl);
      }
    } else {
      store<C>(s_buffer, working_scale<C, terms>(p, row.s));
      store<C>(kl_of_s_buffer, row.kl_of_s);
    }
    if (p.rho.step) {
      read_across<C>(p, p.rho, group, 0, p.steps - 1, C(0), rho_buffer + n);
      for (int64_t i = n; i < p.steps * n; i += n) {
        const Correlation<V<C>> v = correlation_of<C>(p.logits, load<C>(rho_buffer + i));
        store<C>(rho_buffer + i, v.rho);
        store<C>(c_buffer + i, v.c);
        if constexpr (terms == Terms::Kl) store<C>(minus_log_c_buffer + i, v.minus_log_c);
      }
    } else {
      store<C>(rho_buffer, row.rho);
      store<C>(c_buffer, row.c);
      store<C>(minus_log_c_buffer, row.minus_log_c);
    }
  }

  // Those of the next group, for prefetch_steps.
  RHOVAE_INLINE void prefetch_next(const Problem& p, Group group, int64_t k, int64_t count) const {
    if (p.scale.step) prefetch_steps<C>(p, p.scale, group.next(), k, count);
    if (p.rho.step) prefetch_steps<C>(p, p.rho, group.next(), k, count);
  }
  RHOVAE_INLINE V<C> s(int64_t at) const { return load<C>(s_buffer + at * scale_step); }
  RHOVAE_INLINE V<C> rho(int64_t at) const { return load<C>(rho_buffer + at * rho_step); }
  RHOVAE_INLINE V<C> c(int64_t at) const { return load<C>(c_buffer + at * rho_step); }
  RHOVAE_INLINE V<C> kl_of_s(int64_t at) const { return load<C>(kl_of_s_buffer + at * scale_step); }
  RHOVAE_INLINE V<C> minus_log_c(int64_t at) const { return load<C>(minus_log_c_buffer + at * rho_step); }
  RHOVAE_INLINE V<C> kl_without_means(int64_t steps) const {
    return kl_of_s(0) + sum_steps<C>(1, steps, [&](int64_t at) RHOVAE_INLINE_BODY {
             return kl_of_s(at) + minus_log_c(at);
           });
  }

 private:
  C *const s_buffer, *const kl_of_s_buffer, *const rho_buffer, *const c_buffer, *const minus_log_c_buffer;
  const int64_t scale_step, rho_step;
};

template <class C, bool steps, Terms terms>
using Across = std::conditional_t<steps, StepsAcross<C, terms>, UniformAcross<C, terms>>;

}  // namespace rhovae::RHOVAE_ISA
