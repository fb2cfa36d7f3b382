#pragma once

#include "../core/problem.h"

// The CPU kernels, for rows [begin, end) of a problem: the caller spreads rows over its threads. What a row
// yields depends neither on the range it is computed in nor on the rows beside it.
namespace rhovae::cpu {

struct Kernels {
  const char* name;  // "avx512", "avx2", "portable"
  void (*forward)(const Forward&, int64_t begin, int64_t end);
  void (*backward)(const Backward&, int64_t begin, int64_t end);
  void (*log_prob)(const LogProb&, int64_t begin, int64_t end);
  void (*log_prob_backward)(const LogProbBackward&, int64_t begin, int64_t end);
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
