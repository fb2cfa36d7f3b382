#pragma once

#include "macros.h"

// KL(q || N(0, I)) in nats, exact by the chain rule (k = 1 has no rho term):
//   KL_k = 1/2 (mu_k^2 + s_k^2 - 1) - log s_k + m_k,   m_k = -1/2 log(1 - rho_k^2)
namespace rhovae {

template <class V>
RHOVAE_HD V kl_of_mean(V mu) {
  return 0.5f * mu * mu;
}

// The same of a sum over steps, from the sum of mu_k^2.
template <class V>
RHOVAE_HD V kl_of_means(V squares) {
  return 0.5f * squares;
}

// 1/2 (s^2 - 1) - log s from s - 1 and s - 1 - log s: a sum of two terms that are never negative.
template <class V>
RHOVAE_HD V kl_of_scale(V less_one, V excess) {
  return 0.5f * less_one * less_one + excess;
}

// Gradients of KL_k: by mu it is mu; by log s, s^2 - 1 = (s - 1)(s + 1); by s, s - 1/s; by the logit of rho,
// rho. The first times h, the gradient of the KL: of a zero h nothing is left, be s^2 infinite.
template <class V>
RHOVAE_HD V kl_gradient_log_scale(V h, V s) {
  return (h * (s - 1.0f)) * (s + 1.0f);
}

template <class V>
RHOVAE_HD V kl_gradient_scale(V s) {
  return s - 1.0f / s;
}

}  // namespace rhovae
