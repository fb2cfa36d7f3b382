#pragma once

// What the ops may be given, said once for every device: real kernels check numbers, fake ones sizes that may
// be symbols. Each refusal is one sentence: the op, the argument, what was expected, what came.

#include <ATen/ATen.h>

#include <optional>

namespace rhovae::ops {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

template <class Int>  // int64_t or c10::SymInt
using Sizes = c10::SmallVector<Int, at::kDimVectorStaticSize>;

// All return the leading axes on which mu, s, rho and z agree.

template <class Int>
Sizes<Int> check_ar1(const char* op, const Tensor& mu, const Tensor& scale, const Tensor& rho,
                     const OptionalTensor& key, const OptionalTensor& eps,
                     const std::optional<Int>& num_samples, bool sample, int64_t kl);

template <class Int>
Sizes<Int> check_ar1_backward(const char* op, const OptionalTensor& dz, const OptionalTensor& dkl,
                              const Tensor& mu, const Tensor& scale, const Tensor& rho,
                              const OptionalTensor& key, const OptionalTensor& eps,
                              const std::optional<Int>& num_samples, int64_t kl, bool needs_deps);

template <class Int>
Sizes<Int> check_log_prob(const char* op, const Tensor& z, const Tensor& mu, const Tensor& scale,
                          const Tensor& rho);

template <class Int>
Sizes<Int> check_log_prob_backward(const char* op, const Tensor& dlog_prob, const Tensor& z, const Tensor& mu,
                                   const Tensor& scale, const Tensor& rho);

void check_draw_key(const Tensor& like, const std::optional<at::Generator>& generator);

}  // namespace rhovae::ops
