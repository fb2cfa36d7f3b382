#include "cuda_emulator.h"

#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace cuda_emulator {
namespace {

constexpr int kLanes = 32;
constexpr size_t kStack = size_t{256} << 10;

// A stack to switch to, which the address sanitizer has to be told of.
struct Context {
  ucontext_t registers{};
  const void* stack = nullptr;
  size_t size = 0;
};

void switch_to(Context& from, Context& to, bool from_ends = false) {
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(from_ends ? nullptr : &fake, to.stack, to.size);
  swapcontext(&from.registers, &to.registers);
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#else
  static_cast<void>(from_ends);
  swapcontext(&from.registers, &to.registers);
#endif
}

enum class State { Ready, Waiting, Ended };

struct Fibre {
  Context context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  Thread thread{};
  State state = State::Ended;
  Wait wait{};
  Place place{};
  uint64_t value = 0;
  int from = 0;
};

std::vector<std::unique_ptr<Fibre>> fibres;
Context scheduler;
Fibre* running = nullptr;
const std::function<void()>* body = nullptr;
uint64_t order_seed = 0;

void run_fibre() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &scheduler.stack, &scheduler.size);
#endif
  (*body)();
  running->state = State::Ended;
  switch_to(running->context, scheduler, true);
}

void start(Fibre& fibre) {
  getcontext(&fibre.context.registers);
  fibre.context.stack = fibre.stack.get();
  fibre.context.size = kStack;
  fibre.context.registers.uc_stack.ss_sp = fibre.stack.get();
  fibre.context.registers.uc_stack.ss_size = kStack;
  fibre.context.registers.uc_link = nullptr;
  makecontext(&fibre.context.registers, run_fibre, 0);
  fibre.state = State::Ready;
}

void wait_for_others(Wait wait, Place place) {
  running->state = State::Waiting;
  running->wait = wait;
  running->place = place;
  switch_to(running->context, scheduler);
}

bool same(const Fibre& a, const Fibre& b) {
  return a.state == b.state && a.wait == b.wait && a.place.line == b.place.line &&
         std::strcmp(a.place.file, b.place.file) == 0;
}

// Lets every warp go on whose lanes all stand at one shuffle; or the block, where all stand at one barrier.
bool release(int threads) {
  bool released = false;
  for (int warp = 0; warp < threads; warp += kLanes) {
    const Fibre& first = *fibres[warp];
    if (first.state != State::Waiting || first.wait != Wait::Shuffle) continue;
    bool all = true;
    for (int lane = 1; lane < kLanes; ++lane) all = all && same(first, *fibres[warp + lane]);
    if (!all) continue;
    uint64_t given[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) given[lane] = fibres[warp + lane]->value;
    for (int lane = 0; lane < kLanes; ++lane) {
      Fibre& fibre = *fibres[warp + lane];
      fibre.value = given[fibre.from];
      fibre.state = State::Ready;
    }
    released = true;
  }
  if (released) return true;
  const Fibre& first = *fibres[0];
  if (first.state != State::Waiting || first.wait != Wait::Barrier) return false;
  for (int i = 1; i < threads; ++i) {
    if (!same(first, *fibres[i])) return false;
  }
  for (int i = 0; i < threads; ++i) fibres[i]->state = State::Ready;
  return true;
}

void run_block(int threads, std::mt19937_64& random) {
  std::vector<int> order(threads);
  std::iota(order.begin(), order.end(), 0);
  for (int i = 0; i < threads; ++i) start(*fibres[i]);
  for (;;) {
    if (order_seed) std::shuffle(order.begin(), order.end(), random);
    for (const int i : order) {
      if (fibres[i]->state != State::Ready) continue;
      running = fibres[i].get();
      switch_to(scheduler, running->context);
    }
    if (std::all_of(order.begin(), order.end(), [](int i) { return fibres[i]->state == State::Ended; }))
      return;
    if (release(threads)) continue;
    const auto stuck =
        std::find_if(order.begin(), order.end(), [](int i) { return fibres[i]->state != State::Ended; });
    const Fibre& fibre = *fibres[*stuck];
    fail(fibre.wait == Wait::Shuffle ? "shuffle that a lane of its warp does not reach"
                                     : "barrier that a thread of its block does not reach",
         fibre.place);
  }
}

}  // namespace

Thread& current() {
  return running->thread;
}

uint64_t exchange(uint64_t mine, int from, Place place) {
  running->value = mine;
  running->from = from;
  wait_for_others(Wait::Shuffle, place);
  return running->value;
}

void barrier(Place place) {
  wait_for_others(Wait::Barrier, place);
}

void fail(const char* what, Place place) {
  std::fprintf(stderr, "CUDA emulator: %s (%s:%d)\n", what, place.file, place.line);
  std::abort();
}

void set_seed(uint64_t seed) {
  order_seed = seed;
}

void launch(dim3 grid, dim3 block, const std::function<void()>& kernel) {
  if (block.x % kLanes) fail("a block that is not made of whole warps", {"launch", 0});
  while (fibres.size() < block.x) fibres.push_back(std::make_unique<Fibre>());
  std::mt19937_64 random(order_seed);
  body = &kernel;
  for (unsigned b = 0; b < grid.x; ++b) {
    for (unsigned t = 0; t < block.x; ++t) {
      fibres[t]->thread = {{t, 0, 0}, {b, 0, 0}, {block.x, 1, 1}, {grid.x, 1, 1}};
    }
    run_block(static_cast<int>(block.x), random);
  }
  running = nullptr;
}

}  // namespace cuda_emulator
