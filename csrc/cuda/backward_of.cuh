#pragma once

#include "backward.cuh"
#include "launch.cuh"
#include "plain_rows.cuh"
#include "reduce.cuh"

namespace rhovae::cuda {

// All but the sums over segments.
template <class T>
int launch_rows(const Arguments<Backward>& args, Stream stream) {
  const Backward& p = args.problem;
  const Plan& plan = args.plan;
  if (plan.segments > 1 && p.dz.data) {
    const int64_t units = p.samples * p.rows * plan.segments;
    const int error =
        launch(reduce_kernel<T, Backward>, grid_for(units, 1), BlockTeam::kThreads, stream, args);
    if (error) return error;
  }
  // One rho a row needs the tangent alone; its gradient by eps, or what crosses segments, the adjoint.
  const bool adjoint = p.rho.step || p.deps.data || plan.segments > 1;
  return with_team(plan, [&](auto team) {
    using Team = typename decltype(team)::type;
    if constexpr (Team::kWithinWarp) {
      if (is_plain(args.problem, plan)) {
        return launch(plain_backward_kernel<T, Team>, plan.grid, Team::kThreads, stream, args);
      }
    }
    auto* kernel = adjoint ? backward_kernel<T, Team, true> : backward_kernel<T, Team, false>;
    return launch(kernel, plan.grid, Team::kThreads, stream, args);
  });
}

template <class T>
int backward_of(const Backward& p, const Plan& plan, DeviceKey key, void* workspace, Stream stream) {
  int error = launch_rows<T>({p, plan, {p.noise.seed, p.noise.offset, key}, workspace}, stream);
  if (plan.segments == 1) return error;
  if (!error && !p.scale.step) error = sum_segments<T>(p, plan, workspace, 0, p.dscale, stream);
  if (!error && !p.rho.step) error = sum_segments<T>(p, plan, workspace, 1, p.drho, stream);
  return error;
}

}  // namespace rhovae::cuda
