#pragma once

// The CUDA kernels, one call an operation. No torch. Everything is asynchronous on the stream; what a call
// returns is the launch's own error (cudaGetLastError).

#include <cstdint>

#include "../core/problem.h"

struct CUstream_st;

namespace rhovae::cuda {

using Stream = CUstream_st*;
// In device memory, (seed, offset), read by the kernel; null: the problem's own seed and offset.
using DeviceKey = const uint64_t*;

// Bytes of device memory that a call needs beside its tensors, 0 but for very long rows; whatever was in it.
int64_t forward_workspace(const Forward& problem);
int64_t backward_workspace(const Backward& problem);
int64_t log_prob_workspace(const LogProb& problem);

int forward(const Forward& problem, DeviceKey key, void* workspace, Stream stream);
int backward(const Backward& problem, DeviceKey key, void* workspace, Stream stream);
int log_prob(const LogProb& problem, void* workspace, Stream stream);
int log_prob_backward(const LogProbBackward& problem, void* workspace, Stream stream);

// eps (samples, rows, steps) of a problem whose rows have keys of their own, in the arithmetic's type:
// `forward` and `backward` read it as given noise.
int row_noise(const Problem& problem, void* eps, Stream stream);

// Writes (seed, offset) to device memory from the state of torch's generator: values, or what the pointers
// hold once the stream gets there (a captured graph keeps its generator's state there), with `extra` added to
// the offset. The generator counts 32-bit words, a key blocks of four.
constexpr uint64_t kWordsPerBlock = 4;
struct KeyState {
  bool in_memory;
  uint64_t seed, offset;
  const int64_t *seed_at, *offset_at;
  uint64_t extra;
};
int write_key(const KeyState& state, uint64_t* key, Stream stream);

}  // namespace rhovae::cuda
