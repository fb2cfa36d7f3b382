#pragma once

// z and the KL: one pass that reads mu and the parameters, draws the noise in registers and runs the chain.

#include "../core/kl.h"
#include "chain.cuh"
#include "long_rows.cuh"
#include "noise.cuh"

namespace rhovae::cuda {

template <class P>
struct Arguments {
  P problem;
  Plan plan;
  KeySource key;
  void* workspace;
};

template <class T, class Team, bool kPerStep>
class ForwardSpan {
 public:
  using V = Arithmetic<T>;
  static constexpr int N = kItems<T>;

  __device__ __forceinline__ ForwardSpan(const Arguments<Forward>& args, const OpenKey& key, const Span& span,
                                         Team& team)
      : args_(args),
        p_(args.problem),
        span_(span),
        team_(team),
        mu_(p_.lead, p_.mu, span),
        scale_(p_, span),
        chain_(p_, span, team),
        normals_(p_, key, span) {
    const int64_t start = span.sample_row * p_.steps + span.begin;
    if (p_.z.data) z_ = Sink<T>(p_.z, start);
    // The KL has no sample axis.
    kl_kind_ = span.sample == 0 ? p_.kl_kind : Kl::None;
    if (kl_kind_ == Kl::PerStep) kl_steps_ = Sink<T>(p_.kl, start);
  }

  __device__ __forceinline__ void work() {
    V carry = V(0);
    const Workspace<V> work = workspace_at<V>(args_.workspace, p_, args_.plan);
    if constexpr (!Team::kWithinWarp) carry = entering_segment<false>(team_, work, p_, args_.plan, span_);
    V kl = V(0);
    for (int tile = 0; tile < span_.steps || tile == 0; tile += team_.size() * N) {
      const int k = tile + team_.rank() * N;
      V mu[N], x[N];
      mu_.load(k, 0, span_.steps, mu);
      chain_.load(k, span_.steps);
      if (p_.z.data) {
        normals_.load(k, span_.steps, x);
#pragma unroll
        for (int j = 0; j < N; ++j) x[j] = innovation(chain_.c(j), x[j]);
        chain_.run(team_, x, carry);
      }
      if (scale_.per_step()) {
        Scale<V> s[N];
        scale_.load(k, span_.steps, s);
        finish_tile(k, mu, x, kl, [&](int j) { return s[j]; });
      } else {
        finish_tile(k, mu, x, kl, [&](int) { return scale_.row(); });
      }
    }
    // All of a team go the same way; the teams of a warp need not.
    if (p_.kl_kind == Kl::PerRow) {
      kl = team_.sum(kl);
      if (kl_kind_ == Kl::PerRow && team_.rank() == 0 && span_.steps > 0) {
        deliver<T>(p_.kl, work, 0, p_, args_.plan, span_, kl + kl_of_row());
      }
    }
  }

 private:
  template <class S>
  __device__ __forceinline__ void finish_tile(int k, const V (&mu)[N], const V (&x)[N], V& kl,
                                              const S& s) const {
    if (p_.z.data) {
      V z[N];
#pragma unroll
      for (int j = 0; j < N; ++j) z[j] = sample(mu[j], s(j).s, x[j]);
      z_.store(k, 0, span_.steps, z);
    }
    if (kl_kind_ == Kl::PerRow) {
      V here = V(0);  // by itself: a long row's sum keeps its digits
#pragma unroll
      for (int j = 0; j < N; ++j) {
        here += kl_of_mean(mu[j]);
        if (scale_.per_step() && k + j < span_.steps) here += s(j).kl;
        if constexpr (kPerStep) {
          if (chain_.per_step() && k + j < span_.steps) here += chain_.minus_log_c(j);
        }
      }
      kl += here;
    }
    if (kl_kind_ == Kl::PerStep) {
      V out[N];
#pragma unroll
      for (int j = 0; j < N; ++j) {
        V tie;
        if constexpr (kPerStep)
          tie = chain_.minus_log_c(j);
        else
          tie = span_.begin + k + j > 0 ? chain_.row().minus_log_c : V(0);
        out[j] = kl_of_mean(mu[j]) + s(j).kl + tie;
      }
      kl_steps_.store(k, 0, span_.steps, out);
    }
  }

  // What one value of s or rho for the row adds.
  __device__ __forceinline__ V kl_of_row() const {
    V kl = V(0);
    const V ties = static_cast<V>(span_.steps - (span_.begin == 0 ? 1 : 0));
    if (!scale_.per_step()) kl += static_cast<V>(span_.steps) * scale_.row().kl;
    if constexpr (kPerStep) {
      if (!chain_.per_step()) kl += ties * chain_.row().minus_log_c;
    } else {
      kl += ties * chain_.row().minus_log_c;
    }
    return kl;
  }

  const Arguments<Forward>& args_;
  const Forward& p_;
  const Span& span_;
  Team& team_;
  Source<T> mu_;
  Scales<T> scale_;
  Chain<T, Team, kPerStep> chain_;
  Normals<T> normals_;
  Sink<T> z_, kl_steps_;
  Kl kl_kind_;
};

template <class T, class Team, bool kPerStep>
__global__ void __launch_bounds__(Team::kThreads, 1)
    forward_kernel(const __grid_constant__ Arguments<Forward> args) {
  Team team(args.plan.lanes);
  const OpenKey key(args.key);
  for (int64_t first = team.first_of_warp(); first < args.plan.units; first += team.teams()) {
    const Span span = span_of<Team>(args.problem, args.plan, first + team.place_in_warp(), true);
    ForwardSpan<T, Team, kPerStep>(args, key, span, team).work();
  }
}

}  // namespace rhovae::cuda
