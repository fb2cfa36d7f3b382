#pragma once

// Gradients by mu, s, rho and eps: one pass that reads dz (and mu where the KL has a gradient) and draws the
// noise again. A row's samples follow one another in its team, so that their gradients add up in a fixed
// order.

#include "../core/gradients.h"
#include "forward.cuh"

namespace rhovae::cuda {

// The gradient of the KL along a row: none, one value, or one per step.
template <class T>
class KlGradient {
 public:
  using V = Arithmetic<T>;
  static constexpr int N = kItems<T>;

  __device__ __forceinline__ KlGradient(const Backward& p, const Span& span) : given_(p.dkl.data != nullptr) {
    if (given_) source_ = Source<T>(p.lead, p.dkl, span);
    row_ = given_ && !source_.per_step() ? source_.at(0) : V(0);
  }
  __device__ __forceinline__ bool given() const { return given_; }
  __device__ __forceinline__ void load(int k, int steps, V (&to)[N]) const {
    if (given_ && source_.per_step()) return source_.load(k, 0, steps, to);
#pragma unroll
    for (int j = 0; j < N; ++j) to[j] = k + j < steps ? row_ : V(0);
  }

 private:
  Source<T> source_;
  V row_;
  bool given_;
};

// What both ways through a row share: its operands, its sums, and what leaves.
template <class T, class Team, bool kPerStep>
class BackwardSpan {
 public:
  using V = Arithmetic<T>;
  static constexpr int N = kItems<T>;

  __device__ __forceinline__ BackwardSpan(const Arguments<Backward>& args, const OpenKey& key,
                                          const Span& span, Team& team)
      : args_(args),
        p_(args.problem),
        key_(key),
        span_(span),
        team_(team),
        mu_(p_.lead, p_.mu, span),
        scale_(p_, span),
        chain_(p_, span, team),
        kl_(p_, span) {
    const int64_t start = span.row * p_.steps + span.begin;
    dmu_ = Sink<T>(p_.dmu, start);
    if (scale_.per_step()) dscale_ = Sink<T>(p_.dscale, start);
    if (p_.rho.step) drho_ = Sink<T>(p_.drho, span.row * (p_.steps - 1) + span.begin - 1);
  }

  __device__ __forceinline__ void work() {
    const Workspace<V> work = workspace_at<V>(args_.workspace, p_, args_.plan);
    do {
      if constexpr (kPerStep)
        adjoint(work);
      else
        tangent();
    } while (++span_.sample < (p_.dz.data ? p_.samples : 1));
    if (!scale_.per_step()) {
      const V gx = team_.sum(gx_row_), h = team_.sum(h_row_);
      if (delivers()) {
        deliver<T>(p_.dscale, work, 0, p_, args_.plan, span_, scale_gradient(p_, gx, h, scale_.row().s));
      }
    }
    if (!p_.rho.step) {
      const V by_logit = team_.sum(by_logit_row_), h = team_.sum(h_tied_);
      if (delivers()) {
        const Correlation<V>& r = chain_.row();
        deliver<T>(p_.drho, work, 1, p_, args_.plan, span_, rho_gradient(p_, by_logit, h, r.rho, r.c));
      }
    }
  }

 private:
  // The tangent of x by the logit runs forward beside x: no second pass.
  __device__ __forceinline__ void tangent() {
    const Normals<T> normals(p_, key_, span_);
    const Source<T> dz = gradient_of_z();
    V x_carry = V(0), t_carry = V(0);
    for (int tile = 0; tile < span_.steps || tile == 0; tile += team_.size() * N) {
      const int k = tile + team_.rank() * N;
      V g[N], x[N], t[N];
      chain_.load(k, span_.steps);
      if (p_.dz.data) {
        dz.load(k, 0, span_.steps, g);
        V eps[N];
        normals.load(k, span_.steps, eps);
#pragma unroll
        for (int j = 0; j < N; ++j) x[j] = innovation(chain_.c(j), eps[j]);
        V previous = chain_.run(team_, x, x_carry);
#pragma unroll
        for (int j = 0; j < N; ++j) {
          t[j] = tangent_source(chain_.rho(j), chain_.c(j), previous, eps[j]);
          previous = x[j];
        }
        chain_.run(team_, t, t_carry);
      } else {
#pragma unroll
        for (int j = 0; j < N; ++j) g[j] = x[j] = t[j] = V(0);
      }
      finish_tile(k, g, x, [&](int j, V gs) { return gs * t[j]; });
    }
  }

  // x forward, then lambda backward; through several tiles x goes ahead once, to know what enters each.
  __device__ __forceinline__ void adjoint(const Workspace<V>& work) {
    const Normals<T> normals(p_, key_, span_);
    const Source<T> dz = gradient_of_z();
    const int64_t start = (span_.sample * p_.rows + span_.row) * p_.steps + span_.begin;
    Sink<T> deps;
    if (p_.deps.data) deps = Sink<T>(p_.deps, start);
    const int tile_steps = team_.size() * N;
    const int tiles = span_.steps > tile_steps ? (span_.steps + tile_steps - 1) / tile_steps : 1;
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    V x_carry = V(0), message_carry = V(0);
    if constexpr (!Team::kWithinWarp) {
      if (p_.dz.data) {
        x_carry = entering_segment<false>(team_, work, p_, args_.plan, span_);
        message_carry = entering_segment<true>(team_, work, p_, args_.plan, span_);
      }
    }
    V entering = x_carry;  // lane i keeps what enters tile i
    for (int tile = 0; tile + 1 < tiles && p_.dz.data; ++tile) {
      const int k = tile * tile_steps + team_.rank() * N;
      V x[N];
      chain_.load(k, span_.steps);
      normals.load(k, span_.steps, x);
#pragma unroll
      for (int j = 0; j < N; ++j) x[j] = innovation(chain_.c(j), x[j]);
      chain_.run(team_, x, x_carry);
      if (lane == tile + 1) entering = x_carry;
    }
    for (int tile = tiles - 1; tile >= 0; --tile) {
      const int k = tile * tile_steps + team_.rank() * N;
      V g[N], x[N], lambda[N], source[N];
      chain_.load(k, span_.steps);
      if (p_.dz.data) {
        dz.load(k, 0, span_.steps, g);
        V eps[N];
        normals.load(k, span_.steps, eps);
#pragma unroll
        for (int j = 0; j < N; ++j) x[j] = innovation(chain_.c(j), eps[j]);
        V carry = tiles > 1 ? broadcast(entering, tile, kWarp) : entering;
        V previous = chain_.run(team_, x, carry);
#pragma unroll
        for (int j = 0; j < N; ++j) {
          source[j] = tangent_source(chain_.rho(j), chain_.c(j), previous, eps[j]);
          previous = x[j];
        }
        Scale<V> s[N];
        scale_.load(k, span_.steps, s);
#pragma unroll
        for (int j = 0; j < N; ++j) lambda[j] = g[j] * s[j].s;
        chain_.run_back(team_, lambda, message_carry);
        if (p_.deps.data) {
#pragma unroll
          for (int j = 0; j < N; ++j) eps[j] = chain_.c(j) * lambda[j];
          deps.store(k, 0, span_.steps, eps);
        }
      } else {
#pragma unroll
        for (int j = 0; j < N; ++j) g[j] = x[j] = lambda[j] = source[j] = V(0);
      }
      finish_tile(k, g, x, [&](int j, V) { return lambda[j] * source[j]; });
    }
  }

  // by_logit(j, g_j s_j): what step j adds to the gradient by rho's logit.
  template <class F>
  __device__ __forceinline__ void finish_tile(int k, V (&g)[N], const V (&x)[N], const F& by_logit) {
    const bool add = span_.sample > 0;  // the KL's part belongs to the first sample
    const int steps = span_.steps;
    V h[N];
#pragma unroll
    for (int j = 0; j < N; ++j) h[j] = V(0);
    if (kl_.given() && !add) {
      kl_.load(k, steps, h);
#pragma unroll
      for (int j = 0; j < N; ++j) {
        h_row_ += h[j];
        if (span_.begin + k + j > 0) h_tied_ += h[j];
      }
    }
    if (scale_.per_step()) {
      Scale<V> s[N];
      scale_.load(k, steps, s);
      V out[N];
#pragma unroll
      for (int j = 0; j < N; ++j) out[j] = by_logit(j, g[j] * s[j].s);
      take_rho(k, out, h);
#pragma unroll
      for (int j = 0; j < N; ++j) out[j] = scale_gradient(p_, g[j] * x[j], h[j], s[j].s);
      dscale_.store(k, 0, steps, out, add);
    } else {
      V out[N];
#pragma unroll
      for (int j = 0; j < N; ++j) {
        gx_row_ += g[j] * x[j];
        out[j] = by_logit(j, g[j] * scale_.row().s);
      }
      take_rho(k, out, h);
    }
    if (kl_.given() && !add) {
      V mu[N];
      mu_.load(k, 0, steps, mu);
#pragma unroll
      for (int j = 0; j < N; ++j) g[j] = advance(h[j], mu[j], g[j]);
    }
    dmu_.store(k, 0, steps, g, add);
  }

  __device__ __forceinline__ void take_rho(int k, V (&by_logit)[N], const V (&h)[N]) {
    if constexpr (kPerStep) {
      if (chain_.per_step()) {
#pragma unroll
        for (int j = 0; j < N; ++j)
          by_logit[j] = rho_gradient(p_, by_logit[j], h[j], chain_.rho(j), chain_.c(j));
        drho_.store(k, span_.begin == 0 ? 1 : 0, span_.steps, by_logit, span_.sample > 0);
        return;
      }
    }
#pragma unroll
    for (int j = 0; j < N; ++j) by_logit_row_ += by_logit[j];
  }

  __device__ __forceinline__ Source<T> gradient_of_z() const {
    return p_.dz.data ? Source<T>::of_sample(p_.lead, p_.dz, span_) : Source<T>();
  }
  __device__ __forceinline__ bool delivers() const { return team_.rank() == 0 && span_.steps > 0; }

  const Arguments<Backward>& args_;
  const Backward& p_;
  const OpenKey& key_;
  Span span_;
  Team& team_;
  Source<T> mu_;
  Scales<T, true> scale_;
  Chain<T, Team, kPerStep> chain_;
  KlGradient<T> kl_;
  Sink<T> dmu_, dscale_, drho_;
  V gx_row_ = V(0), by_logit_row_ = V(0), h_row_ = V(0), h_tied_ = V(0);
};

template <class T, class Team, bool kPerStep>
__global__ void __launch_bounds__(Team::kThreads, 1)
    backward_kernel(const __grid_constant__ Arguments<Backward> args) {
  Team team(args.plan.lanes);
  const OpenKey key(args.key);
  for (int64_t first = team.first_of_warp(); first < args.plan.units; first += team.teams()) {
    const Span span = span_of<Team>(args.problem, args.plan, first + team.place_in_warp(), false);
    BackwardSpan<T, Team, kPerStep>(args, key, span, team).work();
  }
}

}  // namespace rhovae::cuda
