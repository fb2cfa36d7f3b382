#pragma once

#include <cstdint>

#include "macros.h"

// What a kernel is asked to do: plain data, the same for every device. No torch.
namespace rhovae {

enum class Type : int32_t { Float32, Float64, BFloat16, Float16 };

RHOVAE_HD int64_t size_of(Type type) {
  return type == Type::Float64 ? 8 : type == Type::Float32 ? 4 : 2;
}

constexpr int kMaxAxes = 6;

// The leading axes, collapsed as far as every operand's strides allow: most often there is one.
struct Leading {
  int32_t axes;
  int64_t size[kMaxAxes];
};

// A tensor over (samples, leading axes, steps). Strides count elements; 0 repeats a value.
struct Operand {
  const void* data;
  Type type;
  int32_t step;  // 1: a value per step of the row; 0: one value per row
  int64_t sample_stride;
  int64_t stride[kMaxAxes];
};

RHOVAE_HD int64_t row_start(const Leading& lead, const Operand& operand, int64_t row) {
  if (lead.axes == 1) return row * operand.stride[0];
  int64_t start = 0;
  for (int axis = lead.axes - 1; axis > 0; --axis) {
    start += row % lead.size[axis] * operand.stride[axis];
    row /= lead.size[axis];
  }
  return start + row * operand.stride[0];
}

// Outputs are contiguous over (samples, rows, steps); null: not asked for.
struct Output {
  void* data;
  Type type;
};

enum class Kl : int32_t { None, PerRow, PerStep };

struct Noise {
  uint64_t seed;
  uint64_t offset;
  uint64_t row_offset;
};

// Where rows have keys of their own, of every row: (seed, offset), and its number among the rows of its key,
// in place of the row itself. The rows of a key follow one another, `run` of them at a time.
struct RowKeys {
  const uint64_t* words;  // null: one key for all rows
  const int64_t* numbers;
  int64_t run;
};

struct Problem {
  int64_t rows;
  int64_t steps;  // d
  int64_t samples;
  Leading lead;
  Operand mu;
  Operand scale;  // s, or log s with logits
  Operand rho;    // rho, or its logit; per step: steps - 1 values, the first tying steps 1 and 2
  Operand eps;    // null data: draw
  bool logits;
  Noise noise;
  RowKeys keys;
};

struct Forward : Problem {
  Output z;
  Output kl;
  Kl kl_kind;
};

struct Backward : Problem {
  Operand dz;   // of mu's type; null data: z took no gradient
  Operand dkl;  // likewise; step 1 for a gradient per step
  Output dmu, dscale, drho, deps;
};

struct LogProb : Problem {  // samples and eps take no part: z is one more operand over the leading axes
  Operand z;
  Output log_prob;
};

struct LogProbBackward : LogProb {
  Operand dlog_prob;
  Output dz, dmu, dscale, drho;
};

}  // namespace rhovae
