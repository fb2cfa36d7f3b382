#pragma once

// Standard normals from Philox words, a register of counters at a time. `position` counts blocks of the
// stream: offset + k / 4 in float32, offset + k / 2 in float64.

#include "../core/normal.h"
#include "../core/philox.h"
#include "functions.h"

namespace rhovae::RHOVAE_ISA {

template <class C>
constexpr int kNormalsPerBlock = sizeof(C) == 4 ? kNormalsPerBlockFloat : kNormalsPerBlockDouble;

struct Block {
  U64 w[4];
};

RHOVAE_INLINE Block philox_lanes(const RoundKeys& keys, U64 position, U64 row) {
  Block block{{position, position >> 32, row, row >> 32}};
  philox4x32_10<LaneWord>(keys, block.w);
  return block;
}

constexpr int kCounters = kBytes / 8;  // counters a register of Philox words holds

// Along a row: out[0 .. count) and up to the end of the register past it.
template <class C>
RHOVAE_INLINE void normals_along(const RoundKeys& keys, uint64_t position, uint64_t row, C* out,
                                 int64_t count) {
  constexpr int n = Lanes<C>::n;
  const U64 lane = (U64)iota<double>();
  for (int64_t k = 0; k < count; k += kCounters * kNormalsPerBlock<C>) {
    const uint64_t first = position + static_cast<uint64_t>(k / kNormalsPerBlock<C>);
    const Block block = philox_lanes(keys, lane + first, U64{} + row);
    V<C> even, odd;
    if constexpr (sizeof(C) == 4) {
      box_muller<Functions<C>>(join_words(block.w[0], block.w[2]), join_words(block.w[1], block.w[3]), even,
                               odd);
    } else {
      box_muller<Functions<C>>(join_halves(block.w[0], block.w[1]), join_halves(block.w[2], block.w[3]), even,
                               odd);
    }
    store<C>(out + k, shuffle<C, InterleaveLow<n>>(even, odd));
    store<C>(out + k + n, shuffle<C, InterleaveHigh<n>>(even, odd));
  }
}

// Across rows, a row a lane: out[k * n + lane] for k in [0, count) and up to the end of the block past it.
template <class C>
RHOVAE_INLINE void normals_across(const RoundKeys& keys, uint64_t position, const uint64_t* row, C* out,
                                  int64_t count) {
  constexpr int n = Lanes<C>::n;
  uint64_t in_order[2][kCounters];  // the order in which join_words lays float32's lanes
  for (int lane = 0; lane < n; ++lane) {
    if constexpr (sizeof(C) == 4)
      in_order[lane & 1][lane >> 1] = row[lane];
    else
      in_order[0][lane] = row[lane];
  }
  U64 rows[2];
  std::memcpy(rows, in_order, sizeof(C) == 4 ? sizeof rows : sizeof rows[0]);
  for (int64_t k = 0; k < count; k += kNormalsPerBlock<C>, out += n * kNormalsPerBlock<C>) {
    const U64 at = U64{} + (position + static_cast<uint64_t>(k / kNormalsPerBlock<C>));
    const Block a = philox_lanes(keys, at, rows[0]);
    V<C> first, second;
    if constexpr (sizeof(C) == 4) {
      const Block b = philox_lanes(keys, at, rows[1]);
      for (int pair = 0; pair < 2; ++pair) {
        box_muller<Functions<C>>(join_words(a.w[2 * pair], b.w[2 * pair]),
                                 join_words(a.w[2 * pair + 1], b.w[2 * pair + 1]), first, second);
        store<C>(out + 2 * pair * n, first);
        store<C>(out + (2 * pair + 1) * n, second);
      }
    } else {
      box_muller<Functions<C>>(join_halves(a.w[0], a.w[1]), join_halves(a.w[2], a.w[3]), first, second);
      store<C>(out, first);
      store<C>(out + n, second);
    }
  }
}

}  // namespace rhovae::RHOVAE_ISA
