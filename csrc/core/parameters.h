#pragma once

#include "macros.h"

// From what the caller gives, (s, rho) or (log s, a) with rho = tanh(a), to what the chain needs.
// M supplies exp, log, log1p_of_unit (log(1 + v), v in [0, 1]), sqrt, abs, copysign, at_most, kLargestLogit
// and invalid_unless_positive (NaN where v <= 0) over its vector V.
namespace rhovae {

template <class V>
struct Scale {
  V s, log_s;
};

template <class V>
struct Correlation {
  V rho;
  V c;            // sqrt(1 - rho^2)
  V minus_log_c;  // -1/2 log(1 - rho^2), rho's term of the KL
};

template <class M, class V>
RHOVAE_HD Scale<V> scale_from_log(V log_s) {
  return {M::exp(log_s), log_s};
}

template <class M, class V>
RHOVAE_HD Scale<V> scale_from_value(V s) {
  return {s, M::log(s)};
}

// Through t = exp(-|a|): tanh|a| = (1 - t^2)/(1 + t^2), 1/cosh a = 2t/(1 + t^2), and
// -log(1/cosh a) = |a| + log(1 + t^2) - log 2. None of them overflows, at any logit. Past M::kLargestLogit,
// where the innovations have long lost their last digit, t is held: c stays a normal number that the density
// can divide by.
template <class M, class V>
RHOVAE_HD Correlation<V> correlation_from_logit(V a) {
  const V size = M::abs(a);
  const V t = M::exp(-M::at_most(size, M::kLargestLogit));
  const V t2 = t * t;
  const V inverse = 1.0f / (1.0f + t2);
  constexpr double log2 = 0.693147180559945309417232121458;
  return {M::copysign((1.0f - t2) * inverse, a), 2.0f * t * inverse,
          size + M::log1p_of_unit(t2) - static_cast<typename M::Real>(log2)};
}

// |rho| >= 1 is no correlation: NaN, in that row alone.
template <class M, class V>
RHOVAE_HD Correlation<V> correlation_from_value(V rho) {
  const V square = M::invalid_unless_positive((1.0f - rho) * (1.0f + rho));
  return {rho, M::sqrt(square), -0.5f * M::log(square)};
}

}  // namespace rhovae
