#pragma once

#include "kl.h"
#include "problem.h"

// From what the kernels sum up to the gradients of what the caller gave.
namespace rhovae {

// gx: the sum of g_k x_k; h: that of the KL's gradient.
template <class V>
RHOVAE_HD V scale_gradient(const Backward& p, V gx, V h, V s) {
  if (!p.dkl.data) return p.logits ? s * gx : gx;  // s = 0 is allowed where no KL divides by it
  return p.logits ? s * gx + kl_gradient_log_scale(h, s) : gx + h * kl_gradient_scale(s);
}

// by_logit: the sum of lambda_k (x_{k-1} - rho_k x_k).
template <class V>
RHOVAE_HD V rho_gradient(const Backward& p, V by_logit, V h, V rho, V c) {
  const V gradient = by_logit + h * rho;
  return p.logits ? gradient : gradient / (c * c);
}

}  // namespace rhovae
