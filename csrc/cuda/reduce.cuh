#pragma once

// Very long rows: the first kernel, a map for every segment; and the one that adds up the segments' sums.

#include "backward.cuh"

namespace rhovae::cuda {

template <class T, class P>
__global__ void __launch_bounds__(BlockTeam::kThreads, 1)
    reduce_kernel(const __grid_constant__ Arguments<P> args) {
  using V = Arithmetic<T>;
  constexpr int N = kItems<T>;
  const P& p = args.problem;
  const Workspace<V> work = workspace_at<V>(args.workspace, p, args.plan);
  BlockTeam team(0);
  const OpenKey key(args.key);
  constexpr int kTile = BlockTeam::kThreads * N;
  // Unlike the second kernel of the gradients, this one takes every sample for itself.
  const int64_t units = p.samples * p.rows * args.plan.segments;
  for (int64_t unit = team.first_of_warp(); unit < units; unit += team.teams()) {
    const Span span = span_of<BlockTeam>(p, args.plan, unit, true);
    PerStepChain<T, BlockTeam> chain(p, span, team);
    const Normals<T> normals(p, key, span);
    SegmentMap<V> map{V(1), V(0), V(0)};
    Product<V> power{V(1), V(0)};
    for (int tile = 0; tile < span.steps; tile += kTile) {
      const int k = tile + team.rank() * N;
      V x[N];
      chain.load(k, span.steps);
      normals.load(k, span.steps, x);
#pragma unroll
      for (int j = 0; j < N; ++j) x[j] = innovation(chain.c(j), x[j]);
      chain.run(team, x, map.x_added);
      power = power * chain.power();
    }
    map.power = team.product(power);
    if constexpr (std::is_same_v<P, Backward>) {
      const Source<T> dz = Source<T>::of_sample(p.lead, p.dz, span);
      const Scales<T, true> scale(p, span);
      for (int tile = (span.steps - 1) / kTile * kTile; tile >= 0; tile -= kTile) {
        const int k = tile + team.rank() * N;
        V g[N];
        Scale<V> s[N];
        dz.load(k, 0, span.steps, g);
        scale.load(k, span.steps, s);
        chain.load(k, span.steps);
#pragma unroll
        for (int j = 0; j < N; ++j) g[j] = g[j] * s[j].s;
        chain.run_back(team, g, map.message_added);
      }
    }
    if (team.rank() == 0) work.maps[unit] = map;
  }
}

struct Sums {
  const void* parts;  // [row, segment], in the output's arithmetic type
  int64_t rows, segments;
  Output output;
};

// A warp a row.
template <class T>
__global__ void __launch_bounds__(WarpTeam<kWarp>::kThreads) sum_kernel(const __grid_constant__ Sums args) {
  using V = Arithmetic<T>;
  const WarpTeam<kWarp> team(kWarp);
  for (int64_t row = team.first_of_warp(); row < args.rows; row += team.teams()) {
    const V* parts = static_cast<const V*>(args.parts) + row * args.segments;
    V sum = V(0);
    for (int64_t i = team.rank(); i < args.segments; i += kWarp) sum += parts[i];
    sum = team.sum(sum);
    if (team.rank() == 0) Sink<T>(args.output, row).put(sum);
  }
}

}  // namespace rhovae::cuda
