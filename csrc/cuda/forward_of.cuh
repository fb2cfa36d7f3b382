#pragma once

#include "forward.cuh"
#include "launch.cuh"
#include "plain_rows.cuh"
#include "reduce.cuh"

namespace rhovae::cuda {

// All but the sums over segments.
template <class T>
int launch_rows(const Arguments<Forward>& args, Stream stream) {
  const Plan& plan = args.plan;
  if (plan.segments > 1 && args.problem.z.data) {
    const int64_t units = args.problem.samples * args.problem.rows * plan.segments;
    const int error =
        launch(reduce_kernel<T, Forward>, grid_for(units, 1), BlockTeam::kThreads, stream, args);
    if (error) return error;
  }
  return with_team(plan, [&](auto team) {
    using Team = typename decltype(team)::type;
    if constexpr (Team::kWithinWarp) {
      if (is_plain(args.problem, plan)) {
        return launch(plain_forward_kernel<T, Team>, plan.grid, Team::kThreads, stream, args);
      }
    }
    auto* kernel = args.problem.rho.step ? forward_kernel<T, Team, true> : forward_kernel<T, Team, false>;
    return launch(kernel, plan.grid, Team::kThreads, stream, args);
  });
}

template <class T>
int forward_of(const Forward& p, const Plan& plan, DeviceKey key, void* workspace, Stream stream) {
  const int error = launch_rows<T>({p, plan, {p.noise.seed, p.noise.offset, key}, workspace}, stream);
  if (error || plan.segments == 1 || p.kl_kind != Kl::PerRow) return error;
  return sum_segments<T>(p, plan, workspace, 0, p.kl, stream);
}

}  // namespace rhovae::cuda
