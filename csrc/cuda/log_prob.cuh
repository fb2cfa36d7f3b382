#pragma once

// The log-density of z and its gradients. No recurrence: every step needs its neighbours alone, so a thread's
// run reads one step more on each side.

#include "../core/log_density.h"
#include "chain.cuh"
#include "long_rows.cuh"

namespace rhovae::cuda {

template <class P>
struct DensityArguments {
  P problem;
  Plan plan;
  void* workspace;
};

// Along a span: x from the step before a run to the step after it, and the residuals eps from its first step
// on.
template <class T>
class Residuals {
 public:
  using V = Arithmetic<T>;
  static constexpr int N = kItems<T>;

  __device__ __forceinline__ Residuals(const LogProb& p, const Span& span)
      : p_(p),
        span_(span),
        z_(p.lead, p.z, span),
        mu_(p.lead, p.mu, span),
        rho_(p.lead, p.rho, span, p.rho.step),
        scale_(p, span) {
    if (!rho_.per_step()) row_ = read(p.steps > 1 ? rho_.at(0) : V(0));
  }

  __device__ __forceinline__ void load(int k) {
    const int steps = span_.steps;
    V z[N], mu[N], given[N];
    z_.load(k, 0, steps, z);
    mu_.load(k, 0, steps, mu);
    scale_.load(k, steps, s_);
    if (rho_.per_step()) rho_.load(k, span_.begin == 0 ? 1 : 0, steps, given);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      x_[j + 1] = k + j < steps ? standardised(z[j], mu[j], s_[j]) : V(0);
      at_[j] = tie(k + j, rho_.per_step() ? given[j] : V(0));
    }
    x_[0] = neighbour(k - 1);
    x_[N + 1] = neighbour(k + N);
    at_[N] = tie(k + N, rho_.per_step() && within(k + N) ? rho_.at(k + N) : V(0));
#pragma unroll
    for (int j = 0; j <= N; ++j) {
      eps_[j] = residual<Functions<V>>(at_[j].rho, at_[j].c, x_[j], x_[j + 1]);
    }
  }

  __device__ __forceinline__ bool rho_per_step() const { return rho_.per_step(); }
  __device__ __forceinline__ bool scale_per_step() const { return scale_.per_step(); }
  __device__ __forceinline__ const Scale<V>& scale(int j) const { return s_[j]; }
  // s, but not zero where a log s has run away.
  __device__ __forceinline__ V divisor(const Scale<V>& scale) const {
    return p_.logits ? Functions<V>::at_least(scale.s, kSmallestScale<V>) : scale.s;
  }
  __device__ __forceinline__ const Correlation<V>& correlation(int j) const { return at_[j]; }
  __device__ __forceinline__ V x(int j) const { return x_[j + 1]; }
  __device__ __forceinline__ V eps(int j) const { return eps_[j]; }

 private:
  // A step of the row, counted from the span's first.
  __device__ __forceinline__ bool within(int k) const {
    return span_.begin + k >= 0 && span_.begin + k < p_.steps;
  }
  __device__ __forceinline__ V neighbour(int k) const {
    return within(k) && span_.steps > 0 ? standardised(z_.at(k), mu_.at(k), scale_.at(k)) : V(0);
  }
  __device__ __forceinline__ V standardised(V z, V mu, const Scale<V>& scale) const {
    return standardise<Functions<V>>(z, mu, divisor(scale));
  }
  // What ties step k to the one before it; nothing does at the row's first step, nor after its last.
  __device__ __forceinline__ Correlation<V> tie(int k, V given) const {
    if (span_.begin + k <= 0 || !within(k)) return untied<V>();
    return rho_.per_step() ? read(given) : row_;
  }
  __device__ __forceinline__ Correlation<V> read(V given) const {
    Correlation<V> tie = correlation_of(p_.logits, given);
    tie.c = Functions<V>::at_least(tie.c, kSmallestC<V>);
    return tie;
  }

  const LogProb& p_;
  const Span& span_;
  Source<T> z_, mu_, rho_;
  Scales<T> scale_;
  Correlation<V> row_;
  V x_[N + 2], eps_[N + 1];
  Scale<V> s_[N];
  Correlation<V> at_[N + 1];
};

template <class T, class Team>
__global__ void __launch_bounds__(Team::kThreads, 384 / Team::kThreads)
    log_prob_kernel(const __grid_constant__ DensityArguments<LogProb> args) {
  using V = Arithmetic<T>;
  constexpr int N = kItems<T>;
  const LogProb& p = args.problem;
  Team team(args.plan.lanes);
  const Workspace<V> work = workspace_at<V>(args.workspace, p, args.plan);
  for (int64_t first = team.first_of_warp(); first < args.plan.units; first += team.teams()) {
    const Span span = span_of<Team>(p, args.plan, first + team.place_in_warp(), false);
    Residuals<T> r(p, span);
    V sum = V(0);
    for (int k = team.rank() * N; k < span.steps; k += team.size() * N) {
      r.load(k);
      V here = V(0);
#pragma unroll
      for (int j = 0; j < N; ++j) {
        if (k + j < span.steps) {
          here += r.correlation(j).minus_log_c - r.scale(j).log_s - V(0.5) * r.eps(j) * r.eps(j) -
                  V(kHalfLogTwoPi);
        }
      }
      sum += here;
    }
    sum = team.sum(sum);
    if (team.rank() == 0 && span.steps > 0) deliver<T>(p.log_prob, work, 0, p, args.plan, span, sum);
  }
}

template <class T, class Team>
__global__ void __launch_bounds__(Team::kThreads, 384 / Team::kThreads)
    log_prob_backward_kernel(const __grid_constant__ DensityArguments<LogProbBackward> args) {
  using V = Arithmetic<T>;
  using M = Functions<V>;
  constexpr int N = kItems<T>;
  const LogProbBackward& p = args.problem;
  Team team(args.plan.lanes);
  const Workspace<V> work = workspace_at<V>(args.workspace, p, args.plan);
  for (int64_t first = team.first_of_warp(); first < args.plan.units; first += team.teams()) {
    const Span span = span_of<Team>(p, args.plan, first + team.place_in_warp(), false);
    const int64_t start = span.row * p.steps + span.begin;
    Residuals<T> r(p, span);
    const V h = Source<T>(p.lead, p.dlog_prob, span).at(0);
    const Sink<T> dz(p.dz, start), dmu(p.dmu, start);
    const Sink<T> dscale(p.dscale, start);
    const Sink<T> drho(p.drho, span.row * (p.steps - 1) + span.begin - 1);
    V s_row = V(0), rho_row = V(0);
    for (int k = team.rank() * N; k < span.steps; k += team.size() * N) {
      r.load(k);
      V by_z[N], by_mu[N], by_s[N], by_rho[N];
#pragma unroll
      for (int j = 0; j < N; ++j) {
        const Correlation<V>& here = r.correlation(j);
        const Correlation<V>& next = r.correlation(j + 1);
        const V s = r.divisor(r.scale(j));
        const V by_x = density_gradient_x<M>(h, density_flow<M>(r.eps(j), here.c), next.rho,
                                             density_flow<M>(r.eps(j + 1), next.c));
        by_z[j] = by_x / s;
        by_mu[j] = -by_z[j];
        const V by_log_s = density_gradient_log_scale<M>(h, by_x, r.x(j));
        by_s[j] = p.logits ? by_log_s : by_log_s / s;
        const V by_logit = density_gradient_logit<M>(h, here.rho, here.c, r.x(j - 1), r.eps(j));
        by_rho[j] = p.logits ? by_logit : by_logit / (here.c * here.c);
        if (k + j < span.steps) s_row += by_s[j], rho_row += by_rho[j];
      }
      dz.store(k, 0, span.steps, by_z);
      dmu.store(k, 0, span.steps, by_mu);
      if (r.scale_per_step()) dscale.store(k, 0, span.steps, by_s);
      if (r.rho_per_step()) drho.store(k, span.begin == 0 ? 1 : 0, span.steps, by_rho);
    }
    s_row = team.sum(s_row);
    rho_row = team.sum(rho_row);
    if (team.rank() == 0 && span.steps > 0) {
      if (!r.scale_per_step()) deliver<T>(p.dscale, work, 0, p, args.plan, span, s_row);
      if (!r.rho_per_step()) deliver<T>(p.drho, work, 1, p, args.plan, span, rho_row);
    }
  }
}

}  // namespace rhovae::cuda
