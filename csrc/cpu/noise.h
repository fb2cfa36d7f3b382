#pragma once

// Standard normals from Philox words. `position` counts blocks of the stream: offset + k / 4 in float32,
// offset + k / 2 in float64.

#include "../core/normal.h"
#include "../core/philox.h"
#include "functions.h"

namespace rhovae::RHOVAE_ISA {

template <class C>
constexpr int kNormalsPerBlock = sizeof(C) == 4 ? kNormalsPerBlockFloat : kNormalsPerBlockDouble;

constexpr int kCounters = kBytes / 8;  // that a register of Philox words holds
constexpr int kSideBySide = RHOVAE_X86_64_LEVEL == 4 ? 4 : 2;

// `m` registers of counters side by side: every round waits for the one before, so one register alone would
// leave the processor idle half of the time. Lanes have 64 bits; each holds one counter's word in its low
// half and whatever in its high half, which the multiplication ignores. So a round is two multiplications,
// two shifts and two three-way exclusive ors.
template <int m>
struct Counters {
  struct Word {
    U64 v[m];
  };
  using Product = Word;

  template <class F>
  static RHOVAE_INLINE Word each(const F& f) {
    Word word;
#pragma GCC unroll 6
    for (int i = 0; i < m; ++i) word.v[i] = f(i);
    return word;
  }
  static RHOVAE_INLINE Product multiply(uint32_t multiplier, const Word& word) {
    return each([&](int i) { return multiply_low_halves(word.v[i], U64{} + multiplier); });
  }
  static RHOVAE_INLINE Word high(const Product& p) {
    return each([&](int i) { return p.v[i] >> 32; });
  }
  static RHOVAE_INLINE Word low(const Product& p) { return p; }
  static RHOVAE_INLINE Word xor3(const Word& a, const Word& b, const U64& c) {
    return each([&](int i) { return a.v[i] ^ b.v[i] ^ c; });
  }
};

// The round keys in every lane, so that no row has to lay them out again.
using LaneKeys = RoundKeysOf<U64>;

inline LaneKeys lane_keys(uint64_t seed) {
  const RoundKeys keys = round_keys(seed);
  LaneKeys lanes;
  for (int i = 0; i < kPhiloxRounds; ++i) {
    lanes.first[i] = U64{} + keys.first[i];
    lanes.second[i] = U64{} + keys.second[i];
  }
  return lanes;
}

// The four random words of every counter; position(i) and row(i) are the lanes of register i.
template <int m>
struct Block {
  typename Counters<m>::Word w[4];

  template <class Position, class Row>
  RHOVAE_INLINE Block(const LaneKeys& keys, const Position& position, const Row& row)
      : w{Counters<m>::each(position), Counters<m>::each([&](int i) { return position(i) >> 32; }),
          Counters<m>::each(row), Counters<m>::each([&](int i) { return row(i) >> 32; })} {
    philox4x32_10<Counters<m>>(keys, w);
  }
};

// Along a row: the normals of m registers of counters.
template <class C, int m>
RHOVAE_INLINE void draw_along(const LaneKeys& keys, uint64_t position, uint64_t row, C* out) {
  constexpr int n = Lanes<C>::n;
  const U64 lane = (U64)iota<double>();
  const Block<m> block(
      keys, [&](int i) { return lane + (position + static_cast<uint64_t>(i * kCounters)); },
      [&](int) { return U64{} + row; });
  const auto& w = block.w;
#pragma GCC unroll 6
  for (int i = 0; i < m; ++i) {
    V<C> even, odd;
    if constexpr (sizeof(C) == 4) {
      box_muller<Functions<C>>(join_words(w[0].v[i], w[2].v[i]), join_words(w[1].v[i], w[3].v[i]), even, odd);
    } else {
      box_muller<Functions<C>>(join_halves(w[0].v[i], w[1].v[i]), join_halves(w[2].v[i], w[3].v[i]), even,
                               odd);
    }
    store<C>(out + 2 * i * n, shuffle<C, InterleaveLow<n>>(even, odd));
    store<C>(out + (2 * i + 1) * n, shuffle<C, InterleaveHigh<n>>(even, odd));
  }
}

// draw(at, m) for m units from unit `at` on, m a constant: `side_by_side` of them again and again, and the
// last ones, up to half as many more, together: a few alone would leave the processor waiting.
template <int most, class Draw>
RHOVAE_INLINE void draw_last(int64_t at, int64_t units, const Draw& draw) {
  if constexpr (most > 1) {
    if (units < most) return draw_last<most - 1>(at, units, draw);
  }
  draw(at, std::integral_constant<int, most>{});
}
template <int side_by_side, class Draw>
RHOVAE_INLINE void draw_units(int64_t units, const Draw& draw) {
  constexpr int most = side_by_side + side_by_side / 2;
  int64_t at = 0;
  for (; units - at > most || units - at == side_by_side; at += side_by_side) {
    draw(at, std::integral_constant<int, side_by_side>{});
  }
  if (at < units) draw_last<most>(at, units - at, draw);
}

// out[0 .. count), count > 0, and past it up to a multiple of what a register gives.
template <class C>
RHOVAE_ALONE void normals_along(const LaneKeys& keys, uint64_t position, uint64_t row, C* out,
                                int64_t count) {
  constexpr int unit = 2 * Lanes<C>::n;
  draw_units<kSideBySide>((count + unit - 1) / unit, [&](int64_t at, auto m) RHOVAE_INLINE_BODY {
    draw_along<C, m>(keys, position + static_cast<uint64_t>(at * kCounters), row, out + at * unit);
  });
}

// Across rows: m registers of counters. float32 has two for its lanes, the even ones and the odd ones
// (rows[0] and rows[1]), as join_words lays them; float64 one. `count`: how many steps are still wanted.
template <class C, int m>
RHOVAE_INLINE void draw_across(const LaneKeys& keys, uint64_t position, const U64 (&rows)[2], C* out,
                               int64_t count) {
  constexpr int n = Lanes<C>::n, parts = n / kCounters;
  const Block<m> block(
      keys, [&](int i) { return U64{} + (position + static_cast<uint64_t>(i / parts)); },
      [&](int i) { return rows[i % parts]; });
  const auto& w = block.w;
#pragma GCC unroll 6
  for (int i = 0; i < m; i += parts) {
    V<C> first, second;
    if constexpr (sizeof(C) == 4) {
      for (int pair = 0; pair < 4; pair += 2) {
        if (2 * i + pair >= count) return;  // of a row of 10 steps, the last pair
        box_muller<Functions<C>>(join_words(w[pair].v[i], w[pair].v[i + 1]),
                                 join_words(w[pair + 1].v[i], w[pair + 1].v[i + 1]), first, second);
        store<C>(out + (2 * i + pair) * n, first);
        store<C>(out + (2 * i + pair + 1) * n, second);
      }
    } else {
      box_muller<Functions<C>>(join_halves(w[0].v[i], w[1].v[i]), join_halves(w[2].v[i], w[3].v[i]), first,
                               second);
      store<C>(out + 2 * i * n, first);
      store<C>(out + (2 * i + 1) * n, second);
    }
  }
}

// A row a lane: out[k * n + lane] for k in [0, count), count > 0, and past it up to a multiple of
// kNormalsPerBlock.
template <class C>
RHOVAE_ALONE void normals_across(const LaneKeys& keys, uint64_t position, const U64 (&rows)[2], C* out,
                                 int64_t count) {
  constexpr int n = Lanes<C>::n, parts = n / kCounters, steps = kNormalsPerBlock<C>;
  draw_units<kSideBySide / parts>((count + steps - 1) / steps, [&](int64_t at, auto m) RHOVAE_INLINE_BODY {
    draw_across<C, m * parts>(keys, position + static_cast<uint64_t>(at), rows, out + at * steps * n,
                              count - at * steps);
  });
}

// Rows from `first` on, a row a lane, in the order in which draw_across takes them.
template <class C>
RHOVAE_INLINE void rows_across(uint64_t first, U64 (&rows)[2]) {
  constexpr int parts = Lanes<C>::n / kCounters;
  for (int part = 0; part < parts; ++part) {
    rows[part] = (U64)iota<double>() * static_cast<uint64_t>(parts) + (first + static_cast<uint64_t>(part));
  }
}

}  // namespace rhovae::RHOVAE_ISA
