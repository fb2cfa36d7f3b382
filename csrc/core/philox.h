#pragma once

#include <cstdint>

#include "macros.h"

// Philox4x32-10, the counter-based generator of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3"
// (SC 2011). Counter: words 0-1 hold the position in the stream, words 2-3 the row.
namespace rhovae {

constexpr int kPhiloxRounds = 10;
constexpr uint32_t kPhiloxMultiplier0 = 0xD2511F53u;
constexpr uint32_t kPhiloxMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxWeyl0 = 0x9E3779B9u;
constexpr uint32_t kPhiloxWeyl1 = 0xBB67AE85u;

// The ten pairs of keys that follow from a seed: the same for every counter, so made once and handed down.
template <class Key>
struct RoundKeysOf {
  Key first[kPhiloxRounds];
  Key second[kPhiloxRounds];
};
using RoundKeys = RoundKeysOf<uint32_t>;

RHOVAE_HD RoundKeys round_keys(uint64_t seed) {
  RoundKeys keys;
  for (int i = 0; i < kPhiloxRounds; ++i) {
    keys.first[i] = static_cast<uint32_t>(seed) + static_cast<uint32_t>(i) * kPhiloxWeyl0;
    keys.second[i] = static_cast<uint32_t>(seed >> 32) + static_cast<uint32_t>(i) * kPhiloxWeyl1;
  }
  return keys;
}

// The arithmetic of one counter. A vector backend supplies the same three functions over its lanes.
struct ScalarWord {
  using Word = uint32_t;
  using Product = uint64_t;
  static RHOVAE_HD Product multiply(uint32_t multiplier, Word word) {
    return static_cast<uint64_t>(multiplier) * word;
  }
  static RHOVAE_HD Word high(Product p) { return static_cast<uint32_t>(p >> 32); }
  static RHOVAE_HD Word low(Product p) { return static_cast<uint32_t>(p); }
  static RHOVAE_HD Word xor3(Word a, Word b, uint32_t c) { return a ^ b ^ c; }
};

// w: the counter going in, four random words coming out.
template <class A, class Key>
RHOVAE_HD void philox4x32_10(const RoundKeysOf<Key>& keys, typename A::Word (&w)[4]) {
  RHOVAE_UNROLL
  for (int i = 0; i < kPhiloxRounds; ++i) {
    const typename A::Product p0 = A::multiply(kPhiloxMultiplier0, w[0]);
    const typename A::Product p1 = A::multiply(kPhiloxMultiplier1, w[2]);
    w[0] = A::xor3(A::high(p1), w[1], keys.first[i]);
    w[1] = A::low(p1);
    w[2] = A::xor3(A::high(p0), w[3], keys.second[i]);
    w[3] = A::low(p0);
  }
}

// The row's half of the counter: with K samples, every sample of a row is a row of its own. W: one row's
// number, or a vector of them.
template <class W>
RHOVAE_HD W noise_row(uint64_t row_offset, W row, uint64_t samples, uint64_t sample) {
  return (row_offset + row) * samples + sample;
}

}  // namespace rhovae
