#pragma once

#include "macros.h"

// Box-Muller: two random words (one word of 32 bits each, or two of 64) to two independent standard normals.
//   u = (w + 1/2) 2^-bits,   (sqrt(-2 ln u1) cos 2 pi u2,  sqrt(-2 ln u1) sin 2 pi u2)
namespace rhovae {

constexpr int kNormalsPerBlockFloat = 4;   // words (0, 1) and (2, 3)
constexpr int kNormalsPerBlockDouble = 2;  // words 0:1 and 2:3, the first the high half

// M supplies, for its own vector V and word W:
//   minus_two_log_uniform(W) = -2 ln u,   sincos_uniform(W, sine, cosine) of the angle 2 pi u,   sqrt(V).
template <class M, class W, class V>
RHOVAE_HD void box_muller(W word1, W word2, V& first, V& second) {
  const V radius = M::sqrt(M::minus_two_log_uniform(word1));
  V sine, cosine;
  M::sincos_uniform(word2, sine, cosine);
  first = radius * cosine;
  second = radius * sine;
}

}  // namespace rhovae
