#pragma once

// z and its KL. Rows of kShortRow steps or more run along the row, registers of consecutive steps joined by a
// scan; shorter ones run across rows, a row a lane. Noise goes from Philox to a buffer in the first-level
// cache, never further.

#include "../core/ar1.h"
#include "../core/kl.h"
#include "noise.h"
#include "row_parameters.h"
#include "scan.h"

namespace rhovae::RHOVAE_ISA {

// A value a sample that outlives a tile: the chain's carry.
template <class C>
struct Carry {
  C* at;
  explicit Carry(int64_t samples) : at(new C[static_cast<size_t>(samples)]()) {}
  ~Carry() { delete[] at; }
  Carry(const Carry&) = delete;
  Carry& operator=(const Carry&) = delete;
};

// Values along a row, or one value for all of it (step 0).
template <class C>
struct Run {
  const C* at;
  int step;
  RHOVAE_INLINE V<C> operator[](int64_t k) const { return load<C>(at + k * step); }
};

template <class C>
RHOVAE_INLINE const C* eps_along(const Problem& p, const RoundKeys& keys, int64_t row, int64_t sample,
                                 int64_t first, int64_t count, C* buffer) {
  if (p.eps.data) {
    read_run(p.eps, sample * p.eps.sample_stride + row_start(p.lead, p.eps, row) + first, count, buffer);
    pad(buffer, count, C(0));
  } else {
    const uint64_t position = p.noise.offset + static_cast<uint64_t>(first / kNormalsPerBlock<C>);
    normals_along<C>(keys, position,
                     noise_row(p.noise.row_offset, static_cast<uint64_t>(row),
                               static_cast<uint64_t>(p.samples), static_cast<uint64_t>(sample)),
                     buffer, count);
  }
  return buffer;
}

template <class C>
RHOVAE_INLINE void eps_across(const Problem& p, const RoundKeys& keys, int64_t row, int rows, int64_t sample,
                              C* to) {
  constexpr int n = Lanes<C>::n;
  if (p.eps.data) {
    int64_t start[n];
    for (int lane = 0; lane < rows; ++lane) {
      start[lane] = sample * p.eps.sample_stride + row_start(p.lead, p.eps, row + lane);
    }
    read_across<C>(p.eps, start, rows, p.steps, C(0), to);
  } else {
    uint64_t id[n];
    for (int lane = 0; lane < n; ++lane) {
      id[lane] = noise_row(p.noise.row_offset, static_cast<uint64_t>(row + lane),
                           static_cast<uint64_t>(p.samples), static_cast<uint64_t>(sample));
    }
    U64 in_order[2];
    order_rows<C>(id, in_order);
    normals_across<C>(keys, p.noise.offset, in_order, to, p.steps);
  }
}

// One row's parameters over one tile.
template <class C>
struct TileParameters {
  alignas(64) TileBuffer<C> s_buffer, log_s_buffer, rho, c, minus_log_c;
  Run<C> s, log_s;

  RHOVAE_INLINE void read(const Problem& p, const PerRow<C>& row, int lane, int64_t scale_start,
                          int64_t rho_start, int64_t first, int64_t count, bool uniform_rho_too) {
    if (p.scale.step) {
      scale_run(p, scale_start, first, count, s_buffer, log_s_buffer);
    } else {
      store<C>(s_buffer, splat<C>(row.s[lane]));
      store<C>(log_s_buffer, splat<C>(row.log_s[lane]));
    }
    s = {s_buffer, p.scale.step};
    log_s = {log_s_buffer, p.scale.step};
    if (p.rho.step)
      rho_run(p, rho_start, first, count, rho, c, minus_log_c);
    else if (uniform_rho_too)
      rho_run_uniform(row.rho[lane], row.c[lane], p.steps, first, count, rho, c);
  }
};

template <class C>
RHOVAE_INLINE C kl_of_tile(const Problem& p, const TileParameters<C>& t, const C* mu, int64_t count) {
  V<C> sum{};
  for (int64_t i = 0; i < count; i += Lanes<C>::n) {
    sum += kl_of_mean(load_some(mu + i, static_cast<int>(count - i)));
    if (p.scale.step) sum += kl_of_scale(t.s[i], t.log_s[i]);
    if (p.rho.step) sum += load<C>(t.minus_log_c + i);
  }
  return sum_lanes<C>(sum);
}

// What the values given once a row add to its KL.
template <class C>
RHOVAE_INLINE double kl_of_row(const Problem& p, const PerRow<C>& row, int lane) {
  double sum = 0;
  if (!p.scale.step) {
    sum += static_cast<double>(p.steps) * static_cast<double>(kl_of_scale(row.s[lane], row.log_s[lane]));
  }
  if (!p.rho.step) sum += static_cast<double>(p.steps - 1) * static_cast<double>(row.minus_log_c[lane]);
  return sum;
}

template <class C>
RHOVAE_INLINE void kl_steps(const Problem& p, const PerRow<C>& row, int lane, const TileParameters<C>& t,
                            const C* mu, int64_t first, int64_t count, C* kl) {
  for (int64_t i = 0; i < count; i += Lanes<C>::n) {
    V<C> tie = p.rho.step ? load<C>(t.minus_log_c + i) : splat<C>(row.minus_log_c[lane]);
    if (first + i == 0) tie[0] = 0;
    const int left = static_cast<int>(count - i);
    store_some<C>(kl + i, kl_of_mean(load_some(mu + i, left)) + kl_of_scale(t.s[i], t.log_s[i]) + tie, left);
  }
}

// The chain over one tile; x: the last value before it, then its own last.
template <class C, bool uniform>
RHOVAE_INLINE void sample_tile(const UniformScan<C>& scan, C c_row, const TileParameters<C>& t, const C* mu,
                               const C* eps, bool row_begins, int64_t count, C& x_carry, C* z) {
  V<C> c = splat<C>(c_row), carry = splat<C>(x_carry);
  if (row_begins) c[0] = 1;
  for (int64_t i = 0; i < count; i += Lanes<C>::n) {
    if constexpr (!uniform) c = load<C>(t.c + i);
    const V<C> source = innovation(c, load<C>(eps + i));
    const V<C> x = uniform ? scan.up(source, carry) : scan_up<C>(load<C>(t.rho + i), source, carry);
    const int left = static_cast<int>(count - i);
    store_some<C>(z + i, sample(load_some(mu + i, left), t.s[i], x), left);
    if constexpr (uniform) c = splat<C>(c_row);
  }
  x_carry = carry[0];
}

template <class C>
void forward_along(const Forward& p, const RoundKeys& keys, const PerRow<C>& params, int lane, int64_t row) {
  const int64_t mu_start = row_start(p.lead, p.mu, row);
  const int64_t scale_start = row_start(p.lead, p.scale, row), rho_start = row_start(p.lead, p.rho, row);
  const UniformScan<C> scan(params.rho[lane]);
  Carry<C> carry(p.samples);
  TileParameters<C> t;
  alignas(64) TileBuffer<C> mu_buffer, eps_buffer, out_buffer;
  double kl = kl_of_row(p, params, lane);
  for (int64_t first = 0; first < p.steps; first += kTile) {
    const int64_t count = p.steps - first < kTile ? p.steps - first : kTile;
    const C* mu = view_run(p.mu, mu_start + first, count, mu_buffer);
    t.read(p, params, lane, scale_start, rho_start, first, count, false);
    if (p.kl_kind == Kl::PerRow) kl += static_cast<double>(kl_of_tile(p, t, mu, count));
    if (p.kl_kind == Kl::PerStep) {
      kl_steps(p, params, lane, t, mu, first, count, begin_run(p.kl, row * p.steps + first, out_buffer));
    }
    if (!p.z.data) continue;
    for (int64_t sample = 0; sample < p.samples; ++sample) {
      const C* eps = eps_along(p, keys, row, sample, first, count, eps_buffer);
      const int64_t to = (sample * p.rows + row) * p.steps + first;
      C* z = begin_run(p.z, to, out_buffer);
      if (p.rho.step)
        sample_tile<C, false>(scan, C(1), t, mu, eps, first == 0, count, carry.at[sample], z);
      else
        sample_tile<C, true>(scan, params.c[lane], t, mu, eps, first == 0, count, carry.at[sample], z);
      finish_run(p.z, to, count, out_buffer);
    }
  }
  if (p.kl_kind == Kl::PerRow) write_one<C>(p.kl, row, kl);
}

template <class C>
using ShortBuffer = C[(kShortRow + 8) * Lanes<C>::n];

// A group of short rows, a row a lane: their parameters step by step.
template <class C>
struct AcrossParameters {
  alignas(64) ShortBuffer<C> s_buffer, log_s_buffer, rho_buffer, c_buffer, minus_log_c_buffer;
  Run<C> s, log_s, rho, c, minus_log_c;  // indexed by k * n; rho[k] ties k - 1 and k, for k in [1, steps)

  RHOVAE_INLINE AcrossParameters(const Problem& p, const PerRow<C>& row, int64_t first, int rows) {
    constexpr int n = Lanes<C>::n;
    int64_t start[n];
    if (p.scale.step) {
      for (int lane = 0; lane < rows; ++lane) start[lane] = row_start(p.lead, p.scale, first + lane);
      read_across<C>(p.scale, start, rows, p.steps, neutral_scale<C>(p.logits), s_buffer);
      for (int64_t i = 0; i < p.steps * n; i += n) {
        const Scale<V<C>> v = scale_of<C>(p.logits, load<C>(s_buffer + i));
        store<C>(s_buffer + i, v.s);
        store<C>(log_s_buffer + i, v.log_s);
      }
    } else {
      store<C>(s_buffer, row.s);
      store<C>(log_s_buffer, row.log_s);
    }
    if (p.rho.step) {
      for (int lane = 0; lane < rows; ++lane) start[lane] = row_start(p.lead, p.rho, first + lane);
      read_across<C>(p.rho, start, rows, p.steps - 1, C(0), rho_buffer + n);
      for (int64_t i = n; i < p.steps * n; i += n) {
        const Correlation<V<C>> v = correlation_of<C>(p.logits, load<C>(rho_buffer + i));
        store<C>(rho_buffer + i, v.rho);
        store<C>(c_buffer + i, v.c);
        store<C>(minus_log_c_buffer + i, v.minus_log_c);
      }
    } else {
      store<C>(rho_buffer, row.rho);
      store<C>(c_buffer, row.c);
      store<C>(minus_log_c_buffer, row.minus_log_c);
    }
    s = {s_buffer, p.scale.step}, log_s = {log_s_buffer, p.scale.step};
    rho = {rho_buffer, p.rho.step}, c = {c_buffer, p.rho.step},
    minus_log_c = {minus_log_c_buffer, p.rho.step};
  }
};

template <class C>
void forward_across(const Forward& p, const RoundKeys& keys, const PerRow<C>& params, int64_t row, int rows) {
  constexpr int n = Lanes<C>::n;
  const int64_t length = p.steps * n;
  const AcrossParameters<C> t(p, params, row, rows);
  alignas(64) ShortBuffer<C> mu, eps, out;
  int64_t start[n];
  for (int lane = 0; lane < rows; ++lane) start[lane] = row_start(p.lead, p.mu, row + lane);
  read_across<C>(p.mu, start, rows, p.steps, C(0), mu);

  if (p.kl_kind != Kl::None) {
    V<C> sum{};
    for (int64_t i = 0; i < length; i += n) {
      V<C> kl = kl_of_mean(load<C>(mu + i)) + kl_of_scale(t.s[i], t.log_s[i]);
      if (i > 0) kl += t.minus_log_c[i];
      sum += kl;
      store<C>(out + i, kl);
    }
    if (p.kl_kind == Kl::PerStep)
      write_across<C>(p.kl, row * p.steps, rows, p.steps, out);
    else {
      store<C>(out, sum);
      write_run<C>(p.kl, row, rows, out);
    }
  }
  if (!p.z.data) return;
  for (int64_t s = 0; s < p.samples; ++s) {
    eps_across<C>(p, keys, row, rows, s, eps);
    V<C> x = load<C>(eps);
    store<C>(out, sample(load<C>(mu), t.s[0], x));
    for (int64_t i = n; i < length; i += n) {
      x = advance(t.rho[i], x, innovation(t.c[i], load<C>(eps + i)));
      store<C>(out + i, sample(load<C>(mu + i), t.s[i], x));
    }
    write_across<C>(p.z, (s * p.rows + row) * p.steps, rows, p.steps, out);
  }
}

template <class C>
void forward_rows(const Forward& p, int64_t begin, int64_t end) {
  const RoundKeys keys = round_keys(p.noise.seed);
  for (int64_t row = begin; row < end; row += Lanes<C>::n) {
    const int rows = static_cast<int>(end - row < Lanes<C>::n ? end - row : Lanes<C>::n);
    const PerRow<C> params(p, row, rows);
    if (p.steps < kShortRow) {
      forward_across(p, keys, params, row, rows);
    } else {
      for (int lane = 0; lane < rows; ++lane) forward_along(p, keys, params, lane, row + lane);
    }
  }
}

}  // namespace rhovae::RHOVAE_ISA
