#include "relay.h"

#include <thread>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace rhovae::cpu {

void Baton::wait(int64_t turn) const {
  // Milliseconds: to give the processor away early would make the next thread wait in its turn, tile after
  // tile.
  constexpr int kSpins = 1 << 17;
  for (int spin = 0; turn_.load(std::memory_order_acquire) < turn; ++spin) {
    if (spin >= kSpins) {
      std::this_thread::yield();
      continue;
    }
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
  }
}

Relay::Relay(int64_t samples, int64_t tiles, bool shared)
    : samples_(samples),
      shared_(shared),
      batons_(new Baton[static_cast<size_t>(2 * samples + 1)]),
      adjoint_after_(new double[static_cast<size_t>(tiles * samples)]) {
  begin_row();
}

Relay::~Relay() {
  delete[] batons_;
  delete[] adjoint_after_;
}

}  // namespace rhovae::cpu
