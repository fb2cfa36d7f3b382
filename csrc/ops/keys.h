#pragma once

// Where the noise of a call comes from: one key for all rows, or keys along some of the leading axes.

#include "../core/problem.h"
#include "checks.h"

namespace rhovae::ops {

// What a problem's `noise` and `keys` point to while its rows are computed. A single key in a device's memory
// is not looked at: it is for the device's kernels to read.
class Keys {
 public:
  Keys(const OptionalTensor& key, int64_t row_offset, const Tensor& mu, at::IntArrayRef lead);
  void put(Problem& problem) const;

 private:
  Noise noise_;
  Tensor words_, numbers_;  // of every row, where rows have keys of their own
  int64_t run_ = 1;
};

}  // namespace rhovae::ops
