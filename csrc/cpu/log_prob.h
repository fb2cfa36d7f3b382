#pragma once

// The log-density of z and its gradients. No recurrence: every step needs its neighbours alone, so a tile
// carries one step more on each side.

#include "../core/log_density.h"
#include "tile.h"

namespace rhovae::RHOVAE_ISA {

template <class C>
using DensityParameters = TileParameters<C, Terms::Density>;

// A tile of one row: x from the step before it to the step after it, and the residuals eps from its first
// step to the step after it.
template <class C>
struct Residuals {
  alignas(64) TileBuffer<C> x, eps;  // x[i + 1] is step first + i

  RHOVAE_INLINE void read(const LogProb& p, int64_t row, const PerRow<C>& params, int lane, int64_t first,
                          int64_t count, DensityParameters<C>& t, Scratch& scratch) {
    constexpr int n = Lanes<C>::n;
    const int64_t before = first > 0, after = first + count < p.steps;
    const Scratch::Scope scope(scratch);
    auto& z = scratch.make<TileBuffer<C>>();
    auto& mu = scratch.make<TileBuffer<C>>();
    const int64_t from = first - before, all = before + count + after;
    const int64_t scale_start = row_start(p.lead, p.scale, row);
    read_run(p.z, row_start(p.lead, p.z, row) + from, all, z);
    read_run(p.mu, row_start(p.lead, p.mu, row) + from, all, mu);
    pad(z, all, C(0)), pad(mu, all, C(0));
    t.read(p, params, lane, scale_start, row_start(p.lead, p.rho, row), from, all, false);
    x[0] = 0;
    C* to = x + 1 - before;
    for (int64_t i = 0; i < all; i += n) {
      store<C>(to + i, standardise<Functions<C>>(load<C>(z + i), load<C>(mu + i), t.s[i]));
    }
    for (int64_t i = all; i < before + count + 1; ++i) to[i] = 0;
    // Now the tile alone: s, log s and the ties of its own steps.
    t.read(p, params, lane, scale_start, row_start(p.lead, p.rho, row), first, count, true);
    if (!p.rho.step) tied_log_c(params.minus_log_c[lane], p.steps, first, count, t.minus_log_c);
    for (int64_t i = 0; i <= count; i += n) {
      store<C>(eps + i, residual<Functions<C>>(load<C>(t.rho + i), load<C>(t.c + i), load<C>(x + i),
                                               load<C>(x + i + 1)));
    }
  }

 private:
  static RHOVAE_INLINE void tied_log_c(C value, int64_t steps, int64_t first, int64_t count, C* to) {
    for (int64_t i = 0; i <= count; ++i) to[i] = first + i > 0 && first + i < steps ? value : C(0);
    pad(to, count + 1, C(0));
  }
};

template <class C>
void log_prob_along(const LogProb& p, const PerRow<C>& params, int lane, int64_t row, Relay& relay,
                    Scratch& scratch) {
  constexpr int n = Lanes<C>::n;
  const Scratch::Scope scope(scratch);
  auto& t = scratch.make<DensityParameters<C>>();
  auto& r = scratch.make<Residuals<C>>();
  const int64_t tiles = tiles_of(p), length = tile_of(p);
  for (int64_t tile = relay.take(); tile < tiles; tile = relay.take()) {
    const int64_t first = tile * length, count = p.steps - first < length ? p.steps - first : length;
    r.read(p, row, params, lane, first, count, t, scratch);
    RunSum<C> sum;
    for (int64_t i = 0; i < count; i += n) {
      const int left = static_cast<int>(count - i);
      const V<C> eps = load_some(r.eps + i, left);
      V<C> here = load_some(t.minus_log_c + i, left) - static_cast<C>(0.5) * eps * eps;
      if (p.scale.step) here -= t.of_s[i];
      sum.add(here);
    }
    const double here = sum.total();
    Baton& sums = relay.sums();
    sums.await(tile);
    sums.state[0] += here;
    if (tile + 1 == tiles) {
      double a_step = -kHalfLogTwoPi;
      if (!p.scale.step) a_step -= static_cast<double>(params.log_s[lane]);
      write_one<C>(p.log_prob, row, sums.state[0] + static_cast<double>(p.steps) * a_step);
    }
    sums.hand_on(tile);
  }
}

template <class C>
void log_prob_backward_along(const LogProbBackward& p, const PerRow<C>& params, int lane, int64_t row,
                             Relay& relay, Scratch& scratch) {
  using M = Functions<C>;
  constexpr int n = Lanes<C>::n;
  const Scratch::Scope scope(scratch);
  auto& t = scratch.make<DensityParameters<C>>();
  auto& r = scratch.make<Residuals<C>>();
  auto& flow = scratch.make<TileBuffer<C>>();
  auto& by_x = scratch.make<TileBuffer<C>>();
  auto& dz = scratch.make<TileBuffer<C>>();
  auto& out = scratch.make<TileBuffer<C>>();
  const V<C> h = splat<C>(read_one<C>(p.dlog_prob, row_start(p.lead, p.dlog_prob, row)));
  const int64_t tiles = tiles_of(p), length = tile_of(p);
  for (int64_t tile = relay.take(); tile < tiles; tile = relay.take()) {
    const int64_t first = tile * length, count = p.steps - first < length ? p.steps - first : length;
    r.read(p, row, params, lane, first, count, t, scratch);
    for (int64_t i = 0; i <= count; i += n) {
      store<C>(flow + i, density_flow<M>(load<C>(r.eps + i), load<C>(t.c + i)));
    }
    const int64_t start = row * p.steps + first;
    for (int64_t i = 0; i < count; i += n) {
      const V<C> b =
          density_gradient_x<M>(h, load<C>(flow + i), load<C>(t.rho + i + 1), load<C>(flow + i + 1));
      store<C>(by_x + i, b);
      store<C>(dz + i, b / t.s[i]);
      store<C>(out + i, -b / t.s[i]);
    }
    write_run(p.dz, start, count, dz);
    write_run(p.dmu, start, count, out);

    RunSum<C> by_scale;
    for (int64_t i = 0; i < count; i += n) {
      const V<C> by_log_s = density_gradient_log_scale<M>(h, load<C>(by_x + i), load<C>(r.x + i + 1));
      store<C>(out + i, p.logits ? by_log_s : by_log_s / t.s[i]);
      store<C>(dz + i, by_log_s);
      by_scale.add(load_some(dz + i, static_cast<int>(count - i)));
    }
    if (p.scale.step) write_run(p.dscale, start, count, out);

    RunSum<C> by_rho;
    for (int64_t i = 0; i < count; i += n) {
      const V<C> rho = load<C>(t.rho + i), c = load<C>(t.c + i);
      const V<C> by_logit = density_gradient_logit<M>(h, rho, c, load<C>(r.x + i), load<C>(r.eps + i));
      store<C>(out + i, p.logits ? by_logit : by_logit / (c * c));
      store<C>(dz + i, by_logit);
      by_rho.add(load_some(dz + i, static_cast<int>(count - i)));
    }
    if (p.rho.step) {
      const int64_t skip = first == 0;
      write_run(p.drho, row * (p.steps - 1) + first - 1 + skip, count - skip, out + skip);
    }
    Baton& sums = relay.sums();
    sums.await(tile);
    const double scale_row = sums.state[0] += by_scale.total(), rho_row = sums.state[1] += by_rho.total();
    if (tile + 1 == tiles) {
      const double s = static_cast<double>(params.s[lane]), c = static_cast<double>(params.c[lane]);
      if (!p.scale.step) write_one<C>(p.dscale, row, p.logits ? scale_row : scale_row / s);
      if (!p.rho.step) write_one<C>(p.drho, row, p.logits ? rho_row : rho_row / (c * c));
    }
    sums.hand_on(tile);
  }
}

template <class C, class P>
using LogProbAlong = void (*)(const P&, const PerRow<C>&, int, int64_t, Relay&, Scratch&);

template <class C, class P>
RHOVAE_INLINE void log_prob_rows(const P& p, int64_t begin, int64_t end, LogProbAlong<C, P> along) {
  Relay relay(1, 0, false);
  Scratch& scratch = Scratch::of_thread();
  over_groups<C>(p, begin, end, [&](const PerRow<C>& params, Group group) {
    for (int lane = 0; lane < group.rows; ++lane) {
      relay.begin_row();
      along(p, params, lane, group.first + lane, relay, scratch);
    }
  });
}

template <class C, class P>
RHOVAE_INLINE void log_prob_shared(const P& p, int64_t row, Relay& relay, LogProbAlong<C, P> along) {
  along(p, PerRow<C>(p, {row, 1}), 0, row, relay, Scratch::of_thread());
}

}  // namespace rhovae::RHOVAE_ISA
