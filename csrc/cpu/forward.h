#pragma once

// z and its KL. Long rows run along the row, registers of consecutive steps joined by a scan; short ones run
// across rows, a row a lane. Noise goes from Philox to a buffer in the first-level
// cache, never further.

#include "../core/ar1.h"
#include "../core/kl.h"
#include "scan.h"
#include "short_rows.h"
#include "tile.h"

namespace rhovae::RHOVAE_ISA {

template <class C>
using KlParameters = TileParameters<C, Terms::Kl>;

// What the steps of one tile add to the row's KL, from the sum of the squares of their means.
template <class C>
RHOVAE_INLINE double kl_of_tile(const Problem& p, const KlParameters<C>& t, double squares, int64_t count) {
  RunSum<C> sum;
  if (p.scale.step) {
    for (int64_t i = 0; i < count; i += Lanes<C>::n) sum.add(t.of_s[i]);
  }
  if (p.rho.step) {
    for (int64_t i = 0; i < count; i += Lanes<C>::n) sum.add(load<C>(t.minus_log_c + i));
  }
  return kl_of_means(squares) + sum.total();
}
template <class C, class As>
RHOVAE_INLINE double squares_of(const typename As::Value* mu, int64_t count) {
  RunSum<C> squares;
  over_registers<C>(count, [&](int64_t i, auto left) RHOVAE_INLINE_BODY {
    const V<C> m = As::load(mu + i, left);
    squares.add(m * m);
  });
  return squares.total();
}

// What the values given once a row add to its KL.
template <class C>
RHOVAE_INLINE double kl_of_row(const Problem& p, const PerRow<C>& row, int lane) {
  double sum = 0;
  if (!p.scale.step) {
    sum += static_cast<double>(p.steps) * static_cast<double>(row.kl_of_s[lane]);
  }
  if (!p.rho.step) sum += static_cast<double>(p.steps - 1) * static_cast<double>(row.minus_log_c[lane]);
  return sum;
}

template <class C, class As>
RHOVAE_INLINE void kl_steps(const Problem& p, const PerRow<C>& row, int lane, const KlParameters<C>& t,
                            const typename As::Value* mu, int64_t first, int64_t count, C* kl) {
  over_registers<C>(count, [&](int64_t i, auto left) RHOVAE_INLINE_BODY {
    V<C> tie = p.rho.step ? load<C>(t.minus_log_c + i) : splat<C>(row.minus_log_c[lane]);
    if (first + i == 0) tie[0] = 0;
    store_some<C>(kl + i, kl_of_mean(As::load(mu + i, left)) + t.of_s[i] + tie, left);
  });
}

// z from x, and mu's square on the way: read once for both.
template <class C, class As, class Count>
RHOVAE_INLINE void finish_sample(const KlParameters<C>& t, const typename As::Value* mu, V<C> x, int64_t i,
                                 Count left, RunSum<C>& squares, typename As::Value* z) {
  const V<C> m = As::load(mu + i, left);
  squares.add(m * m);
  As::store(z + i, sample(m, t.s[i], x), left);
}
// The chain over one tile. x: the value before the tile, then its own last. Returns the sum of mu's squares.
template <class C, class As, bool remembers>
RHOVAE_INLINE double sample_tile(const UniformScan<C>& scan, C c_row, const KlParameters<C>& t,
                                 const typename As::Value* mu, const C* eps, bool row_begins, int64_t count,
                                 double& x, typename As::Value* z) {
  V<C> c = splat<C>(c_row);
  CarryOf<C, remembers> carry(x);
  RunSum<C> squares;
  if (row_begins) c[0] = 1;
  over_registers<C>(count, [&](int64_t i, auto left) RHOVAE_INLINE_BODY {
    const V<C> x = scan.up(innovation(c, load<C>(eps + i)), carry);
    finish_sample<C, As>(t, mu, x, i, left, squares, z);
    c = splat<C>(c_row);
  });
  x = carry.value();
  return squares.total();
}
template <class C, class As, bool remembers>
RHOVAE_INLINE double sample_tile_steps(const KlParameters<C>& t, const typename As::Value* mu, const C* eps,
                                       int64_t count, double& x, typename As::Value* z) {
  CarryOf<C, remembers> carry(x);
  RunSum<C> squares;
  over_registers<C>(count, [&](int64_t i, auto left) RHOVAE_INLINE_BODY {
    const V<C> c = load<C>(t.c + i);
    const V<C> x = scan_up<C>(load<C>(t.rho + i), c, innovation(c, load<C>(eps + i)), carry);
    finish_sample<C, As>(t, mu, x, i, left, squares, z);
  });
  x = carry.value();
  return squares.total();
}
// rho = 0: no chain.
template <class C, class As>
RHOVAE_INLINE double sample_tile_independent(const KlParameters<C>& t, const typename As::Value* mu,
                                             const C* eps, int64_t count, typename As::Value* z) {
  RunSum<C> squares;
  over_registers<C>(count, [&](int64_t i, auto left) RHOVAE_INLINE_BODY {
    finish_sample<C, As>(t, mu, load<C>(eps + i), i, left, squares, z);
  });
  return squares.total();
}

// As: the type of mu and z.
template <class C, class As>
void forward_along(const Forward& p, const LaneKeys& keys, const PerRow<C>& params, int lane, int64_t row,
                   Relay& relay, Scratch& scratch) {
  const Scratch::Scope scope(scratch);
  const int64_t mu_start = row_start(p.lead, p.mu, row);
  const int64_t scale_start = row_start(p.lead, p.scale, row), rho_start = row_start(p.lead, p.rho, row);
  const UniformScan<C> scan(params.rho[lane], params.c[lane]);
  const bool independent = !p.rho.step && params.rho[lane] == 0;
  const int64_t tiles = tiles_of(p), length = tile_of(p);
  auto& t = scratch.make<KlParameters<C>>();
  auto& eps_buffer = scratch.make<TileBuffer<C>>();
  for (int64_t tile = relay.take(); tile < tiles; tile = relay.take()) {
    const int64_t first = tile * length, count = p.steps - first < length ? p.steps - first : length;
    const auto* mu = values_of<As>(p.mu, mu_start + first);
    t.read(p, params, lane, scale_start, rho_start, first, count, false);
    double squares = 0;
    for (int64_t sample = 0; p.z.data && sample < p.samples; ++sample) {
      const C* eps = eps_along(p, keys, row, sample, first, count, eps_buffer);
      auto* z = values_of<As>(p.z, (sample * p.rows + row) * p.steps + first);
      if (independent) {
        squares = sample_tile_independent<C, As>(t, mu, eps, count, z);
      } else {
        Baton& chain = relay.chain(sample);
        chain.await(tile);
        with_constant(t.remembers, [&](auto remembers) {
          double& x = chain.state[0];
          squares = p.rho.step ? sample_tile_steps<C, As, remembers>(t, mu, eps, count, x, z)
                               : sample_tile<C, As, remembers>(scan, params.c[lane], t, mu, eps, first == 0,
                                                               count, x, z);
        });
        chain.hand_on(tile);
      }
    }
    if (p.kl_kind == Kl::PerRow) {
      if (!p.z.data) squares = squares_of<C, As>(mu, count);
      const double here = kl_of_tile<C>(p, t, squares, count);
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

// What a group's chain has yielded over steps [first, first + count) of one sample, and where it belongs.
struct Drawn {
  Group group;
  int64_t sample, first, count;
};

// z from its deviations (deviation[k * n + lane]), along the rows, so that mu is read as it lies. Returns the
// rows' sums of mu^2, where they are wanted.
template <class C, bool squares_wanted>
RHOVAE_ALONE V<C> write_samples(const Forward& p, const Drawn& drawn, const C* deviations) {
  constexpr int n = Lanes<C>::n;
  V<C> squares{};
  int64_t start[n];
  row_starts<C>(p, p.mu, drawn.group, 0, start);
  with_sample_type<C>(p.mu.type, [&](auto as) RHOVAE_INLINE_BODY {
    using As = decltype(as);
    const auto* mu = values_of<As>(p.mu, drawn.first);
    auto* z = values_of<As>(p.z, drawn.group.of_sample(drawn.sample, p.rows).first * p.steps + drawn.first);
    for (int64_t k = 0; k < drawn.count; k += n) {
      V<C> block[n];
#pragma GCC unroll 16
      for (int i = 0; i < n; ++i) block[i] = load<C>(deviations + (k + i) * n);
      with_block<C>(drawn.group.rows, drawn.count - k, [&](auto rows, auto left) RHOVAE_INLINE_BODY {
        transpose_from<C>(block, left);
#pragma GCC unroll 16
        for (int lane = 0; lane < n; ++lane) {
          V<C> m{};
          if (lane < rows) {
            m = as.load(mu + start[lane] + k, left);
            as.store(z + lane * p.steps + k, m + block[lane], left);
          }
          block[lane] = m * m;
        }
      });
      if constexpr (squares_wanted) squares += sum_rows<C>(block);
    }
  });
  return squares;
}

// The KL of a group of short rows without z, or of every step.
template <class C, class Parameters>
void kl_across(const Forward& p, const Parameters& t, Group group, Scratch& scratch) {
  constexpr int n = Lanes<C>::n;
  const int64_t length = p.steps * n;
  const Scratch::Scope scope(scratch);
  auto& kl = scratch.make<ShortBuffer<C>>();
  read_across<C>(p, p.mu, group, 0, p.steps, C(0), kl);
  if (p.kl_kind == Kl::PerRow) {
    const V<C> squares = sum_steps<C>(0, p.steps, [&](int64_t i) RHOVAE_INLINE_BODY {
      const V<C> mu = load<C>(kl + i);
      return mu * mu;
    });
    store<C>(kl, kl_of_means(squares) + t.kl_without_means(p.steps));
    return write_run<C>(p.kl, group.first, group.rows, kl);
  }
  for (int64_t i = 0; i < length; i += n) {
    const V<C> here = kl_of_mean(load<C>(kl + i)) + t.kl_of_s(i);
    store<C>(kl + i, i > 0 ? here + t.minus_log_c(i) : here);
  }
  write_across<C>(p.kl, group, p.steps, kl);
}

// Groups of short rows, a row a lane. The chain is a long wait for few instructions, so what it yields is
// written only after the noise that follows it has been drawn.
template <class C>
class ForwardAcross {
 public:
  RHOVAE_INLINE ForwardAcross(const Forward& p, const LaneKeys& keys, Scratch& scratch)
      : p(p),
        keys(keys),
        scratch(scratch),
        buffers{scratch.make<ShortBuffer<C>>(), scratch.make<ShortBuffer<C>>()} {}

  // `steps`: s or rho has a value a step, worked out once for all samples.
  template <bool steps>
  RHOVAE_ALONE void add(const PerRow<C>& params, Group group) {
    const Scratch::Scope scope(scratch);
    const Across<C, steps, Terms::Kl> t(p, params, group, scratch);
    if (p.kl_kind == Kl::PerStep || (p.kl_kind == Kl::PerRow && !p.z.data)) {
      kl_across<C>(p, t, group, scratch);
    }
    for (int64_t s = 0; p.z.data && s < p.samples; ++s) {
      const auto meanwhile = [&](int64_t k, int64_t count) RHOVAE_INLINE_BODY {
        if (p.steps < 16) return;  // the processor sees by itself where rows this short lead
        if (s == 0) {
          t.prefetch_next(p, group, k, count);
          prefetch_steps<C>(p, p.mu, group.next(), k, count);
        }
        prefetch_steps<C>(p, p.z, group.next().of_sample(s, p.rows), k, count);
      };
      V<C> x{};
      over_stretches(p.steps, steps ? p.steps : kStretch,
                     [&](int64_t first, int64_t count) RHOVAE_INLINE_BODY {
                       C* values = buffers[turn];
                       eps_across<C>(p, keys, group, s, first, count, values, meanwhile);
                       finish();
                       x = chain(t, x, first, count, values);
                       drawn = {group, s, first, count};
                       turn = 1 - turn;
                     });
      if (s == 0) rest_of_kl = t.kl_without_means(p.steps);
    }
  }

  // What is still to be written.
  RHOVAE_INLINE void finish() {
    if (drawn.count == 0) return;
    const C* deviations = buffers[1 - turn];
    if (drawn.sample > 0 || p.kl_kind != Kl::PerRow) {
      write_samples<C, false>(p, drawn, deviations);
    } else {
      squares += write_samples<C, true>(p, drawn, deviations);
      if (drawn.first + drawn.count == p.steps) {
        alignas(64) C kl[Lanes<C>::n];
        store<C>(kl, kl_of_means(squares) + rest_of_kl);
        write_run<C>(p.kl, drawn.group.first, drawn.group.rows, kl);
        squares = V<C>{};
      }
    }
    drawn.count = 0;
  }

 private:
  // eps becomes the deviations. Returns the last x.
  template <class Parameters>
  static RHOVAE_INLINE V<C> chain(const Parameters& t, V<C> x, int64_t first, int64_t count, C* values) {
    constexpr int n = Lanes<C>::n;
    int64_t i = 0;
    if (first == 0) {
      x = load<C>(values);
      store<C>(values, deviation(t.s(0), x));
      i = n;
    }
    for (; i < count * n; i += n) {
      const int64_t at = first * n + i;
      x = advance(t.rho(at), x, innovation(t.c(at), load<C>(values + i)));
      store<C>(values + i, deviation(t.s(at), x));
    }
    return x;
  }

  const Forward& p;
  const LaneKeys& keys;
  Scratch& scratch;
  C* const buffers[2];
  V<C> squares{}, rest_of_kl{};
  Drawn drawn{};
  int turn = 0;
};

// Rows shorter than this run across rows. Of fewer lanes the scan takes fewer rounds.
template <class C>
constexpr int64_t kShortForward = Lanes<C>::n < 16 ? kShortRow / 2 : kShortRow;

template <class C>
void forward_rows(const Forward& p, int64_t begin, int64_t end) {
  const LaneKeys keys = lane_keys(p.noise.seed);
  Scratch& scratch = Scratch::of_thread();
  const Scratch::Scope scope(scratch);
  Relay relay(p.samples, 0, false);
  ForwardAcross<C> across(p, keys, scratch);
  over_groups<C>(p, begin, end, [&](const PerRow<C>& params, Group group) {
    if (p.steps < kShortForward<C>) {
      return with_constant(p.scale.step || p.rho.step,
                           [&](auto steps) { across.template add<steps>(params, group); });
    }
    with_sample_type<C>(p.mu.type, [&](auto as) {
      for (int lane = 0; lane < group.rows; ++lane) {
        relay.begin_row();
        forward_along<C, decltype(as)>(p, keys, params, lane, group.first + lane, relay, scratch);
      }
    });
  });
  across.finish();
}

template <class C>
void forward_shared(const Forward& p, int64_t row, Relay& relay) {
  with_sample_type<C>(p.mu.type, [&](auto as) {
    forward_along<C, decltype(as)>(p, lane_keys(p.noise.seed), PerRow<C>(p, {row, 1}), 0, row, relay,
                                   Scratch::of_thread());
  });
}

}  // namespace rhovae::RHOVAE_ISA
