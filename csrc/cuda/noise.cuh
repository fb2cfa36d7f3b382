#pragma once

// A thread's run of standard normals: drawn, or given.

#include "../core/philox.h"
#include "math.cuh"
#include "row.cuh"

namespace rhovae::cuda {

// A key that the host knows: the round keys travel with the launch and are read as constants.
struct KeyByValue {
  RoundKeys rounds;
  uint64_t offset;

  __device__ __forceinline__ const KeyByValue& open() const { return *this; }
};

// A key that lies in device memory, (seed, offset): a captured graph finds a new one there at every replay.
struct KeyInMemory {
  const uint64_t* at;

  __device__ __forceinline__ KeyByValue open() const {
    if (!at) return {};
    return {round_keys(at[0]), at[1]};
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

  __device__ __forceinline__ Normals(const Problem& p, const KeyByValue& key, const Span& span)
      : key_(key), given_(p.eps.data != nullptr) {
    if (given_) eps_ = Source<T>(p.lead, p.eps, span);
    const uint64_t row = noise_row(p.noise.row_offset, span.row, p.samples, span.sample);
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
      const uint64_t position = position_ + static_cast<uint32_t>((k + j) / kBlock);
      uint32_t words[4] = {static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32), row_low_,
                           row_high_};
      philox4x32_10<ScalarWord>(key_.rounds, words);
      normals_of_block(words, to + j);
    }
  }

 private:
  const KeyByValue& key_;
  Source<T> eps_;
  uint64_t position_;
  uint32_t row_low_, row_high_;
  bool given_;
};

}  // namespace rhovae::cuda
