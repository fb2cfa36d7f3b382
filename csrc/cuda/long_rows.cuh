#pragma once

// A very long row is cut into segments, a block each. A first kernel reduces every segment to what it does to
// the chain that enters it; the second starts each segment with what the segments before it make of the row's
// beginning. Sums over the row are kept per segment and added up in order.

#include "chain.cuh"
#include "noise.cuh"

namespace rhovae::cuda {

// x leaves a segment as power x + x_added; rho lambda, coming from the right, as power (rho lambda) +
// message_added.
template <class V>
struct SegmentMap {
  V power, x_added, message_added;
};

// In memory: the maps, [sample, row, segment]; then the sums, [quantity, row, segment].
constexpr int kSums = 2;
template <class V>
struct Workspace {
  SegmentMap<V>* maps;
  V* sums;
};
template <class V>
RHOVAE_HD Workspace<V> workspace_at(void* memory, const Problem& p, const Plan& plan) {
  auto* maps = static_cast<SegmentMap<V>*>(memory);
  return {maps, reinterpret_cast<V*>(maps + p.samples * p.rows * plan.segments)};
}
template <class V>
RHOVAE_HD int64_t workspace_size(const Problem& p, const Plan& plan) {
  if (plan.segments == 1) return 0;
  return p.rows * plan.segments * (p.samples * int64_t(sizeof(SegmentMap<V>)) + kSums * int64_t(sizeof(V)));
}

// What enters a segment: from the left x, from the right (kReverse) rho lambda.
template <bool kReverse, class V>
__device__ __forceinline__ V entering_segment(BlockTeam& team, const Workspace<V>& work, const Problem& p,
                                              const Plan& plan, const Span& span) {
  if (plan.segments == 1) return V(0);
  const SegmentMap<V>* maps = work.maps + (span.sample * p.rows + span.row) * plan.segments;
  const int64_t begin = kReverse ? span.segment + 1 : 0;
  const int64_t end = kReverse ? plan.segments : span.segment;
  const int64_t share = (end - begin + BlockTeam::kThreads - 1) / BlockTeam::kThreads;
  const int64_t from = begin + share * team.rank();
  const int64_t to = from + share < end ? from + share : end;
  Affine<V> f{V(1), V(0)};
  for (int64_t i = from; i < to; ++i) {
    const SegmentMap<V>& map = maps[kReverse ? to - 1 - (i - from) : i];
    f = compose(f, Affine<V>{map.power, kReverse ? map.message_added : map.x_added});
  }
  V value = V(0);
  team.scan<kReverse>(Product<V>{f.a, V(0)}, f.b, value);
  return value;
}

// A sum over the span: the row's result, or the segment's part of it.
template <class T, class V>
__device__ __forceinline__ void deliver(const Output& output, const Workspace<V>& work, int quantity,
                                        const Problem& p, const Plan& plan, const Span& span, V value) {
  if (plan.segments == 1)
    Sink<T>(output, span.row).put(value);
  else
    work.sums[(quantity * p.rows + span.row) * plan.segments + span.segment] = value;
}

}  // namespace rhovae::cuda
