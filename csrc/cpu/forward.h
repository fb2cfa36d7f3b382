#pragma once

// z and its KL. Rows of kShortRow steps or more run along the row, registers of consecutive steps joined by a
// scan; shorter ones run across rows, a row a lane. Noise goes from Philox to a buffer in the first-level
// cache, never further.

#include "../core/ar1.h"
#include "../core/kl.h"
#include "scan.h"
#include "tile.h"

namespace rhovae::RHOVAE_ISA {

// What the steps of one tile add to the row's KL, from the squares of their means, lane by lane.
template <class C>
RHOVAE_INLINE C kl_of_tile(const Problem& p, const TileParameters<C, true>& t, V<C> squares, int64_t count) {
  V<C> sum{};
  if (p.scale.step) {
    for (int64_t i = 0; i < count; i += Lanes<C>::n) sum += kl_of_scale(t.s[i], t.log_s[i]);
  }
  if (p.rho.step) {
    for (int64_t i = 0; i < count; i += Lanes<C>::n) sum += load<C>(t.minus_log_c + i);
  }
  return sum_lanes<C>(kl_of_means(squares) + sum);
}
template <class C, class As>
RHOVAE_INLINE V<C> squares_of(const typename As::Value* mu, int64_t count) {
  V<C> squares{};
  over_registers<C>(count, [&](int64_t i, auto left) RHOVAE_INLINE_BODY {
    const V<C> m = As::load(mu + i, left);
    squares += m * m;
  });
  return squares;
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

template <class C, class As>
RHOVAE_INLINE void kl_steps(const Problem& p, const PerRow<C>& row, int lane,
                            const TileParameters<C, true>& t, const typename As::Value* mu, int64_t first,
                            int64_t count, C* kl) {
  over_registers<C>(count, [&](int64_t i, auto left) RHOVAE_INLINE_BODY {
    V<C> tie = p.rho.step ? load<C>(t.minus_log_c + i) : splat<C>(row.minus_log_c[lane]);
    if (first + i == 0) tie[0] = 0;
    store_some<C>(kl + i, kl_of_mean(As::load(mu + i, left)) + kl_of_scale(t.s[i], t.log_s[i]) + tie, left);
  });
}

// z from x, and mu's square on the way: read once for both.
template <class C, class As, class Count>
RHOVAE_INLINE void finish_sample(const TileParameters<C, true>& t, const typename As::Value* mu, V<C> x,
                                 int64_t i, Count left, V<C>& squares, typename As::Value* z) {
  const V<C> m = As::load(mu + i, left);
  squares += m * m;
  As::store(z + i, sample(m, t.s[i], x), left);
}
// The chain over one tile. x: the value before the tile, then its own last.
template <class C, class As>
RHOVAE_INLINE V<C> sample_tile(const UniformScan<C>& scan, C c_row, const TileParameters<C, true>& t,
                               const typename As::Value* mu, const C* eps, bool row_begins, int64_t count,
                               double& x, typename As::Value* z) {
  V<C> c = splat<C>(c_row), carry = splat<C>(static_cast<C>(x)), squares{};
  if (row_begins) c[0] = 1;
  over_registers<C>(count, [&](int64_t i, auto left) RHOVAE_INLINE_BODY {
    const V<C> x = scan.up(innovation(c, load<C>(eps + i)), carry);
    finish_sample<C, As>(t, mu, x, i, left, squares, z);
    c = splat<C>(c_row);
  });
  x = static_cast<double>(carry[0]);
  return squares;
}
template <class C, class As>
RHOVAE_INLINE V<C> sample_tile_steps(const TileParameters<C, true>& t, const typename As::Value* mu,
                                     const C* eps, int64_t count, double& x, typename As::Value* z) {
  V<C> carry = splat<C>(static_cast<C>(x)), squares{};
  over_registers<C>(count, [&](int64_t i, auto left) RHOVAE_INLINE_BODY {
    const V<C> x = scan_up<C>(load<C>(t.rho + i), innovation(load<C>(t.c + i), load<C>(eps + i)), carry);
    finish_sample<C, As>(t, mu, x, i, left, squares, z);
  });
  x = static_cast<double>(carry[0]);
  return squares;
}
// rho = 0: no chain.
template <class C, class As>
RHOVAE_INLINE V<C> sample_tile_independent(const TileParameters<C, true>& t, const typename As::Value* mu,
                                           const C* eps, int64_t count, typename As::Value* z) {
  V<C> squares{};
  over_registers<C>(count, [&](int64_t i, auto left) RHOVAE_INLINE_BODY {
    finish_sample<C, As>(t, mu, load<C>(eps + i), i, left, squares, z);
  });
  return squares;
}

// As: the type of mu and z.
template <class C, class As>
void forward_along(const Forward& p, const LaneKeys& keys, const PerRow<C>& params, int lane, int64_t row,
                   Relay& relay) {
  const int64_t mu_start = row_start(p.lead, p.mu, row);
  const int64_t scale_start = row_start(p.lead, p.scale, row), rho_start = row_start(p.lead, p.rho, row);
  const UniformScan<C> scan(params.rho[lane]);
  const bool independent = !p.rho.step && params.rho[lane] == 0;
  const int64_t tiles = tiles_of(p);
  TileParameters<C, true> t;
  alignas(64) TileBuffer<C> eps_buffer;
  for (int64_t tile = relay.take(); tile < tiles; tile = relay.take()) {
    const int64_t first = tile * kTile, count = p.steps - first < kTile ? p.steps - first : kTile;
    const auto* mu = values_of<As>(p.mu, mu_start + first);
    t.read(p, params, lane, scale_start, rho_start, first, count, false);
    V<C> squares{};
    for (int64_t sample = 0; p.z.data && sample < p.samples; ++sample) {
      const C* eps = eps_along(p, keys, row, sample, first, count, eps_buffer);
      auto* z = values_of<As>(p.z, (sample * p.rows + row) * p.steps + first);
      if (independent) {
        squares = sample_tile_independent<C, As>(t, mu, eps, count, z);
      } else {
        Baton& chain = relay.chain(sample);
        chain.await(tile);
        if (p.rho.step)
          squares = sample_tile_steps<C, As>(t, mu, eps, count, chain.state[0], z);
        else
          squares =
              sample_tile<C, As>(scan, params.c[lane], t, mu, eps, first == 0, count, chain.state[0], z);
        chain.hand_on(tile);
      }
    }
    if (p.kl_kind == Kl::PerRow) {
      if (!p.z.data) squares = squares_of<C, As>(mu, count);
      const double here = static_cast<double>(kl_of_tile<C>(p, t, squares, count));
      Baton& sums = relay.sums();
      sums.await(tile);
      sums.state[0] += here;
      if (tile + 1 == tiles) write_one<C>(p.kl, row, sums.state[0] + kl_of_row(p, params, lane));
      sums.hand_on(tile);
    }
    if (p.kl_kind == Kl::PerStep) {
      C* kl = values_of<AsIs<C>>(p.kl, row * p.steps + first);
      kl_steps<C, As>(p, params, lane, t, mu, first, count, kl);
    }
  }
}

// meanwhile(k, count): what memory is to be asked for while the noise of steps [k, k + count) is drawn.
template <class C, class Meanwhile>
RHOVAE_INLINE void eps_across(const Problem& p, const LaneKeys& keys, Group group, int64_t sample, C* to,
                              const Meanwhile& meanwhile) {
  if (p.eps.data) {
    meanwhile(0, p.steps);
    return read_across<C>(p, p.eps, group, p.steps, C(0), to, sample);
  }
  constexpr int64_t some = 16;
  U64 ids[2]{};
  rows_across<C>(static_cast<uint64_t>(group.first), ids);
  for (U64& id : ids) {
    id = noise_row(p.noise.row_offset, id, static_cast<uint64_t>(p.samples), static_cast<uint64_t>(sample));
  }
  for (int64_t k = 0; k < p.steps; k += some) {
    const int64_t left = p.steps - k, count = left < some + some / 2 ? left : some;
    meanwhile(k, count);
    normals_across<C>(keys, p.noise.offset + static_cast<uint64_t>(k / kNormalsPerBlock<C>), ids,
                      to + k * Lanes<C>::n, count);
    if (count > some) return;
  }
}

template <class C>
using ShortBuffer = C[(kShortRow + 8) * Lanes<C>::n];

// A group of short rows, a row a lane: their parameters step by step.
template <class C>
struct AcrossParameters {
  alignas(64) ShortBuffer<C> s_buffer, kl_of_s_buffer, rho_buffer, c_buffer, minus_log_c_buffer;
  Run<C> s, kl_of_s, rho, c, minus_log_c;  // indexed by k * n; rho[k] ties k - 1 and k, for k in [1, steps)

  RHOVAE_INLINE AcrossParameters(const Problem& p, const PerRow<C>& row, Group group) {
    constexpr int n = Lanes<C>::n;
    if (p.scale.step) {
      read_across<C>(p, p.scale, group, p.steps, neutral_scale<C>(p.logits), s_buffer);
      for (int64_t i = 0; i < p.steps * n; i += n) {
        const Scale<V<C>> v = scale_of<C>(p.logits, load<C>(s_buffer + i));
        store<C>(s_buffer + i, v.s);
        store<C>(kl_of_s_buffer + i, kl_of_scale(v.s, v.log_s));
      }
    } else {
      store<C>(s_buffer, row.s);
      store<C>(kl_of_s_buffer, kl_of_scale(row.s, row.log_s));
    }
    if (p.rho.step) {
      read_across<C>(p, p.rho, group, p.steps - 1, C(0), rho_buffer + n);
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
    s = {s_buffer, p.scale.step}, kl_of_s = {kl_of_s_buffer, p.scale.step};
    rho = {rho_buffer, p.rho.step}, c = {c_buffer, p.rho.step},
    minus_log_c = {minus_log_c_buffer, p.rho.step};
  }
};

// Over the steps [first, last), a row a lane.
template <class C>
RHOVAE_INLINE V<C> sum_across(const Run<C>& run, int64_t first, int64_t last) {
  constexpr int n = Lanes<C>::n;
  if (!run.step) return static_cast<C>(last - first) * run[0];
  V<C> sum{};
  for (int64_t k = first; k < last; ++k) sum += run[k * n];
  return sum;
}

template <class C>
void forward_across(const Forward& p, const LaneKeys& keys, const PerRow<C>& params, Group group) {
  constexpr int n = Lanes<C>::n;
  const int64_t length = p.steps * n;
  const AcrossParameters<C> t(p, params, group);
  alignas(64) ShortBuffer<C> mu, z, kl;  // z: eps at first, then what it becomes, step by step
  V<C> squares{};
  for (int64_t s = 0; p.z.data && s < p.samples; ++s) {
    eps_across<C>(p, keys, group, s, z, [&](int64_t k, int64_t count) RHOVAE_INLINE_BODY {
      if (p.steps < 16) return;  // the processor sees by itself where rows this short lead
      if (s == 0) prefetch_steps<C>(p, p.mu, group.next(), k, count);
      prefetch_steps<C>(p, p.z, group.next().of_sample(s, p.rows), k, count);
    });
    if (s == 0) read_across<C>(p, p.mu, group, p.steps, C(0), mu);
    V<C> x = load<C>(z), m = load<C>(mu);
    store<C>(z, sample(m, t.s[0], x));
    squares = m * m;
    for (int64_t i = n; i < length; i += n) {
      x = advance(t.rho[i], x, innovation(t.c[i], load<C>(z + i)));
      m = load<C>(mu + i);
      store<C>(z + i, sample(m, t.s[i], x));
      squares += m * m;
    }
    write_across<C>(p.z, group.of_sample(s, p.rows), p.steps, z);
  }
  if (p.kl_kind == Kl::None) return;
  if (!p.z.data) {
    read_across<C>(p, p.mu, group, p.steps, C(0), mu);
    for (int64_t i = 0; i < length; i += n) squares += load<C>(mu + i) * load<C>(mu + i);
  }
  if (p.kl_kind == Kl::PerRow) {
    store<C>(
        kl, kl_of_means(squares) + sum_across(t.kl_of_s, 0, p.steps) + sum_across(t.minus_log_c, 1, p.steps));
    write_run<C>(p.kl, group.first, group.rows, kl);
  } else {
    for (int64_t i = 0; i < length; i += n) {
      const V<C> here = kl_of_mean(load<C>(mu + i)) + t.kl_of_s[i];
      store<C>(kl + i, i > 0 ? here + t.minus_log_c[i] : here);
    }
    write_across<C>(p.kl, group, p.steps, kl);
  }
}

template <class C>
void forward_rows(const Forward& p, int64_t begin, int64_t end) {
  const LaneKeys keys = lane_keys(p.noise.seed);
  Relay relay(p.samples, 0, false);
  over_groups<C>(p, begin, end, [&](const PerRow<C>& params, Group group) {
    if (p.steps < kShortRow) return forward_across(p, keys, params, group);
    with_sample_type<C>(p.mu.type, [&](auto as) {
      for (int lane = 0; lane < group.rows; ++lane) {
        relay.begin_row();
        forward_along<C, decltype(as)>(p, keys, params, lane, group.first + lane, relay);
      }
    });
  });
}

template <class C>
void forward_shared(const Forward& p, int64_t row, Relay& relay) {
  with_sample_type<C>(p.mu.type, [&](auto as) {
    forward_along<C, decltype(as)>(p, lane_keys(p.noise.seed), PerRow<C>(p, {row, 1}), 0, row, relay);
  });
}

}  // namespace rhovae::RHOVAE_ISA
