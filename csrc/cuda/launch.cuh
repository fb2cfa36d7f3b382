#pragma once

// The one way every kernel is launched, and which kernel a problem takes.

#include "launch.h"
#include "plan.h"
#include "platform.cuh"
#include "team.cuh"

namespace rhovae::cuda {

template <class Args>
int launch(void (*kernel)(Args), int64_t grid, int block, Stream stream, const Args& args) {
  if (grid > 0) RHOVAE_LAUNCH(kernel, dim3(static_cast<unsigned>(grid)), dim3(block), stream, args);
  return static_cast<int>(cudaGetLastError());
}

// f(team) for the plan's team, as a type.
template <class T>
struct As {
  using type = T;
};
template <class F>
int with_team(const Plan& plan, const F& f) {
  switch (plan.regime) {
    case Regime::Lanes:
      return f(As<WarpTeam<0>>{});
    case Regime::Warp:
      return f(As<WarpTeam<kWarp>>{});
    case Regime::Block:
      return f(As<BlockTeam>{});
  }
  return static_cast<int>(cudaErrorInvalidValue);
}

int64_t grid_for(int64_t teams, int teams_per_block);

// What each element type's own files define.
template <class T>
int forward_of(const Forward& problem, const Plan& plan, DeviceKey key, void* workspace, Stream stream);
template <class T>
int backward_of(const Backward& problem, const Plan& plan, DeviceKey key, void* workspace, Stream stream);
template <class T>
int log_prob_of(const LogProb& problem, const Plan& plan, void* workspace, Stream stream);
template <class T>
int log_prob_backward_of(const LogProbBackward& problem, const Plan& plan, void* workspace, Stream stream);

// Adds up the segments' sums number `quantity` into one value a row.
template <class T>
int sum_segments(const Problem& problem, const Plan& plan, void* workspace, int quantity,
                 const Output& output, Stream stream);

}  // namespace rhovae::cuda
