#pragma once

// Gradients of z and the KL by mu, s, rho and eps. The noise is drawn again, never stored. One rho a row
// needs one pass: its tangent runs forward beside x. Per step, or for the gradient of eps, the adjoint runs
// backward.

#include "../core/gradients.h"
#include "forward.h"

namespace rhovae::RHOVAE_ISA {

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
      RunSum<C> steps;
      for (int64_t i = 0; i < count; i += Lanes<C>::n) steps.add(h[i]);
      sum = steps.total();
    }
    all += sum;
    tied += first == 0 ? sum - static_cast<double>(buffer[0]) : sum;
  }
};

// One value for every step.
template <class C>
struct Same {
  V<C> value;
  RHOVAE_INLINE V<C> operator[](int64_t) const { return value; }
};

// dst = v of the first sample, or one more of them.
template <class C, bool first>
RHOVAE_INLINE void collect(C* sum, V<C> v) {
  store<C>(sum, first ? v : load<C>(sum) + v);
}
// Into its place where the row has a value a step, else into what one value for the row takes of it.
template <class C, bool first, bool steps>
RHOVAE_INLINE void collect(C* sum, V<C>& row, V<C> v) {
  if constexpr (steps)
    collect<C, first>(sum, v);
  else
    row += v;
}

// Sums over samples for one tile, or a group of short rows: step by step, or what one value for the row takes
// of it.
template <class C, class Buffer>
struct Gradients {
  alignas(64) Buffer gx, by_logit;
  V<C> gx_row{}, by_logit_row{};

  RHOVAE_INLINE void clear(int64_t length) {
    for (int64_t i = 0; i < length; i += Lanes<C>::n)
      store<C>(gx + i, V<C>{}), store<C>(by_logit + i, V<C>{});
  }
};
template <class C>
using TileGradients = Gradients<C, TileBuffer<C>>;
template <class C>
using AcrossGradients = Gradients<C, ShortBuffer<C>>;

// One rho: the part of x that waits for no other tile, register by register.
template <class C>
RHOVAE_INLINE void start_chain(const UniformScan<C>& scan, C c_row, const C* eps, bool row_begins,
                               int64_t count, C* xs) {
  V<C> c = splat<C>(c_row);
  if (row_begins) c[0] = 1;
  for (int64_t i = 0; i < count; i += Lanes<C>::n) {
    store<C>(xs + i, scan.within(innovation(c, load<C>(eps + i))));
    c = splat<C>(c_row);
  }
}

// From there x and its tangent together. by_logit collects g_k s_k t_k.
template <class C, class As, bool remembers, bool first_sample, bool scale_steps>
RHOVAE_INLINE void tangent_tile(const UniformScan<C>& scan, C rho_row, C c_row,
                                const TileParameters<C, Terms::Gradient>& p, const C* eps, const C* xs,
                                const typename As::Value* dz, bool row_begins, int64_t count,
                                double (&state)[4], TileGradients<C>& sum) {
  V<C> rho = splat<C>(rho_row), c = splat<C>(c_row);
  if (row_begins) rho[0] = 0, c[0] = 1;
  CarryOf<C, remembers> x_carry(state[0]), t_carry(state[1]);
  V<C> gx_row = sum.gx_row, by_logit_row = sum.by_logit_row;
  over_registers<C>(count, [&](int64_t i, auto left) RHOVAE_INLINE_BODY {
    const V<C> e = load<C>(eps + i), x_before = x_carry.lanes;
    const V<C> x = scan.join(load<C>(xs + i), x_carry);
    const V<C> t = scan.up(tangent_source(rho, c, shift_up<C, 1>(x_before, x), e), t_carry);
    const V<C> g = As::load(dz + i, left);
    collect<C, first_sample, scale_steps>(sum.gx + i, gx_row, g * x);
    by_logit_row += g * p.s[i] * t;
    rho = splat<C>(rho_row), c = splat<C>(c_row);
  });
  sum.gx_row = gx_row, sum.by_logit_row = by_logit_row;
  state[0] = x_carry.value(), state[1] = t_carry.value();
}

// The adjoint's value at a tile's first step, for the tile before it; it needs no noise.
template <class C, class As, bool remembers>
RHOVAE_INLINE void adjoint_carry(const TileParameters<C, Terms::Gradient>& p, const typename As::Value* dz,
                                 int64_t count, double& adjoint) {
  constexpr int n = Lanes<C>::n;
  CarryOf<C, remembers> lambda(adjoint);
  for (int64_t i = (count - 1) / n * n; i >= 0; i -= n) {
    const V<C> source = As::load(dz + i, static_cast<int>(count - i)) * p.s[i];
    scan_down<C>(load<C>(p.rho + i + 1), load<C>(p.c + i + 1), source, lambda);
  }
  adjoint = lambda.value();
}

// x over one tile, and what lambda_k multiplies: x_{k-1} - rho_k x_k.
template <class C, bool remembers>
RHOVAE_INLINE void chain_tile(const TileParameters<C, Terms::Gradient>& p, const C* eps, int64_t count,
                              double& x_last, C* xs, C* sources) {
  CarryOf<C, remembers> carry(x_last);
  for (int64_t i = 0; i < count; i += Lanes<C>::n) {
    const V<C> rho = load<C>(p.rho + i), c = load<C>(p.c + i), e = load<C>(eps + i);
    const V<C> before = carry.lanes;
    const V<C> x = scan_up<C>(rho, c, innovation(c, e), carry);
    store<C>(xs + i, x);
    store<C>(sources + i, tangent_source(rho, c, shift_up<C, 1>(before, x), e));
  }
  x_last = carry.value();
}

// lambda backward over one tile, for any rho.
template <class C, class As, bool remembers, bool first_sample, bool scale_steps, bool rho_steps>
RHOVAE_INLINE void adjoint_tile(const TileParameters<C, Terms::Gradient>& p, const C* xs, const C* sources,
                                const typename As::Value* dz, int64_t count, double lambda_after,
                                TileGradients<C>& sum, C* deps) {
  constexpr int n = Lanes<C>::n;
  CarryOf<C, remembers> carry(lambda_after);
  V<C> gx_row = sum.gx_row, by_logit_row = sum.by_logit_row;
  for (int64_t i = (count - 1) / n * n; i >= 0; i -= n) {
    const int left = static_cast<int>(count - i);
    const V<C> g = As::load(dz + i, left);
    const V<C> lambda = scan_down<C>(load<C>(p.rho + i + 1), load<C>(p.c + i + 1), g * p.s[i], carry);
    const V<C> gx = g * load<C>(xs + i), by_logit = lambda * load<C>(sources + i);
    collect<C, first_sample, scale_steps>(sum.gx + i, gx_row, gx);
    collect<C, first_sample, rho_steps>(sum.by_logit + i, by_logit_row, by_logit);
    if (deps) store_some<C>(deps + i, load<C>(p.c + i) * lambda, left);
  }
  sum.gx_row = gx_row, sum.by_logit_row = by_logit_row;
}

// Calls f(first_sample, scale_steps, rho_steps) with all three as constants.
template <class F>
RHOVAE_INLINE void with_kinds(const Backward& p, int64_t sample, const F& f) {
  with_constant(sample == 0, [&](auto first) {
    with_constant(p.scale.step, [&](auto scale_steps) {
      with_constant(p.rho.step, [&](auto rho_steps) { f(first, scale_steps, rho_steps); });
    });
  });
}

// dL/dmu_k = g_k + h_k mu_k, for steps [first, first + count) of one row.
template <class C, class AsG, class As, class H>
RHOVAE_INLINE void mean_gradient(const Backward& p, int64_t row, int64_t first, int64_t count,
                                 const typename AsG::Value* g, const H& h) {
  const auto* mu = values_of<As>(p.mu, row_start(p.lead, p.mu, row) + first);
  with_constant(p.dmu.type == kTypeOf<C>, [&](auto summed) {  // over rows that share mu, by the caller
    using To = std::conditional_t<summed, AsIs<C>, As>;
    auto* to = values_of<To>(p.dmu, row * p.steps + first);
    over_registers<C>(count, [&](int64_t i, auto left) RHOVAE_INLINE_BODY {
      To::store(to + i, AsG::load(g + i, left) + h[i] * As::load(mu + i, left), left);
    });
  });
}
// The same with g from dz; sums: a buffer, for its sum over samples.
template <class C, class As, class H>
RHOVAE_INLINE void mean_gradient(const Backward& p, int64_t row, int64_t first, int64_t count, const H& h,
                                 C* sums) {
  const int64_t start = p.dz.data ? row_start(p.lead, p.dz, row) + first : 0;
  if (p.dz.data && p.samples == 1) {
    return mean_gradient<C, As, As>(p, row, first, count, values_of<As>(p.dz, start), h);
  }
  std::memset(sums, 0, static_cast<size_t>(count) * sizeof(C));
  for (int64_t s = 0; p.dz.data && s < p.samples; ++s) {
    const auto* dz = values_of<As>(p.dz, s * p.dz.sample_stride + start);
    over_registers<C>(count, [&](int64_t i, auto left) RHOVAE_INLINE_BODY {
      store<C>(sums + i, load<C>(sums + i) + As::load(dz + i, left));
    });
  }
  mean_gradient<C, AsIs<C>, As>(p, row, first, count, sums, h);
}

// As: the type of mu and dz.
template <class C, class As>
void backward_along(const Backward& p, const LaneKeys& keys, const PerRow<C>& params, int lane, int64_t row,
                    Relay& relay, Scratch& scratch) {
  const Scratch::Scope scope(scratch);
  const bool adjoint = p.rho.step || p.deps.data;
  const int64_t scale_start = row_start(p.lead, p.scale, row), rho_start = row_start(p.lead, p.rho, row);
  const int64_t dz_start = p.dz.data ? row_start(p.lead, p.dz, row) : 0;
  const int64_t tiles = tiles_of(p), length = tile_of(p);
  const C rho_row = params.rho[lane], c_row = params.c[lane];
  const UniformScan<C> scan(rho_row, c_row);
  auto& t = scratch.make<TileParameters<C, Terms::Gradient>>();
  auto& sum = scratch.make<TileGradients<C>>();
  auto& kl = scratch.make<KlGradient<C>>();
  auto& eps_buffer = scratch.make<TileBuffer<C>>();
  auto& out = scratch.make<TileBuffer<C>>();
  auto& xs = scratch.make<TileBuffer<C>>();
  auto& sources = scratch.make<TileBuffer<C>>();
  const auto count_of = [&](int64_t tile) {
    const int64_t left = p.steps - tile * length;
    return left < length ? left : length;
  };
  const auto dz_of = [&](int64_t sample, int64_t tile) {
    return values_of<As>(p.dz, sample * p.dz.sample_stride + dz_start + tile * length);
  };

  if (adjoint && p.dz.data) {
    for (int64_t turn = relay.take_back(); turn + 1 < tiles; turn = relay.take_back()) {
      const int64_t tile = tiles - 1 - turn, count = count_of(tile);
      t.read(p, params, lane, scale_start, rho_start, tile * length, count, true);
      for (int64_t s = 0; s < p.samples; ++s) {
        Baton& lambda = relay.adjoint(s);
        lambda.await(turn);
        with_constant(t.remembers, [&](auto remembers) {
          adjoint_carry<C, As, remembers>(t, dz_of(s, tile), count, lambda.state[0]);
        });
        relay.adjoint_after(tile - 1, s) = lambda.state[0];
        lambda.hand_on(turn);
      }
    }
  }

  for (int64_t tile = relay.take(); tile < tiles; tile = relay.take()) {
    const int64_t first = tile * length, count = count_of(tile);
    const bool last = tile + 1 == tiles;
    t.read(p, params, lane, scale_start, rho_start, first, count, adjoint);
    kl.read(p, row, first, count);
    sum.gx_row = sum.by_logit_row = V<C>{};
    if (!p.dz.data) sum.clear(count);
    for (int64_t s = 0; p.dz.data && s < p.samples; ++s) {
      const C* eps = eps_along(p, keys, row, s, first, count, eps_buffer);
      const auto* dz = dz_of(s, tile);
      if (!adjoint) start_chain(scan, c_row, eps, first == 0, count, xs);
      Baton& chain = relay.chain(s);
      chain.await(tile);
      with_constant(t.remembers, [&](auto remembers) {
        if (adjoint) return chain_tile<C, remembers>(t, eps, count, chain.state[0], xs, sources);
        with_kinds(p, s, [&](auto first_sample, auto scale_steps, auto) {
          tangent_tile<C, As, remembers, first_sample, scale_steps>(scan, rho_row, c_row, t, eps, xs, dz,
                                                                    first == 0, count, chain.state, sum);
        });
      });
      chain.hand_on(tile);
      if (!adjoint) continue;
      relay.adjoint(s).await(tiles - 1 - tile);
      const int64_t to = (s * p.rows + row) * p.steps + first;
      C* deps = p.deps.data ? begin_run(p.deps, to, out) : nullptr;
      with_kinds(p, s, [&](auto first_sample, auto scale_steps, auto rho_steps) {
        with_constant(t.remembers, [&](auto remembers) {
          adjoint_tile<C, As, remembers, first_sample, scale_steps, rho_steps>(
              t, xs, sources, dz, count, last ? 0 : relay.adjoint_after(tile, s), sum, deps);
        });
      });
      if (deps) finish_run(p.deps, to, count, out);
    }

    mean_gradient<C, As>(p, row, first, count, kl.h, out);

    if (p.scale.step) {
      for (int64_t i = 0; i < count; i += Lanes<C>::n) {
        store<C>(out + i, scale_gradient(p, load<C>(sum.gx + i), kl.h[i], t.s[i]));
      }
      write_run(p.dscale, row * p.steps + first, count, out);
    }
    if (p.rho.step) {
      for (int64_t i = 0; i < count; i += Lanes<C>::n) {
        store<C>(out + i,
                 rho_gradient(p, load<C>(sum.by_logit + i), kl.h[i], load<C>(t.rho + i), load<C>(t.c + i)));
      }
      const int64_t skip = first == 0;  // nothing ties the first step to one before
      write_run(p.drho, row * (p.steps - 1) + first - 1 + skip, count - skip, out + skip);
    }
    if (p.scale.step && p.rho.step) continue;

    const double gx = static_cast<double>(sum_lanes<C>(sum.gx_row));
    const double by_logit = static_cast<double>(sum_lanes<C>(sum.by_logit_row));
    Baton& row_sums = relay.sums();
    row_sums.await(tile);
    double (&total)[4] = row_sums.state;
    total[0] += gx, total[1] += by_logit;
    kl.add_to(total[2], total[3], first, count);
    if (last && !p.scale.step) {
      const double s = static_cast<double>(t.s_buffer[0]);
      write_one<C>(p.dscale, row, scale_gradient(p, total[0], total[2], s));
    }
    if (last && !p.rho.step) {
      const double rho = static_cast<double>(rho_row), c = static_cast<double>(c_row);
      write_one<C>(p.drho, row, rho_gradient(p, total[1], total[3], rho, c));
    }
    row_sums.hand_on(tile);
  }
}

// The gradient of the KL of a group of short rows: zero, a value a row, or one a step.
template <class C>
class KlGradientAcross {
 public:
  RHOVAE_INLINE KlGradientAcross(const Backward& p, Group group, Scratch& scratch)
      : steps(p.steps), buffer(scratch.make<ShortBuffer<C>>()) {
    if (!p.dkl.data) return;
    step = p.dkl.step;
    if (step)
      read_across<C>(p, p.dkl, group, 0, steps, C(0), buffer);
    else
      row = row_values(p, p.dkl, group, C(0));
  }
  RHOVAE_INLINE V<C> operator[](int64_t at) const { return step ? load<C>(buffer + at) : row; }
  // Over the steps from `first` on.
  RHOVAE_INLINE V<C> sum_from(int64_t first) const {
    if (!step) return static_cast<C>(steps - first) * row;
    return sum_steps<C>(first, steps, [&](int64_t at) RHOVAE_INLINE_BODY { return load<C>(buffer + at); });
  }

 private:
  const int64_t steps;
  int64_t step = 0;
  V<C> row{};
  C* const buffer;
};

// One rho a row: x and its tangent together, from the ones before.
template <class C, bool first_sample, bool scale_steps, class Parameters>
RHOVAE_INLINE void tangent_across(const Parameters& p, const C* eps, const C* dz, int64_t first,
                                  int64_t count, V<C>& x_last, V<C>& t_last, AcrossGradients<C>& sum) {
  constexpr int n = Lanes<C>::n;
  const V<C> rho = p.rho(n), c = p.c(n);
  V<C> x = x_last, t = t_last;
  V<C> gx_row = sum.gx_row, by_logit_row = sum.by_logit_row;
  for (int64_t i = 0; i < count * n; i += n) {
    const V<C> e = load<C>(eps + i);
    if (first + i > 0) {
      t = advance(rho, t, tangent_source(rho, c, x, e));
      x = advance(rho, x, innovation(c, e));
    } else {
      x = e;
    }
    const V<C> g = load<C>(dz + i);
    collect<C, first_sample, scale_steps>(sum.gx + i, gx_row, g * x);
    by_logit_row += g * p.s(i) * t;
  }
  x_last = x, t_last = t;
  sum.gx_row = gx_row, sum.by_logit_row = by_logit_row;
}

// Any rho: x forward, then the adjoint backward, over whole rows. eps becomes its own gradient where that is
// asked for.
template <class C, bool first_sample, bool scale_steps, bool rho_steps, class Parameters>
RHOVAE_INLINE void adjoint_across(const Parameters& p, C* eps, const C* dz, int64_t length,
                                  AcrossGradients<C>& sum, bool deps, C* xs, C* sources) {
  constexpr int n = Lanes<C>::n;
  V<C> x = load<C>(eps);
  store<C>(xs, x), store<C>(sources, V<C>{});
  for (int64_t i = n; i < length; i += n) {
    const V<C> e = load<C>(eps + i);
    store<C>(sources + i, tangent_source(p.rho(i), p.c(i), x, e));
    x = advance(p.rho(i), x, innovation(p.c(i), e));
    store<C>(xs + i, x);
  }
  V<C> lambda{}, tie{};  // to the step after
  V<C> gx_row = sum.gx_row, by_logit_row = sum.by_logit_row;
  for (int64_t i = length - n; i >= 0; i -= n) {
    const V<C> g = load<C>(dz + i);
    lambda = advance(tie, lambda, g * p.s(i));
    const V<C> gx = g * load<C>(xs + i), by_logit = lambda * load<C>(sources + i);
    collect<C, first_sample, scale_steps>(sum.gx + i, gx_row, gx);
    collect<C, first_sample, rho_steps>(sum.by_logit + i, by_logit_row, by_logit);
    if (deps) store<C>(eps + i, i > 0 ? p.c(i) * lambda : lambda);
    if (i > 0) tie = p.rho(i);
  }
  sum.gx_row = gx_row, sum.by_logit_row = by_logit_row;
}

// The means' gradients, along the rows: as mu and dz lie.
template <class C>
RHOVAE_ALONE void mean_gradients(const Backward& p, Group group, V<C> h_row, Scratch& scratch) {
  const Scratch::Scope scope(scratch);
  auto& sums = scratch.make<ShortBuffer<C>>();
  auto& h = scratch.make<KlGradient<C>>();
  with_sample_type<C>(p.mu.type, [&](auto as) RHOVAE_INLINE_BODY {
    for (int lane = 0; lane < group.rows; ++lane) {
      const int64_t row = group.first + lane;
      if (p.dkl.data && p.dkl.step) {
        h.read(p, row, 0, p.steps);
        mean_gradient<C, decltype(as)>(p, row, 0, p.steps, h.h, sums);
      } else {
        mean_gradient<C, decltype(as)>(p, row, 0, p.steps, Same<C>{splat<C>(h_row[lane])}, sums);
      }
    }
  });
}

template <class C, bool steps>
RHOVAE_ALONE void backward_across(const Backward& p, const LaneKeys& keys, const PerRow<C>& params,
                                  Group group, Scratch& scratch) {
  const Scratch::Scope scope(scratch);
  constexpr int n = Lanes<C>::n;
  const int64_t length = p.steps * n;
  const bool adjoint = p.rho.step || p.deps.data;
  const Across<C, steps, Terms::Gradient> t(p, params, group, scratch);
  const KlGradientAcross<C> h(p, group, scratch);
  auto& sum = scratch.make<AcrossGradients<C>>();
  auto& eps = scratch.make<ShortBuffer<C>>();
  auto& dz = scratch.make<ShortBuffer<C>>();
  auto& xs = scratch.make<ShortBuffer<C>>();
  auto& sources = scratch.make<ShortBuffer<C>>();
  if (!p.dz.data) sum.clear(length);
  for (int64_t s = 0; p.dz.data && s < p.samples; ++s) {
    V<C> x_last{}, t_last{};
    over_stretches(
        p.steps, adjoint || steps ? p.steps : kStretch, [&](int64_t first, int64_t count) RHOVAE_INLINE_BODY {
          eps_across<C>(p, keys, group, s, first, count, eps,
                        [&](int64_t k, int64_t some) RHOVAE_INLINE_BODY {
                          prefetch_steps<C>(p, p.dz, group.next(), k, some, s);
                          if (s > 0) return;
                          t.prefetch_next(p, group, k, some);
                          prefetch_steps<C>(p, p.mu, group.next(), k, some);
                          prefetch_steps<C>(p, p.dmu, group.next(), k, some);
                          if (steps && p.scale.step) prefetch_steps<C>(p, p.dscale, group.next(), k, some);
                          if (steps && p.rho.step) prefetch_steps<C>(p, p.drho, group.next(), k, some);
                        });
          read_across<C>(p, p.dz, group, first, count, C(0), dz, s);
          const auto pass = [&](auto first_sample, auto scale_steps, auto rho_steps) RHOVAE_INLINE_BODY {
            if (rho_steps || p.deps.data)
              adjoint_across<C, first_sample, scale_steps, rho_steps>(t, eps, dz, length, sum, p.deps.data,
                                                                      xs, sources);
            else
              tangent_across<C, first_sample, scale_steps>(t, eps, dz, first, count, x_last, t_last, sum);
          };
          if constexpr (steps)
            with_kinds(p, s, pass);
          else
            with_constant(s == 0, [&](auto first) { pass(first, std::false_type{}, std::false_type{}); });
        });
    if (p.deps.data) write_across<C>(p.deps, group.of_sample(s, p.rows), p.steps, eps);
  }

  mean_gradients<C>(p, group, h[0], scratch);
  if (p.scale.step) {
    for (int64_t i = 0; i < length; i += n) {
      store<C>(sum.gx + i, scale_gradient(p, load<C>(sum.gx + i), h[i], t.s(i)));
    }
    write_across<C>(p.dscale, group, p.steps, sum.gx);
  } else {
    store<C>(sum.gx, scale_gradient(p, sum.gx_row, h.sum_from(0), t.s(0)));
    write_run<C>(p.dscale, group.first, group.rows, sum.gx);
  }
  if (p.rho.step) {
    for (int64_t i = n; i < length; i += n) {
      store<C>(sum.by_logit + i, rho_gradient(p, load<C>(sum.by_logit + i), h[i], t.rho(i), t.c(i)));
    }
    write_across<C>(p.drho, group, p.steps - 1, sum.by_logit + n);
  } else {
    store<C>(sum.by_logit, rho_gradient(p, sum.by_logit_row, h.sum_from(1), t.rho(n), t.c(n)));
    write_run<C>(p.drho, group.first, group.rows, sum.by_logit);
  }
}

template <class C>
void backward_rows(const Backward& p, int64_t begin, int64_t end) {
  const LaneKeys keys = lane_keys(p.noise.seed);
  Scratch& scratch = Scratch::of_thread();
  Relay relay(p.samples, tiles_of(p), false);
  over_groups<C>(p, begin, end, [&](const PerRow<C>& params, Group group) {
    if (p.steps < kShortRow) {
      return with_constant(p.scale.step || p.rho.step,
                           [&](auto steps) { backward_across<C, steps>(p, keys, params, group, scratch); });
    }
    with_sample_type<C>(p.mu.type, [&](auto as) {
      for (int lane = 0; lane < group.rows; ++lane) {
        relay.begin_row();
        backward_along<C, decltype(as)>(p, keys, params, lane, group.first + lane, relay, scratch);
      }
    });
  });
}

template <class C>
void backward_shared(const Backward& p, int64_t row, Relay& relay) {
  with_sample_type<C>(p.mu.type, [&](auto as) {
    backward_along<C, decltype(as)>(p, lane_keys(p.noise.seed), PerRow<C>(p, {row, 1}), 0, row, relay,
                                    Scratch::of_thread());
  });
}

}  // namespace rhovae::RHOVAE_ISA
