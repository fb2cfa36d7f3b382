#pragma once

#include "../core/problem.h"
#include "relay.h"

// The CPU kernels; the caller spreads the work over its threads. What a row yields depends neither on the
// range it is computed in, nor on the rows beside it, nor on how many threads share it.
namespace rhovae::cpu {

constexpr int64_t kShortRow = 320;  // rows shorter than this may share the lanes of a register

// Steps of a longer row worked on at a time, their noise in the first-level cache. Of a row of many tiles
// more, in the second: a tile's state takes long to reach a thread on a distant core.
constexpr int64_t kTile = 4096;
constexpr int64_t kLongTileBytes = 4 * kTile * sizeof(float);
inline int64_t tile_of(const Problem& p) {
  const int64_t longest =
      kLongTileBytes / size_of(p.mu.type == Type::Float64 ? Type::Float64 : Type::Float32);
  return p.steps < 4 * longest ? kTile : longest;
}
inline int64_t tiles_of(const Problem& p) {
  return (p.steps + tile_of(p) - 1) / tile_of(p);
}

template <class P>
struct Kernel {
  void (*rows)(const P&, int64_t begin, int64_t end);   // rows [begin, end)
  void (*shared)(const P&, int64_t row, Relay& relay);  // one row of kShortRow steps or more, by every thread
                                                        // that calls this with the same new relay
  void operator()(const P& p, int64_t begin, int64_t end) const { rows(p, begin, end); }
};

struct Kernels {
  const char* name;  // "avx512", "avx2", "portable"
  Kernel<Forward> forward;
  Kernel<Backward> backward;
  Kernel<LogProb> log_prob;
  Kernel<LogProbBackward> log_prob_backward;
  // The noise alone: steps [0, count) of one row, float32's stream or float64's.
  void (*normals_float)(const Noise&, uint64_t row, int64_t count, float* out);
  void (*normals_double)(const Noise&, uint64_t row, int64_t count, double* out);
};

// The best set that this processor has; or the one that RHOVAE_CPU_CAPABILITY names. Throws
// std::runtime_error when that one is unknown or not to be had here.
const Kernels& kernels();

// By name; null when this processor lacks it or this build does.
const Kernels* find_kernels(const char* name);

}  // namespace rhovae::cpu
