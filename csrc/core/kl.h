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

template <class V>
RHOVAE_HD V kl_of_scale(V s, V log_s) {
  return 0.5f * (s * s - 1.0f) - log_s;
}

// Gradients of KL_k: by mu it is mu; by log s, s^2 - 1 = (s - 1)(s + 1); by s, s - 1/s; by the logit of rho,
// rho.
template <class V>
RHOVAE_HD V kl_gradient_log_scale(V s) {
  return (s - 1.0f) * (s + 1.0f);
}

template <class V>
RHOVAE_HD V kl_gradient_scale(V s) {
  return s - 1.0f / s;
}

}  // namespace rhovae
