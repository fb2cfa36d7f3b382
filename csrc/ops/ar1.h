#pragma once

// The two ops at the heart of the library for any device: `run` computes the rows of what was asked.

#include <tuple>

#include "arguments.h"

namespace rhovae::ops {

struct Ar1 {
  const Tensor& mu;
  const Tensor& scale;
  const Tensor& rho;
  const OptionalTensor& eps;
  std::optional<int64_t> num_samples;
  Noise noise;
  bool logits;
};

std::tuple<Tensor, Tensor> ar1_forward(const Ar1& call, bool sample, Kl kl, void (*run)(const Forward&));

// (dmu, dscale, drho, deps); deps is empty unless asked for.
std::tuple<Tensor, Tensor, Tensor, Tensor> ar1_backward(const Ar1& call, const OptionalTensor& dz,
                                                        const OptionalTensor& dkl, Kl kl, bool needs_deps,
                                                        void (*run)(const Backward&));

Tensor ar1_log_prob(const Tensor& z, const Tensor& mu, const Tensor& scale, const Tensor& rho, bool logits,
                    void (*run)(const LogProb&));

// (dz, dmu, dscale, drho)
std::tuple<Tensor, Tensor, Tensor, Tensor> ar1_log_prob_backward(const Tensor& dlog_prob, const Tensor& z,
                                                                 const Tensor& mu, const Tensor& scale,
                                                                 const Tensor& rho, bool logits,
                                                                 void (*run)(const LogProbBackward&));

}  // namespace rhovae::ops
