// The three known answers that Random123 publishes for philox4x32-10 (zeros, ones, digits of pi).

#include "../../csrc/core/philox.h"
#include "check.h"

using namespace rhovae;

static void check(uint32_t (&w)[4], uint64_t seed, const uint32_t (&expected)[4]) {
  philox4x32_10<ScalarWord>(round_keys(seed), w);
  for (int i = 0; i < 4; ++i) CHECK(w[i] == expected[i]);
}

int main() {
  uint32_t zeros[4] = {0, 0, 0, 0};
  check(zeros, 0, {0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u});
  constexpr uint32_t f = 0xFFFFFFFFu;
  uint32_t ones[4] = {f, f, f, f};
  check(ones, ~uint64_t{0}, {0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu});
  uint32_t pi[4] = {0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u};
  check(pi, 0x299f31d0a4093822u, {0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u});
  return result();
}
