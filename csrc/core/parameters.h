#pragma once

#include "kl.h"
#include "macros.h"

// From what the caller gives, (s, rho) or (log s, a) with rho = tanh(a), to what the chain needs. Near the
// prior (s = 1, rho = 0) the terms of the KL are small differences of large numbers, and near |rho| = 1 so is
// 1 - |rho|: each is worked out from a part that is small itself, never by subtraction.
// M supplies, over its vector V: exp, exp_of, log_of (below), sqrt, abs,
// copysign, at_most, at_least (NaN stays NaN), and invalid_unless_positive (NaN where v <= 0).
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
};

// 1 - |rho| to its own last digit, where rho itself may have rounded to 1.
template <class V>
RHOVAE_HD V gap_of(V size_of_rho, V c) {
  return c * c / (V(1) + size_of_rho);
}

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

// log cosh a. Up to |a| = 1 it is a^2 times a polynomial in a^2; beyond, |a| - log 2 + log(1 + t2) with t2 =
// exp(-2|a|), the logarithm t2 times a polynomial. Both are interpolated at the Chebyshev nodes, to half a
// unit in the last place.
template <int count, class Real, class V>
RHOVAE_HD V polynomial(const double (&coefficients)[16], V x) {
  V sum{};
  RHOVAE_UNROLL
  for (int i = count - 1; i >= 0; --i) sum = sum * x + static_cast<Real>(coefficients[i]);
  return sum;
}
template <class Real, class V>
RHOVAE_HD V log_cosh(V a, V size, V t2) {
  constexpr bool single = sizeof(Real) == 4;
  constexpr double near_single[16] = {0.5,           -0.0833329707,   0.0222163554, -0.00670951186,
                                      0.00207557832, -0.000554665516, 8.6054104e-05};
  constexpr double near_double[16] = {0.5,
                                      -0.08333333333333313,
                                      0.022222222222204716,
                                      -0.006746031745439467,
                                      0.002186948843058455,
                                      -0.0007386028466072547,
                                      0.00025657975920948954,
                                      -9.09856096555369e-05,
                                      3.276489941653655e-05,
                                      -1.1918687623522829e-05,
                                      4.331402571628952e-06,
                                      -1.5281848212875655e-06,
                                      4.924539882543482e-07,
                                      -1.3068157325434964e-07,
                                      2.4268051367700383e-08,
                                      -2.2764198082727952e-09};
  constexpr double far_single[16] = {1, -0.499995857, 0.333085179, -0.244727269, 0.152762681};
  constexpr double far_double[16] = {1.0,
                                     -0.49999999999998973,
                                     0.33333333333028264,
                                     -0.24999999964663686,
                                     0.19999997895273075,
                                     -0.1666659327590879,
                                     0.1428411083012755,
                                     -0.12477323238003318,
                                     0.10902255928228051,
                                     -0.08772810334307986,
                                     0.047411558351055566};
  constexpr Real log2 = static_cast<Real>(0.693147180559945309417232121458);
  const V square = a * a;
  const V near = square * polynomial<single ? 7 : 16, Real>(single ? near_single : near_double, square);
  const V far = (size - log2) + t2 * polynomial<single ? 5 : 11, Real>(single ? far_single : far_double, t2);
  return size < 1.0f ? near : far;
}

// Through t = exp(-|a|): tanh|a| = (1 - t^2)/(1 + t^2), 1/cosh a = 2t/(1 + t^2). None of them overflows, at
// any logit.
template <class M, class V>
RHOVAE_HD Correlation<V> correlation_from_logit(V a) {
  using Real = typename M::Real;
  const V size = M::abs(a);
  const V t = M::exp(-M::at_most(size, kLargestLogit<Real>)), t2 = t * t;
  const V inverse = 1.0f / (1.0f + t2);
  return {M::copysign((1.0f - t2) * inverse, a), 2.0f * t * inverse, log_cosh<Real>(a, size, t2)};
}

// |rho| >= 1 is no correlation: NaN, in that row alone.
template <class M, class V>
RHOVAE_HD Correlation<V> correlation_from_value(V rho) {
  const V square = M::invalid_unless_positive((1.0f - rho) * (1.0f + rho));
  return {rho, M::sqrt(square), -0.5f * M::log_of(square, -rho * rho).value};
}

}  // namespace rhovae
