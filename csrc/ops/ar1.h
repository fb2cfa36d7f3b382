#pragma once

// The two ops at the heart of the library for any device: `run` computes the rows of what was asked.

#include <functional>
#include <tuple>

#include "arguments.h"

namespace rhovae::ops {

// Computes the rows of a problem.
template <class P>
using Run = std::function<void(const P&)>;

struct Ar1 {
  const Tensor& mu;
  const Tensor& scale;
  const Tensor& rho;
  const OptionalTensor& key;  // on a device: its words are for `run` to find
  const OptionalTensor& eps;
  std::optional<int64_t> num_samples;
  int64_t row_offset;
  bool logits;
};

std::tuple<Tensor, Tensor> ar1_forward(const Ar1& call, bool sample, int64_t kl, const Run<Forward>& run);

// (dmu, dscale, drho, deps); deps is empty unless asked for.
std::tuple<Tensor, Tensor, Tensor, Tensor> ar1_backward(const Ar1& call, const OptionalTensor& dz,
                                                        const OptionalTensor& dkl, int64_t kl,
                                                        bool needs_deps, const Run<Backward>& run);

Tensor ar1_log_prob(const Tensor& z, const Tensor& mu, const Tensor& scale, const Tensor& rho, bool logits,
                    const Run<LogProb>& run);

// (dz, dmu, dscale, drho)
std::tuple<Tensor, Tensor, Tensor, Tensor> ar1_log_prob_backward(const Tensor& dlog_prob, const Tensor& z,
                                                                 const Tensor& mu, const Tensor& scale,
                                                                 const Tensor& rho, bool logits,
                                                                 const Run<LogProbBackward>& run);

}  // namespace rhovae::ops
