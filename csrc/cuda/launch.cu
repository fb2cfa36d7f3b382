#include "launch.cuh"

#include "reduce.cuh"

namespace rhovae::cuda {

#if !defined(RHOVAE_CUDA_MAX_GRID)
#define RHOVAE_CUDA_MAX_GRID 0x7FFFFFFF
#endif

// Teams without a block of their own take the work that is left in turns.
int64_t grid_for(int64_t teams, int teams_per_block) {
  const int64_t blocks = (teams + teams_per_block - 1) / teams_per_block;
  return blocks < RHOVAE_CUDA_MAX_GRID ? blocks : RHOVAE_CUDA_MAX_GRID;
}

static int64_t divide_up(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

Plan plan_for(const Problem& p, bool samples_apart) {
  const int items = static_cast<int>(16 / size_of(p.mu.type));
  const int64_t block_tile = items * BlockTeam::kThreads;
  Plan plan{p.rows * (samples_apart ? p.samples : 1), 1, 0, Regime::Block, kWarp, 0};
  int teams_per_block = 1;
  if (p.steps <= int64_t{items} * kWarp * kWarpTiles) {
    plan.regime = Regime::Warp;
    if (p.steps <= items * kWarp / 2) {
      plan.regime = Regime::Lanes;
      for (plan.lanes = 1; plan.lanes * items < p.steps;) plan.lanes *= 2;
    }
    teams_per_block = WarpTeam<0>::kThreads / plan.lanes;
  } else if (p.steps > block_tile * kBlockTiles) {
    const int64_t tiles = divide_up(p.steps, block_tile);
    int64_t each = divide_up(tiles, kSegments);
    if (each > kSegmentTiles) each = kSegmentTiles;
    plan.segments = divide_up(tiles, each);
    plan.segment_steps = static_cast<int32_t>(each * block_tile);
    plan.units *= plan.segments;
  }
  plan.grid = static_cast<int32_t>(grid_for(plan.units, teams_per_block));
  return plan;
}

template <class T>
int sum_segments(const Problem& p, const Plan& plan, void* workspace, int quantity, const Output& output,
                 Stream stream) {
  using V = Arithmetic<T>;
  const V* sums = workspace_at<V>(workspace, p, plan).sums + quantity * p.rows * plan.segments;
  const int rows_per_block = WarpTeam<kWarp>::kThreads / kWarp;
  return launch(sum_kernel<T>, grid_for(p.rows, rows_per_block), WarpTeam<kWarp>::kThreads, stream,
                Sums{sums, p.rows, plan.segments, output});
}
template int sum_segments<float>(const Problem&, const Plan&, void*, int, const Output&, Stream);
template int sum_segments<double>(const Problem&, const Plan&, void*, int, const Output&, Stream);
template int sum_segments<BFloat16>(const Problem&, const Plan&, void*, int, const Output&, Stream);
template int sum_segments<Float16>(const Problem&, const Plan&, void*, int, const Output&, Stream);

// f(element) for mu's type.
template <class F>
static int with_type(const Problem& p, const F& f) {
  switch (p.mu.type) {
    case Type::Float32:
      return f(As<float>{});
    case Type::Float64:
      return f(As<double>{});
    case Type::BFloat16:
      return f(As<BFloat16>{});
    case Type::Float16:
      return f(As<Float16>{});
  }
  return static_cast<int>(cudaErrorInvalidValue);
}

static int64_t workspace_for(const Problem& p, const Plan& plan) {
  return p.mu.type == Type::Float64 ? workspace_size<double>(p, plan) : workspace_size<float>(p, plan);
}
int64_t forward_workspace(const Forward& p) {
  return workspace_for(p, plan_for(p, true));
}
int64_t backward_workspace(const Backward& p) {
  return workspace_for(p, plan_for(p, false));
}
int64_t log_prob_workspace(const LogProb& p) {
  return workspace_for(p, plan_for(p, false));
}

int forward(const Forward& p, DeviceKey key, void* workspace, Stream stream) {
  return with_type(p, [&](auto element) {
    return forward_of<typename decltype(element)::type>(p, plan_for(p, true), key, workspace, stream);
  });
}
int backward(const Backward& p, DeviceKey key, void* workspace, Stream stream) {
  return with_type(p, [&](auto element) {
    return backward_of<typename decltype(element)::type>(p, plan_for(p, false), key, workspace, stream);
  });
}
int log_prob(const LogProb& p, void* workspace, Stream stream) {
  return with_type(p, [&](auto element) {
    return log_prob_of<typename decltype(element)::type>(p, plan_for(p, false), workspace, stream);
  });
}
int log_prob_backward(const LogProbBackward& p, void* workspace, Stream stream) {
  return with_type(p, [&](auto element) {
    return log_prob_backward_of<typename decltype(element)::type>(p, plan_for(p, false), workspace, stream);
  });
}

struct KeyArguments {
  KeyState state;
  uint64_t* key;
};
__global__ void key_kernel(const __grid_constant__ KeyArguments args) {
  const KeyState& s = args.state;
  if (threadIdx.x > 0) return;
  args.key[0] = s.in_memory ? static_cast<uint64_t>(*s.seed_at) : s.seed;
  args.key[1] = ((s.in_memory ? static_cast<uint64_t>(*s.offset_at) + s.extra : s.offset)) / kWordsPerBlock;
}
int write_key(const KeyState& state, uint64_t* key, Stream stream) {
  return launch(key_kernel, 1, kWarp, stream, KeyArguments{state, key});
}

}  // namespace rhovae::cuda
