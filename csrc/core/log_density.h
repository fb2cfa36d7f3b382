#pragma once

#include "parameters.h"

// log q(z): the change of variables from z to eps.
//   x_k = (z_k - mu_k)/s_k,   eps_k = (x_k - rho_k x_{k-1})/c_k
//   log q = sum_k ( -1/2 eps_k^2 - 1/2 log 2 pi - log s_k - log c_k )
// Gradients of log q, with rho = tanh(a) (k = 1 has no rho term):
//   by x_k: b_k = -eps_k/c_k + rho_{k+1} eps_{k+1}/c_{k+1};   by z_k: b_k/s_k;   by mu_k: -b_k/s_k
//   by log s_k: -b_k x_k - 1;   by a_k: eps_k (c_k x_{k-1} - rho_k eps_k) + rho_k
// Far from the chain all of them pass what a type can hold; the terms are held where they would cancel to
// NaN.
namespace rhovae {

constexpr double kHalfLogTwoPi = 0.918938533204672741780329736406;

template <class M, class V>
RHOVAE_HD V standardise(V z, V mu, V s) {
  return held<M>((z - mu) / s);
}

template <class M, class V>
RHOVAE_HD V residual(V rho, V c, V x_previous, V x) {
  return held<M>((x - rho * x_previous) / c);
}

// eps_k/c_k
template <class M, class V>
RHOVAE_HD V density_flow(V eps, V c) {
  return held<M>(eps / c);
}

// Times h, the gradient of log q: b_k from the flows at a step and after it; by log s_k; by a_k.
template <class M, class V>
RHOVAE_HD V density_gradient_x(V h, V flow, V rho_next, V flow_next) {
  return held<M>(h * (rho_next * flow_next - flow));
}
template <class M, class V>
RHOVAE_HD V density_gradient_log_scale(V h, V by_x, V x) {
  return held<M>(-by_x * x) - h;
}
template <class M, class V>
RHOVAE_HD V density_gradient_logit(V h, V rho, V c, V x_previous, V eps) {
  return held<M>(held<M>(h * eps) * (c * x_previous - rho * eps)) + h * rho;
}

}  // namespace rhovae
