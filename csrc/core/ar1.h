#pragma once

#include "macros.h"

// The Gaussian Markov chain, one formula a function (V: float, double or a vector of lanes).
//   z_k = mu_k + s_k x_k,   x_1 = eps_1,   x_k = rho_k x_{k-1} + c_k eps_k,   c_k = sqrt(1 - rho_k^2)
// At k = 1 the formulas hold with rho = 0 and c = 1. Gradients, with g = dL/dz and rho = tanh(a):
//   lambda_k = g_k s_k + rho_{k+1} lambda_{k+1} = dL/dx_k
//   dL/dlog s_k = s_k g_k x_k,   dL/da_k = lambda_k (x_{k-1} - rho_k x_k),   dL/deps_k = c_k lambda_k
// For one rho a row, the tangent t_k = dx_k/da runs forward beside x: dL/da = sum_k g_k s_k t_k.
namespace rhovae {

// Every recurrence here, x, t and lambda alike, is this one.
template <class V>
RHOVAE_HD V advance(V multiplier, V previous, V source) {
  return multiplier * previous + source;
}

template <class V>
RHOVAE_HD V innovation(V c, V eps) {
  return c * eps;
}

// z - mu
template <class V>
RHOVAE_HD V deviation(V s, V x) {
  return s * x;
}
template <class V>
RHOVAE_HD V sample(V mu, V s, V x) {
  return mu + deviation(s, x);
}

// x_{k-1} - rho_k x_k, without the cancellation that the plain difference has as |rho| nears 1.
template <class V>
RHOVAE_HD V tangent_source(V rho, V c, V x_previous, V eps) {
  return c * (c * x_previous - rho * eps);
}

}  // namespace rhovae
