#pragma once

#include "../core/problem.h"

// How a row is worked on. All of it but the grid follows from the row's length and type, so that a row's
// result, to the last bit, is the same in any batch.
namespace rhovae::cuda {

enum class Regime : int32_t {
  Lanes,  // several rows a warp
  Warp,   // a warp a row
  Block   // a block a row; or, for a very long row, a block a segment, in two kernels
};

struct Plan {
  int64_t units;     // teams' worth of work: rows, times samples where they are apart, times segments
  int64_t segments;  // 1: the row is whole
  int32_t segment_steps;
  Regime regime;
  int32_t lanes;  // of a team
  int32_t grid;
};

// `samples_apart`: each sample of a row is a unit of its own.
Plan plan_for(const Problem& problem, bool samples_apart);

constexpr int kWarpTiles = 8;    // a warp goes through a row in at most so many tiles: 1024 steps of float32
constexpr int kBlockTiles = 8;   // and a block: 8192
constexpr int kSegments = 1024;  // a longer row has this many segments or fewer, until each has
constexpr int kSegmentTiles = 32;  // this many tiles; beyond that, more of them

}  // namespace rhovae::cuda
