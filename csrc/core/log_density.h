#pragma once

#include "macros.h"

// log q(z): the change of variables from z to eps.
//   x_k = (z_k - mu_k)/s_k,   eps_k = (x_k - rho_k x_{k-1})/c_k
//   log q = sum_k ( -1/2 eps_k^2 - 1/2 log 2 pi - log s_k - log c_k )
// Gradients of log q, with rho = tanh(a) (k = 1 has no rho term):
//   by x_k: b_k = -eps_k/c_k + rho_{k+1} eps_{k+1}/c_{k+1};   by z_k: b_k/s_k;   by mu_k: -b_k/s_k
//   by log s_k: -b_k x_k - 1;   by a_k: eps_k (c_k x_{k-1} - rho_k eps_k) + rho_k
namespace rhovae {

constexpr double kHalfLogTwoPi = 0.918938533204672741780329736406;

template <class V>
RHOVAE_HD V standardise(V z, V mu, V s) {
  return (z - mu) / s;
}

template <class V>
RHOVAE_HD V residual(V rho, V c, V x_previous, V x) {
  return (x - rho * x_previous) / c;
}

template <class V>
RHOVAE_HD V log_density_gradient_logit(V rho, V c, V x_previous, V eps) {
  return eps * (c * x_previous - rho * eps) + rho;
}

}  // namespace rhovae
