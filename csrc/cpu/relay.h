#pragma once

// Rows too long for one thread. Threads take a row's tiles in order; each prepares its own (draws the noise,
// works out the parameters) and then waits for its turn to continue the chain where the tile before left it.
// So the arithmetic is that of one thread, and so is every bit, for any number of threads; nothing is stored
// but what one tile hands to the next. A thread waits only for tiles taken before its own, hence never for
// itself.

#include <atomic>
#include <cstdint>

#include "../core/macros.h"

namespace rhovae::cpu {

// The state that one tile hands to the next, and the turn it is at.
class alignas(64) Baton {
 public:
  double state[4];

  RHOVAE_HD void await(int64_t turn) const {
    if (turn_.load(std::memory_order_acquire) < turn) wait(turn);
  }
  RHOVAE_HD void hand_on(int64_t turn) { turn_.store(turn + 1, std::memory_order_release); }
  RHOVAE_HD void begin() {
    for (double& value : state) value = 0;
    turn_.store(0, std::memory_order_relaxed);
  }

 private:
  void wait(int64_t turn) const;
  std::atomic<int64_t> turn_;
};

class Relay {
 public:
  // `shared`: several threads work with it, on one row. Else one thread does, row after row.
  Relay(int64_t samples, int64_t tiles, bool shared);
  ~Relay();
  Relay(const Relay&) = delete;
  Relay& operator=(const Relay&) = delete;

  RHOVAE_HD void begin_row() {
    next_.store(0, std::memory_order_relaxed);
    next_back_.store(0, std::memory_order_relaxed);
    for (int64_t i = 0; i <= 2 * samples_; ++i) batons_[i].begin();
  }

  // The next tile from the row's start; the next from its end, counted from there.
  RHOVAE_HD int64_t take() { return take(next_); }
  RHOVAE_HD int64_t take_back() { return take(next_back_); }

  RHOVAE_HD Baton& sums() { return batons_[0]; }
  RHOVAE_HD Baton& chain(int64_t sample) { return batons_[1 + sample]; }
  RHOVAE_HD Baton& adjoint(int64_t sample) { return batons_[1 + samples_ + sample]; }
  // The adjoint that enters a tile at its end.
  RHOVAE_HD double& adjoint_after(int64_t tile, int64_t sample) {
    return adjoint_after_[tile * samples_ + sample];
  }

 private:
  RHOVAE_HD int64_t take(std::atomic<int64_t>& next) {
    if (shared_) return next.fetch_add(1, std::memory_order_relaxed);
    const int64_t tile = next.load(std::memory_order_relaxed);  // spares the price of a locked instruction
    next.store(tile + 1, std::memory_order_relaxed);
    return tile;
  }

  alignas(64) std::atomic<int64_t> next_{0}, next_back_{
                                                 0};  // written by every thread, so apart from the rest
  alignas(64) int64_t samples_;
  bool shared_;
  Baton* batons_;
  double* adjoint_after_;
};

}  // namespace rhovae::cpu
