#pragma once

// The case that counts most, without the questions that the others have to ask at every tile: one s and one
// rho a row, noise drawn, the KL a sum over the row or not asked for. Tiles that are whole and aligned have a
// loop of their own.

#include "backward.cuh"
#include "forward.cuh"

namespace rhovae::cuda {

inline bool is_plain(const Problem& p, const Plan& plan) {
  return plan.regime != Regime::Block && !p.scale.step && !p.rho.step && !p.eps.data;
}
inline bool is_plain(const Forward& p, const Plan& plan) {
  return is_plain(static_cast<const Problem&>(p), plan) && p.z.data && p.kl_kind != Kl::PerStep;
}
inline bool is_plain(const Backward& p, const Plan& plan) {
  return is_plain(static_cast<const Problem&>(p), plan) && p.samples == 1 && p.dz.data && p.dz.step &&
         !p.dkl.step;
}

// body(k, whole) for every tile, all lanes of a warp the same way: whole, a type, says that the run [k, k +
// N) is inside the row and aligned.
template <int N, class Team, class Body>
__device__ __forceinline__ void over_tiles(const Team& team, int steps, bool aligned, const Body& body) {
  const int tile = team.size() * N;
  const int shift = team.rank() * N;
  const int whole = aligned ? steps - tile : -1;
  int k = 0;
#pragma unroll 1
  for (; k <= whole; k += tile) body(k + shift, std::true_type{});
  for (; k < steps; k += tile) body(k + shift, std::false_type{});
}

template <bool kWhole, class T, class V, int N>
__device__ __forceinline__ void load(const Source<T>& source, int k, int steps, V (&to)[N]) {
  if constexpr (kWhole)
    load_run(source.own() + static_cast<unsigned>(k), to);
  else
    source.load(k, 0, steps, to);
}
template <bool kWhole, class T, class V, int N>
__device__ __forceinline__ void store(const Sink<T>& sink, int k, int steps, V (&from)[N]) {
  if constexpr (kWhole)
    store_run(sink.own() + static_cast<unsigned>(k), from);
  else
    sink.store(k, 0, steps, from);
}

template <class T, class Team>
__global__ void __launch_bounds__(Team::kThreads, kBlocks<T, Team>)
    plain_forward_kernel(const __grid_constant__ Arguments<Forward> args) {
  using V = Arithmetic<T>;
  constexpr int N = kItems<T>;
  const Forward& p = args.problem;
  Team team(args.plan.lanes);
  const OpenKey key(args.key);
  for (int64_t first = team.first_of_warp(); first < args.plan.units; first += team.teams()) {
    const Span span = span_of<Team>(p, args.plan, first + team.place_in_warp(), true);
    const Scale<V> s = scale_of(p.logits, Source<T>(p.lead, p.scale, span).at(0));
    UniformChain<T, Team> chain(p, span, team);
    const Normals<T> normals(p, key, span);
    const Source<T> mu_at(p.lead, p.mu, span);
    const Sink<T> z_at(p.z, span.sample_row * p.steps);
    V carry = V(0), squares = V(0);
    chain.load(team.rank() * N, span.steps);
    const bool wide = span.steps > 0 && mu_at.per_step() && aligned(mu_at.own()) && aligned(z_at.own());
    over_tiles<N>(team, static_cast<int>(p.steps), team.all_of_warp(wide), [&](int k, auto whole) {
      constexpr bool kWhole = decltype(whole)::value;
      V mu[N], x[N];
      load<kWhole>(mu_at, k, span.steps, mu);
      normals.draw(k, x);
#pragma unroll
      for (int j = 0; j < N; ++j) x[j] = pinned(innovation(chain.c(j), x[j]));
      chain.run(team, x, carry);
      chain.load_next();
#pragma unroll
      for (int j = 0; j < N; ++j) {
        squares += mu[j] * mu[j];
        x[j] = sample(mu[j], s.s, x[j]);
      }
      store<kWhole>(z_at, k, span.steps, x);
    });
    if (p.kl_kind == Kl::None) continue;
    const V means = kl_of_means(team.sum(squares));
    if (team.rank() == 0 && span.steps > 0 && span.sample == 0) {
      const V steps = static_cast<V>(span.steps);
      Sink<T>(p.kl, span.row).put(means + steps * s.kl + (steps - V(1)) * chain.row().minus_log_c);
    }
  }
}

template <class T, class Team>
__global__ void __launch_bounds__(Team::kThreads, kBlocks<T, Team>)
    plain_backward_kernel(const __grid_constant__ Arguments<Backward> args) {
  using V = Arithmetic<T>;
  constexpr int N = kItems<T>;
  const Backward& p = args.problem;
  Team team(args.plan.lanes);
  const OpenKey key(args.key);
  const bool with_kl = kept(p.dkl.data != nullptr) != 0;
  for (int64_t first = team.first_of_warp(); first < args.plan.units; first += team.teams()) {
    const Span span = span_of<Team>(p, args.plan, first + team.place_in_warp(), false);
    const V s = Scales<T, true>(p, span).row().s;
    UniformChain<T, Team> chain(p, span, team);
    const Normals<T> normals(p, key, span);
    const Source<T> dz_at(p.lead, p.dz, span), mu_at(p.lead, p.mu, span);  // one sample
    const Sink<T> dmu_at(p.dmu, span.row * p.steps);
    const V h = with_kl ? Source<T>(p.lead, p.dkl, span).at(0) : V(0);
    V x_carry = V(0), t_carry = V(0), gx = V(0), gt = V(0);
    V mu[N] = {};  // stays zero without a KL
    chain.load(team.rank() * N, span.steps);
    const bool wide = span.steps > 0 && dz_at.own_type() && aligned(dz_at.own()) && aligned(dmu_at.own()) &&
                      dmu_at.own_type() && (!with_kl || (mu_at.per_step() && aligned(mu_at.own())));
    over_tiles<N>(team, static_cast<int>(p.steps), team.all_of_warp(wide), [&](int k, auto whole) {
      constexpr bool kWhole = decltype(whole)::value;
      V g[N], eps[N], x[N], t[N];
      load<kWhole>(dz_at, k, span.steps, g);
      normals.draw(k, eps);
#pragma unroll
      for (int j = 0; j < N; ++j) x[j] = pinned(innovation(chain.c(j), eps[j]));
      V previous = chain.run(team, x, x_carry);
#pragma unroll
      for (int j = 0; j < N; ++j) {
        t[j] = pinned(tangent_source(chain.rho(j), chain.c(j), previous, eps[j]));
        previous = x[j];
      }
      chain.run(team, t, t_carry);
      chain.load_next();
#pragma unroll
      for (int j = 0; j < N; ++j) gx += g[j] * x[j], gt += g[j] * t[j];
      if (with_kl) load<kWhole>(mu_at, k, span.steps, mu);
#pragma unroll
      for (int j = 0; j < N; ++j) g[j] = advance(h, mu[j], g[j]);
      store<kWhole>(dmu_at, k, span.steps, g);
    });
    gx = team.sum(gx), gt = team.sum(gt);
    if (team.rank() == 0 && span.steps > 0) {
      const V steps = static_cast<V>(span.steps);
      const Correlation<V>& r = chain.row();
      Sink<T>(p.dscale, span.row).put(scale_gradient(p, gx, steps * h, s));
      Sink<T>(p.drho, span.row).put(rho_gradient(p, s * gt, (steps - V(1)) * h, r.rho, r.c));
    }
  }
}

}  // namespace rhovae::cuda
