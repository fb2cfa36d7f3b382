#pragma once

// A thread's run of standard normals: drawn, or given.

#include "../core/philox.h"
#include "math.cuh"
#include "row.cuh"

namespace rhovae::cuda {

// The key: by value, or in device memory, where a captured graph finds a new one at every replay.
struct KeySource {
  uint64_t seed, offset;
  const uint64_t* in_memory;
};

// The round keys, one thread a pair, handed to all: computed anew in a loop, or read from the launch's
// constants, they would cost every tile. The whole block comes here.
struct OpenKey {
  RoundKeys rounds;
  uint64_t offset;

  __device__ __forceinline__ explicit OpenKey(const KeySource& source)
      : offset(source.in_memory ? source.in_memory[1] : source.offset) {
    __shared__ RoundKeys shared;
    if (threadIdx.x < kPhiloxRounds) {
      const uint64_t seed = source.in_memory ? source.in_memory[0] : source.seed;
      shared.first[threadIdx.x] = static_cast<uint32_t>(seed) + threadIdx.x * kPhiloxWeyl0;
      shared.second[threadIdx.x] = static_cast<uint32_t>(seed >> 32) + threadIdx.x * kPhiloxWeyl1;
    }
    block_barrier();
    rounds = shared;
  }
};

// float32's stream has four normals a block of four words, float64's two.
__device__ __forceinline__ void normals_of_block(uint32_t (&w)[4], float* to) {
  box_muller<NormalFunctions<float>>(w[0], w[1], to[0], to[1]);
  box_muller<NormalFunctions<float>>(w[2], w[3], to[2], to[3]);
}
__device__ __forceinline__ void normals_of_block(uint32_t (&w)[4], double* to) {
  box_muller<NormalFunctions<double>>(static_cast<uint64_t>(w[0]) << 32 | w[1],
                                      static_cast<uint64_t>(w[2]) << 32 | w[3], to[0], to[1]);
}

template <class T>
class Normals {
 public:
  using V = Arithmetic<T>;
  static constexpr int N = kItems<T>;
  static constexpr int kBlock = sizeof(V) == 8 ? kNormalsPerBlockDouble : kNormalsPerBlockFloat;

  __device__ __forceinline__ Normals(const Problem& p, const OpenKey& key, const Span& span)
      : key_(key), given_(p.eps.data != nullptr) {
    if (given_) eps_ = Source<T>::of_sample(p.lead, p.eps, span);
    const uint64_t row = p.samples == 1 ? noise_row(p.noise.row_offset, span.row, 1, 0)
                                        : noise_row(p.noise.row_offset, span.row, p.samples, span.sample);
    row_low_ = pinned(static_cast<uint32_t>(row)), row_high_ = pinned(static_cast<uint32_t>(row >> 32));
    position_ = key.offset + static_cast<uint64_t>(span.begin / kBlock);
  }

  __device__ __forceinline__ void load(int k, int steps, V (&to)[N]) const {
    if (given_) return eps_.load(k, 0, steps, to);
    draw(k, to);
  }
  __device__ __forceinline__ void draw(int k, V (&to)[N]) const {
#pragma unroll
    for (int j = 0; j < N; j += kBlock) {
      const uint64_t position = position_ + (static_cast<uint32_t>(k) + j) / kBlock;
      uint32_t words[4] = {static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32), row_low_,
                           row_high_};
      philox4x32_10<ScalarWord>(key_.rounds, words);
      normals_of_block(words, to + j);
    }
  }

 private:
  const OpenKey& key_;
  Source<T> eps_;
  uint64_t position_;
  uint32_t row_low_, row_high_;
  bool given_;
};

}  // namespace rhovae::cuda
