#pragma once

#include "launch.cuh"
#include "log_prob.cuh"
#include "reduce.cuh"

namespace rhovae::cuda {

template <class T>
int log_prob_of(const LogProb& p, const Plan& plan, void* workspace, Stream stream) {
  const int error = with_team(plan, [&](auto team) {
    using Team = typename decltype(team)::type;
    return launch(log_prob_kernel<T, Team>, plan.grid, Team::kThreads, stream,
                  DensityArguments<LogProb>{p, plan, workspace});
  });
  if (error || plan.segments == 1) return error;
  return sum_segments<T>(p, plan, workspace, 0, p.log_prob, stream);
}

template <class T>
int log_prob_backward_of(const LogProbBackward& p, const Plan& plan, void* workspace, Stream stream) {
  int error = with_team(plan, [&](auto team) {
    using Team = typename decltype(team)::type;
    return launch(log_prob_backward_kernel<T, Team>, plan.grid, Team::kThreads, stream,
                  DensityArguments<LogProbBackward>{p, plan, workspace});
  });
  if (plan.segments == 1) return error;
  if (!error && !p.scale.step) error = sum_segments<T>(p, plan, workspace, 0, p.dscale, stream);
  if (!error && !p.rho.step) error = sum_segments<T>(p, plan, workspace, 1, p.drho, stream);
  return error;
}

}  // namespace rhovae::cuda
