#pragma once

// Gradients of z and the KL by mu, s, rho and eps. The noise is drawn again, never stored. One rho a row
// needs one pass: its tangent runs forward beside x. Per step, or for the gradient of eps, the adjoint runs
// backward.

#include "forward.h"

namespace rhovae::RHOVAE_ISA {

// From sums of g_k x_k and lambda_k (x_{k-1} - rho_k x_k) to the gradient of what the caller gave; h is the
// KL's.
template <class V>
RHOVAE_INLINE V scale_gradient(const Backward& p, V gx, V h, V s) {
  if (!p.dkl.data) return p.logits ? s * gx : gx;  // s = 0 is allowed where no KL divides by it
  return p.logits ? s * gx + h * kl_gradient_log_scale(s) : gx + h * kl_gradient_scale(s);
}
template <class V>
RHOVAE_INLINE V rho_gradient(const Backward& p, V by_logit, V h, V rho, V c) {
  const V gradient = by_logit + h * rho;
  return p.logits ? gradient : gradient / (c * c);
}

// The gradient of the KL along a row: zero, one value, or one a step.
template <class C>
struct KlGradient {
  alignas(64) TileBuffer<C> buffer;
  Run<C> h{buffer, 0};
  RHOVAE_INLINE KlGradient() { store<C>(buffer, V<C>{}); }
  RHOVAE_INLINE void read(const Backward& p, int64_t row, int64_t first, int64_t count) {
    if (!p.dkl.data) return;
    const int64_t start = row_start(p.lead, p.dkl, row);
    h.step = p.dkl.step;
    if (h.step) {
      read_run(p.dkl, start + first, count, buffer);
      pad(buffer, count, C(0));
    } else {
      store<C>(buffer, splat<C>(read_one<C>(p.dkl, start)));
    }
  }
  // Its sum over a run of steps, and without the row's first step (which has no rho term).
  RHOVAE_INLINE void add_to(double& all, double& tied, int64_t first, int64_t count) const {
    double sum = static_cast<double>(count) * static_cast<double>(buffer[0]);
    if (h.step) {
      V<C> lanes{};
      for (int64_t i = 0; i < count; i += Lanes<C>::n) lanes += h[i];
      sum = static_cast<double>(sum_lanes<C>(lanes));
    }
    all += sum;
    tied += first == 0 ? sum - static_cast<double>(buffer[0]) : sum;
  }
};

// Sums over samples, step by step, for one tile.
template <class C>
struct TileGradients {
  alignas(64) TileBuffer<C> g, gx, by_logit;
  RHOVAE_INLINE void clear(int64_t count) {
    for (int64_t i = 0; i < count; i += Lanes<C>::n) {
      store<C>(g + i, V<C>{});
      store<C>(gx + i, V<C>{});
      store<C>(by_logit + i, V<C>{});
    }
  }
};

template <class C>
RHOVAE_INLINE void add_to(C* sum, V<C> v) {
  store<C>(sum, load<C>(sum) + v);
}

template <class C>
struct ChainState {
  C x, t;
};

// One rho: x and its tangent together. by_logit collects g_k s_k t_k.
template <class C>
RHOVAE_INLINE void tangent_tile(const UniformScan<C>& scan, C rho_row, C c_row, const TileParameters<C>& p,
                                const C* eps, const C* dz, bool row_begins, int64_t count,
                                ChainState<C>& carry, TileGradients<C>& sum) {
  V<C> rho = splat<C>(rho_row), c = splat<C>(c_row);
  if (row_begins) rho[0] = 0, c[0] = 1;
  V<C> x_carry = splat<C>(carry.x), t_carry = splat<C>(carry.t);
  for (int64_t i = 0; i < count; i += Lanes<C>::n) {
    const V<C> e = load<C>(eps + i);
    const V<C> x_before = x_carry, x = scan.up(innovation(c, e), x_carry);
    const V<C> t = scan.up(tangent_source(rho, c, shift_up<C, 1>(x_before, x), e), t_carry);
    const V<C> g = load_some(dz + i, static_cast<int>(count - i));
    add_to<C>(sum.g + i, g);
    add_to<C>(sum.gx + i, g * x);
    add_to<C>(sum.by_logit + i, g * p.s[i] * t);
    rho = splat<C>(rho_row), c = splat<C>(c_row);
  }
  carry = {x_carry[0], t_carry[0]};
}

// The adjoint's value at a tile's first step, for the tile before it; it needs no noise.
template <class C>
RHOVAE_INLINE C adjoint_carry(const TileParameters<C>& p, const C* dz, int64_t count, C carry) {
  constexpr int n = Lanes<C>::n;
  V<C> lambda = splat<C>(carry);
  for (int64_t i = (count - 1) / n * n; i >= 0; i -= n) {
    const V<C> source = load_some(dz + i, static_cast<int>(count - i)) * p.s[i];
    scan_down<C>(load<C>(p.rho + i + 1), source, lambda);
  }
  return lambda[0];
}

// Any rho: x forward, kept in the tile, then lambda backward. by_logit collects lambda_k (x_{k-1} - rho_k
// x_k).
template <class C>
RHOVAE_INLINE C adjoint_tile(const TileParameters<C>& p, const C* eps, const C* dz, int64_t count, C x_carry,
                             C lambda_carry, TileGradients<C>& sum, C* deps) {
  constexpr int n = Lanes<C>::n;
  alignas(64) TileBuffer<C> xs, sources;
  V<C> carry = splat<C>(x_carry);
  for (int64_t i = 0; i < count; i += n) {
    const V<C> rho = load<C>(p.rho + i), c = load<C>(p.c + i), e = load<C>(eps + i);
    const V<C> before = carry, x = scan_up<C>(rho, innovation(c, e), carry);
    store<C>(xs + i, x);
    store<C>(sources + i, tangent_source(rho, c, shift_up<C, 1>(before, x), e));
  }
  V<C> after = splat<C>(lambda_carry);
  for (int64_t i = (count - 1) / n * n; i >= 0; i -= n) {
    const int left = static_cast<int>(count - i);
    const V<C> g = load_some(dz + i, left);
    const V<C> lambda = scan_down<C>(load<C>(p.rho + i + 1), g * p.s[i], after);
    add_to<C>(sum.g + i, g);
    add_to<C>(sum.gx + i, g * load<C>(xs + i));
    add_to<C>(sum.by_logit + i, lambda * load<C>(sources + i));
    if (deps) store_some<C>(deps + i, load<C>(p.c + i) * lambda, left);
  }
  return carry[0];
}

template <class C>
RHOVAE_INLINE C sum_run(const C* run, int64_t count) {
  constexpr int n = Lanes<C>::n;
  V<C> sum{};
  for (int64_t i = 0; i < count; i += n) sum += load_some(run + i, static_cast<int>(count - i));
  return sum_lanes<C>(sum);
}

template <class C>
void backward_along(const Backward& p, const RoundKeys& keys, const PerRow<C>& params, int lane,
                    int64_t row) {
  constexpr int n = Lanes<C>::n;
  const bool adjoint = p.rho.step || p.deps.data;
  const int64_t mu_start = row_start(p.lead, p.mu, row);
  const int64_t scale_start = row_start(p.lead, p.scale, row), rho_start = row_start(p.lead, p.rho, row);
  const int64_t dz_start = p.dz.data ? row_start(p.lead, p.dz, row) : 0;
  const int64_t tiles = (p.steps + kTile - 1) / kTile;
  const C rho_row = params.rho[lane], c_row = params.c[lane];
  const UniformScan<C> scan(rho_row);
  Carry<ChainState<C>> state(p.samples);
  Carry<C> lambda(adjoint && p.dz.data ? tiles * p.samples : 0);  // at the end of each tile
  TileParameters<C> t;
  TileGradients<C> sum;
  KlGradient<C> kl;
  alignas(64) TileBuffer<C> buffer, eps_buffer, out;

  if (adjoint && p.dz.data) {
    for (int64_t tile = tiles - 1; tile > 0; --tile) {
      const int64_t first = tile * kTile, count = p.steps - first < kTile ? p.steps - first : kTile;
      t.read(p, params, lane, scale_start, rho_start, first, count, true);
      for (int64_t s = 0; s < p.samples; ++s) {
        const C* dz = view_run(p.dz, s * p.dz.sample_stride + dz_start + first, count, buffer);
        lambda.at[(tile - 1) * p.samples + s] = adjoint_carry(t, dz, count, lambda.at[tile * p.samples + s]);
      }
    }
  }

  double gx_row = 0, by_logit_row = 0, h_row = 0, h_tied = 0;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t first = tile * kTile, count = p.steps - first < kTile ? p.steps - first : kTile;
    t.read(p, params, lane, scale_start, rho_start, first, count, adjoint);
    kl.read(p, row, first, count);
    sum.clear(count);
    for (int64_t s = 0; p.dz.data && s < p.samples; ++s) {
      const C* eps = eps_along(p, keys, row, s, first, count, eps_buffer);
      const C* dz = view_run(p.dz, s * p.dz.sample_stride + dz_start + first, count, buffer);
      ChainState<C>& carry = state.at[s];
      if (adjoint) {
        const int64_t to = (s * p.rows + row) * p.steps + first;
        C* deps = p.deps.data ? begin_run(p.deps, to, out) : nullptr;
        carry.x = adjoint_tile(t, eps, dz, count, carry.x, lambda.at[tile * p.samples + s], sum, deps);
        if (deps) finish_run(p.deps, to, count, out);
      } else {
        tangent_tile(scan, rho_row, c_row, t, eps, dz, first == 0, count, carry, sum);
      }
    }

    const C* mu = view_run(p.mu, mu_start + first, count, buffer);
    C* dmu = begin_run(p.dmu, row * p.steps + first, out);
    for (int64_t i = 0; i < count; i += n) {
      const int left = static_cast<int>(count - i);
      store_some<C>(dmu + i, load<C>(sum.g + i) + kl.h[i] * load_some(mu + i, left), left);
    }
    finish_run(p.dmu, row * p.steps + first, count, out);

    if (p.scale.step) {
      for (int64_t i = 0; i < count; i += n) {
        store<C>(out + i, scale_gradient(p, load<C>(sum.gx + i), kl.h[i], t.s[i]));
      }
      write_run(p.dscale, row * p.steps + first, count, out);
    } else {
      gx_row += static_cast<double>(sum_run(sum.gx, count));
    }
    if (p.rho.step) {
      for (int64_t i = 0; i < count; i += n) {
        store<C>(out + i,
                 rho_gradient(p, load<C>(sum.by_logit + i), kl.h[i], load<C>(t.rho + i), load<C>(t.c + i)));
      }
      const int64_t skip = first == 0;  // nothing ties the first step to one before
      write_run(p.drho, row * (p.steps - 1) + first - 1 + skip, count - skip, out + skip);
    } else {
      by_logit_row += static_cast<double>(sum_run(sum.by_logit, count));
    }
    kl.add_to(h_row, h_tied, first, count);
  }
  if (!p.scale.step) {
    const double s = static_cast<double>(params.s[lane]);
    write_one<C>(p.dscale, row, scale_gradient(p, gx_row, h_row, s));
  }
  if (!p.rho.step) {
    write_one<C>(
        p.drho, row,
        rho_gradient(p, by_logit_row, h_tied, static_cast<double>(rho_row), static_cast<double>(c_row)));
  }
}

template <class C>
void backward_across(const Backward& p, const RoundKeys& keys, const PerRow<C>& params, int64_t row,
                     int rows) {
  constexpr int n = Lanes<C>::n;
  const int64_t length = p.steps * n;
  const AcrossParameters<C> t(p, params, row, rows);
  alignas(64) ShortBuffer<C> g_sum, gx_sum, by_logit_sum, mu, eps, dz, xs, sources, h_buffer;
  int64_t start[n];
  for (int64_t i = 0; i < length; i += n) {
    store<C>(g_sum + i, V<C>{});
    store<C>(gx_sum + i, V<C>{});
    store<C>(by_logit_sum + i, V<C>{});
  }
  for (int64_t s = 0; p.dz.data && s < p.samples; ++s) {
    eps_across<C>(p, keys, row, rows, s, eps);
    for (int lane = 0; lane < rows; ++lane) {
      start[lane] = s * p.dz.sample_stride + row_start(p.lead, p.dz, row + lane);
    }
    read_across<C>(p.dz, start, rows, p.steps, C(0), dz);
    V<C> x = load<C>(eps);
    store<C>(xs, x);
    for (int64_t i = n; i < length; i += n) {
      const V<C> e = load<C>(eps + i);
      store<C>(sources + i, tangent_source(t.rho[i], t.c[i], x, e));
      x = advance(t.rho[i], x, innovation(t.c[i], e));
      store<C>(xs + i, x);
    }
    V<C> lambda{};
    for (int64_t i = length - n; i >= 0; i -= n) {
      const V<C> g = load<C>(dz + i);
      const V<C> tie = i + n < length ? t.rho[i + n] : V<C>{};
      lambda = advance(tie, lambda, g * t.s[i]);
      add_to<C>(g_sum + i, g);
      add_to<C>(gx_sum + i, g * load<C>(xs + i));
      if (i > 0) add_to<C>(by_logit_sum + i, lambda * load<C>(sources + i));
      if (p.deps.data) store<C>(eps + i, i > 0 ? t.c[i] * lambda : lambda);
    }
    if (p.deps.data) write_across<C>(p.deps, (s * p.rows + row) * p.steps, rows, p.steps, eps);
  }

  Run<C> h{h_buffer, 0};
  store<C>(h_buffer, V<C>{});
  if (p.dkl.data) {
    for (int lane = 0; lane < rows; ++lane) start[lane] = row_start(p.lead, p.dkl, row + lane);
    h.step = p.dkl.step;
    read_across<C>(p.dkl, start, rows, h.step ? p.steps : 1, C(0), h_buffer);
  }
  for (int lane = 0; lane < rows; ++lane) start[lane] = row_start(p.lead, p.mu, row + lane);
  read_across<C>(p.mu, start, rows, p.steps, C(0), mu);
  V<C> gx_row{}, by_logit_row{}, h_row{}, h_tied{};
  for (int64_t i = 0; i < length; i += n) {
    add_to<C>(g_sum + i, h[i] * load<C>(mu + i));
    gx_row += load<C>(gx_sum + i);
    h_row += h[i];
    if (p.scale.step) store<C>(gx_sum + i, scale_gradient(p, load<C>(gx_sum + i), h[i], t.s[i]));
    if (i == 0) continue;
    by_logit_row += load<C>(by_logit_sum + i);
    h_tied += h[i];
    if (p.rho.step) {
      store<C>(by_logit_sum + i, rho_gradient(p, load<C>(by_logit_sum + i), h[i], t.rho[i], t.c[i]));
    }
  }
  write_across<C>(p.dmu, row * p.steps, rows, p.steps, g_sum);
  if (p.scale.step) {
    write_across<C>(p.dscale, row * p.steps, rows, p.steps, gx_sum);
  } else {
    store<C>(gx_sum, scale_gradient(p, gx_row, h_row, params.s));
    write_run<C>(p.dscale, row, rows, gx_sum);
  }
  if (p.rho.step) {
    write_across<C>(p.drho, row * (p.steps - 1), rows, p.steps - 1, by_logit_sum + n);
  } else {
    store<C>(by_logit_sum, rho_gradient(p, by_logit_row, h_tied, params.rho, params.c));
    write_run<C>(p.drho, row, rows, by_logit_sum);
  }
}

template <class C>
void backward_rows(const Backward& p, int64_t begin, int64_t end) {
  const RoundKeys keys = round_keys(p.noise.seed);
  for (int64_t row = begin; row < end; row += Lanes<C>::n) {
    const int rows = static_cast<int>(end - row < Lanes<C>::n ? end - row : Lanes<C>::n);
    const PerRow<C> params(p, row, rows);
    if (p.steps < kShortRow) {
      backward_across(p, keys, params, row, rows);
    } else {
      for (int lane = 0; lane < rows; ++lane) backward_along(p, keys, params, lane, row + lane);
    }
  }
}

}  // namespace rhovae::RHOVAE_ISA
