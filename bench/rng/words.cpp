// The words of the noise as a stream of raw 32-bit numbers, in the orders in which a dependence might show:
//
//   words ORDER SEED SKIP [COUNT]
//
// writes COUNT words (without it: until nobody reads on) of the key (SEED, 0), after SKIP units of the order.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "../../csrc/core/philox.h"

using namespace rhovae;

namespace {

struct Key {
  uint64_t seed, offset;
};

struct Words {
  uint32_t w[4];
};

Words block(const RoundKeys& keys, uint64_t position, uint64_t row) {
  Words words{{static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32),
               static_cast<uint32_t>(row), static_cast<uint32_t>(row >> 32)}};
  philox4x32_10<ScalarWord>(keys, words.w);
  return words;
}

Key fold_in(const RoundKeys& keys, uint64_t offset, uint64_t data) {
  const Words words = block(keys, offset + data, 0);
  return {words.w[0] | static_cast<uint64_t>(words.w[1]) << 32, words.w[2] | static_cast<uint64_t>(words.w[3])
                                                                                 << 32};
}
Key fold_in(Key key, uint64_t data) {
  return fold_in(round_keys(key.seed), key.offset, data);
}

// What is written at a time: a multiple of every order's unit.
constexpr int kBlocks = 12288;
Words buffer[kBlocks];

void write(int64_t& left, const uint32_t* words, int64_t count) {
  if (left >= 0 && count > left) count = left;
  if (std::fwrite(words, sizeof *words, static_cast<size_t>(count), stdout) != static_cast<size_t>(count)) {
    std::exit(0);  // the reader has enough
  }
  if (left >= 0) left -= count;
}

// The first `blocks` blocks of a key's row 0.
void start_of(Key key, int blocks, Words* out) {
  const RoundKeys keys = round_keys(key.seed);
  for (int i = 0; i < blocks; ++i) out[i] = block(keys, key.offset + static_cast<uint64_t>(i), 0);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) {
    std::fprintf(stderr, "usage: %s along|rows|transposed|keys|derived|split SEED SKIP [COUNT]\n", argv[0]);
    return 2;
  }
  const std::string order = argv[1];
  const Key key{std::strtoull(argv[2], nullptr, 10), 0};
  const RoundKeys keys = round_keys(key.seed);
  uint64_t unit = std::strtoull(argv[3], nullptr, 10);
  int64_t left = argc > 4 ? std::atoll(argv[4]) : -1;
  const auto buffered = [&] { write(left, buffer[0].w, 4 * kBlocks); };

  if (order == "along") {  // one long row; unit: a block
    for (; left; buffered()) {
      for (Words& words : buffer) words = block(keys, unit++, 0);
    }
  } else if (order == "rows") {  // row after row of 10 steps, as in a batch of that shape; unit: a row
    static uint32_t steps[kBlocks / 3 * 10];
    for (; left; write(left, steps, kBlocks / 3 * 10)) {
      for (int row = 0; row < kBlocks / 3; ++row, ++unit) {
        const Words words[3] = {block(keys, 0, unit), block(keys, 1, unit), block(keys, 2, unit)};
        std::memcpy(steps + 10 * row, words, 10 * sizeof(uint32_t));
      }
    }
  } else if (order ==
             "transposed") {  // step 1 of 12288 rows, step 2 of them, ... 64 steps; unit: such a batch
    static uint32_t steps[4][kBlocks];
    for (; left; ++unit) {
      for (uint64_t position = 0; position < 16; ++position) {
        for (int row = 0; row < kBlocks; ++row) {
          const Words words = block(keys, position, unit * kBlocks + static_cast<uint64_t>(row));
          for (int i = 0; i < 4; ++i) steps[i][row] = words.w[i];
        }
        write(left, steps[0], 4 * kBlocks);
      }
    }
  } else if (order == "keys") {  // a block of every seed, one after the other; unit: a seed
    for (; left; buffered()) {
      for (Words& words : buffer) words = block(round_keys(key.seed + unit++), 0, 0);
    }
  } else if (order == "derived") {  // four blocks of fold_in(key, 0), of fold_in(key, 1), ...; unit: a key
    for (; left; buffered()) {
      for (int i = 0; i < kBlocks; i += 4) start_of(fold_in(keys, key.offset, unit++), 4, buffer + i);
    }
  } else if (order == "split") {  // key, drawn = split(key, 2), and so on; SKIP: the data folded in at first
    Key chain = fold_in(key, unit);
    for (; left; buffered()) {
      for (int i = 0; i < kBlocks; i += 4) {
        start_of(fold_in(chain, 1), 4, buffer + i);
        chain = fold_in(chain, 0);
      }
    }
  } else {
    std::fprintf(stderr, "unknown order %s: along, rows, transposed, keys, derived or split\n", argv[1]);
    return 2;
  }
}
