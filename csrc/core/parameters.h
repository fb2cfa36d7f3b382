#pragma once

#include "kl.h"
#include "macros.h"

// From what the caller gives, (s, rho) or (log s, a) with rho = tanh(a), to what the chain needs. Near the
// prior (s = 1, rho = 0) the terms of the KL are small differences of large numbers, and near |rho| = 1 so is
// 1 - |rho|: each is worked out from a part that is small itself, never by subtraction.
// M supplies, over its vector V: exp_of, log_of (below), sqrt, abs, copysign, at_most, at_least (NaN stays
// NaN), and invalid_unless_positive (NaN where v <= 0).
namespace rhovae {

// Of a number x: e^x, e^x - 1 and e^x - 1 - x, each to its own last digit.
template <class V>
struct Exponential {
  V value, less_one, excess;
};
// Of a number v, given beside m = v - 1: log v, and m - log v, each to its own last digit.
template <class V>
struct Logarithm {
  V value, shortfall;
};

// Past this |logit| the innovations have long lost their last digit; t = exp(-|a|) is held, a normal number.
template <class Real>
constexpr Real kLargestLogit = sizeof(Real) == 4 ? 80 : 700;

// What is added up with either sign is held here: infinite terms would cancel to NaN.
template <class Real>
constexpr Real kLargestTerm = sizeof(Real) == 4 ? static_cast<Real>(0x1p115) : static_cast<Real>(0x1p1000);
// What the density divides by is no smaller: s, and c, by which it divides twice (|a| = 40, or 300).
template <class Real>
constexpr Real kSmallestScale =
    sizeof(Real) == 4 ? static_cast<Real>(0x1p-126) : static_cast<Real>(0x1p-1022);
template <class Real>
constexpr Real kSmallestC = sizeof(Real) == 4 ? static_cast<Real>(8.5e-18) : static_cast<Real>(1e-130);

template <class V>
struct Scale {
  V s, log_s;
  V kl;  // 1/2 (s^2 - 1) - log s, s's term of the KL
};

template <class V>
struct Correlation {
  V rho;
  V c;            // sqrt(1 - rho^2)
  V minus_log_c;  // -1/2 log(1 - rho^2), rho's term of the KL
  V gap;          // 1 - |rho|
};

template <class M, class V>
RHOVAE_HD V held(V term) {
  constexpr auto bound = kLargestTerm<typename M::Real>;
  return M::at_least(M::at_most(term, bound), -bound);
}

template <class M, class V>
RHOVAE_HD Scale<V> scale_from_log(V log_s) {
  const Exponential<V> e = M::exp_of(log_s);
  return {e.value, log_s, kl_of_scale(e.less_one, e.excess)};
}

template <class M, class V>
RHOVAE_HD Scale<V> scale_from_value(V s) {
  const V less_one = s - 1.0f;
  const Logarithm<V> log = M::log_of(s, less_one);
  return {s, log.value, kl_of_scale(less_one, log.shortfall)};
}

// Through t = exp(-|a|) and u = 1 - t: tanh|a| = (1 - t^2)/(1 + t^2), 1/cosh a = 2t/(1 + t^2) = 1 - u^2/(1 +
// t^2). None of them overflows, at any logit.
template <class M, class V>
RHOVAE_HD Correlation<V> correlation_from_logit(V a) {
  const V size = M::abs(a), held = M::at_most(size, kLargestLogit<typename M::Real>);
  const Exponential<V> e = M::exp_of(-held);
  const V t = e.value, u = -e.less_one, t2 = t * t;
  const V inverse = 1.0f / (1.0f + t2);
  const V c = 2.0f * t * inverse;
  const V log_c = M::log_of(c, -u * u * inverse).value;
  return {M::copysign(u * (1.0f + t) * inverse, a), c, (size - held) - log_c, 2.0f * t2 * inverse};
}

// |rho| >= 1 is no correlation: NaN, in that row alone.
template <class M, class V>
RHOVAE_HD Correlation<V> correlation_from_value(V rho) {
  const V square = M::invalid_unless_positive((1.0f - rho) * (1.0f + rho));
  return {rho, M::sqrt(square), -0.5f * M::log_of(square, -rho * rho).value, 1.0f - M::abs(rho)};
}

}  // namespace rhovae
