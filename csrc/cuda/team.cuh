#pragma once

// The threads that share a row, and what they do together: a scan along the row, and a sum over it. Every
// thread holds a run of consecutive steps; its rank orders the runs. The order of every operation follows
// from the row's length alone, never from how many rows there are.

#include "../core/ar1.h"
#include "platform.cuh"

namespace rhovae::cuda {

constexpr int kWarp = 32;

// x -> a x + b: what a run of steps does to the value that enters it.
template <class V>
struct Affine {
  V a, b;
};

template <class V>
__device__ __forceinline__ V apply(const Affine<V>& f, V x) {
  return advance(f.a, x, f.b);
}
template <class V>
__device__ __forceinline__ Affine<V> compose(const Affine<V>& first, const Affine<V>& then) {
  return {then.a * first.a, advance(then.a, first.b, then.b)};
}

// A product of many multipliers, rounded, and what the rounding took off. In float32 rounding would else move
// 1 - |rho| by up to 3e-8 a step: of a rho near 1 a long row would forget too much or nothing.
template <class V>
struct Product {
  V high, low;
};
template <class V>
__device__ __forceinline__ Product<V> operator*(const Product<V>& a, const Product<V>& b) {
  const V high = a.high * b.high;
  return {high, fused_multiply_add(a.high, b.high, -high) + (a.high * b.low + a.low * b.high)};
}

template <bool kReverse, class V>
__device__ __forceinline__ V shift(V v, int distance, int width) {
  return kReverse ? shuffle_down(v, distance, width) : shuffle_up(v, distance, width);
}

// f becomes the map from the segment's start (its end, reversed) up to and including this lane.
template <bool kReverse, class V>
__device__ __forceinline__ void scan_lanes(Affine<V>& f, int place, int width) {
#pragma unroll
  for (int distance = 1; distance < kWarp; distance *= 2) {
    if (distance >= width) break;
    const Affine<V> before = {shift<kReverse>(f.a, distance, width), shift<kReverse>(f.b, distance, width)};
    if (place >= distance) f = compose(before, f);
  }
}

// The same multiplier for every step: its powers are the same for every scan of the row. A lane that has
// nobody at a distance multiplies by zero.
template <class V>
struct Hops {
  V entry;  // by what the value entering the row's tile is multiplied: the first lane's run
  V hop[5];
};

// A warp, or 2, 4, 8 or 16 lanes of it (kLanes = 0: as many as the constructor is told).
template <int kLanes>
class WarpTeam {
 public:
  static constexpr int kThreads = 128;
  static constexpr bool kWithinWarp = true;

  __device__ __forceinline__ explicit WarpTeam(int lanes)
      : lanes_(kLanes ? kLanes : lanes),
        rank_(pinned(static_cast<int>(threadIdx.x) & (size() - 1))),
        before_(kept(rank_ - 1)),
        warp_(of_first_lane(static_cast<int>(threadIdx.x) / kWarp)) {}
  __device__ __forceinline__ int size() const { return kLanes ? kLanes : lanes_; }
  __device__ __forceinline__ int rank() const { return rank_; }

  // Teams are numbered through the grid. The first of this warp, which its whole warp goes by, and this one's
  // place.
  __device__ __forceinline__ int64_t first_of_warp() const {
    return (static_cast<int64_t>(blockIdx.x) * (kThreads / kWarp) + warp_) * (kWarp / size());
  }
  __device__ __forceinline__ int place_in_warp() const {
    return static_cast<int>(threadIdx.x) % kWarp / size();
  }
  __device__ __forceinline__ int64_t teams() const {
    return static_cast<int64_t>(gridDim.x) * (kThreads / size());
  }

  __device__ __forceinline__ bool all_of_warp(bool v) const { return true_for_warp(v); }

  template <class V>
  __device__ __forceinline__ Hops<V> hops(V run_power) const {
    Hops<V> h;
    h.entry = pinned(rank_ == 0 ? run_power : V(0));
#pragma unroll
    for (int i = 0; i < 5; ++i) {
      h.hop[i] = pinned(rank_ >= 1 << i ? run_power : V(0));
      run_power = run_power * run_power;
    }
    return h;
  }

  // `last`: what this thread's run ends with when zero enters it. Returns what does enter it. The carry,
  // which the first lane alone knows, enters the first run, and leaves as what the last one ends with.
  template <class V>
  __device__ __forceinline__ V scan(V last, const Hops<V>& h, V& carry) const {
    last = advance(h.entry, carry, last);
#pragma unroll
    for (int i = 0; i < 5; ++i) {
      if (1 << i >= size()) break;
      last = advance(h.hop[i], shuffle_up(last, 1 << i, size()), last);
    }
    // One step round the circle: the last run's end comes to the first lane.
    const V before = broadcast(last, before_, size());
    const V entering = rank_ == 0 ? carry : before;
    carry = before;
    return entering;
  }

  template <bool kReverse, class V>
  __device__ __forceinline__ V scan(Affine<V> f, V& carry) const {
    const int place = kReverse ? size() - 1 - rank_ : rank_;
    scan_lanes<kReverse>(f, place, size());
    const V leaving = apply(f, carry);
    const V before = shift<kReverse>(leaving, 1, size());
    const V entering = place == 0 ? carry : before;
    carry = broadcast(leaving, kReverse ? 0 : size() - 1, size());
    return entering;
  }

  template <class V>
  __device__ __forceinline__ V sum(V v) const {
#pragma unroll
    for (int i = 0; i < 5; ++i) {
      if (1 << i >= size()) break;
      v += shuffle_xor(v, 1 << i);
    }
    return v;
  }

 private:
  int lanes_;
  int rank_;
  int before_;
  int warp_;  // said by one lane to all, so that the compiler knows them to go the same way
};

// A block of eight warps.
class BlockTeam {
 public:
  static constexpr int kThreads = 256;
  static constexpr bool kWithinWarp = false;
  static constexpr int kWarps = kThreads / kWarp;

  __device__ __forceinline__ explicit BlockTeam(int) {}
  __device__ __forceinline__ int size() const { return kThreads; }
  __device__ __forceinline__ int rank() const { return static_cast<int>(threadIdx.x); }

  __device__ __forceinline__ int64_t first_of_warp() const { return blockIdx.x; }
  __device__ __forceinline__ int place_in_warp() const { return 0; }
  __device__ __forceinline__ int64_t teams() const { return gridDim.x; }

  // This thread's run multiplies by `run`, and ends with `last` when zero enters it.
  template <bool kReverse, class V>
  __device__ __forceinline__ V scan(const Product<V>& run, V last, V& carry) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
    const int place = kReverse ? kWarp - 1 - lane : lane;
    const int warp_place = kReverse ? kWarps - 1 - warp : warp;
    Affine<V> f{run.high, last};
    scan_lanes<kReverse>(f, place, kWarp);
    Product<V> power{f.a, V(0)};
    if (sizeof(V) == 4 && !true_for_warp(run.low == V(0))) power = product_of_warp(run);
    const Total<V>* totals = exchange(Total<V>{power, f.b}, warp_place, place == kWarp - 1);
    V entering_warp = carry;
    for (int w = 0; w < kWarps; ++w) {
      if (w == warp_place) entering_warp = carry;
      carry = advance(totals[w].product.high, carry, advance(totals[w].product.low, carry, totals[w].added));
    }
    const V before = shift<kReverse>(apply(f, entering_warp), 1, kWarp);
    return place == 0 ? entering_warp : before;
  }

  template <class V>
  __device__ __forceinline__ V sum(V v) {
#pragma unroll
    for (int distance = 1; distance < kWarp; distance *= 2) v += shuffle_xor(v, distance);
    const Total<V>* parts =
        exchange(Total<V>{{V(1), V(0)}, v}, static_cast<int>(threadIdx.x) / kWarp, threadIdx.x % kWarp == 0);
    v = parts[0].added;
    for (int w = 1; w < kWarps; ++w) v += parts[w].added;
    return v;
  }
  template <class V>
  __device__ __forceinline__ V product(Product<V> v) {
    const Total<V>* parts = exchange(Total<V>{product_of_warp(v), V(0)},
                                     static_cast<int>(threadIdx.x) / kWarp, threadIdx.x % kWarp == 0);
    v = parts[0].product;
    for (int w = 1; w < kWarps; ++w) v = v * parts[w].product;
    return v.high + v.low;
  }

 private:
  // The product over this thread's warp.
  template <class V>
  __device__ __forceinline__ Product<V> product_of_warp(Product<V> v) const {
#pragma unroll
    for (int distance = 1; distance < kWarp; distance *= 2) {
      v = v * Product<V>{shuffle_xor(v.high, distance), shuffle_xor(v.low, distance)};
    }
    return v;
  }

  template <class V>
  struct Total {
    Product<V> product;
    V added;
  };

  // One value of every warp, for all to read. Two buffers taken in turn need one barrier an exchange: nobody
  // writes a buffer again before all have passed the barrier of the other.
  template <class V>
  __device__ __forceinline__ const Total<V>* exchange(const Total<V>& mine, int place, bool writes) {
    __shared__ Total<V> buffers[2][kWarps];
    Total<V>* buffer = buffers[turn_];
    turn_ ^= 1;
    if (writes) buffer[place] = mine;
    block_barrier();
    return buffer;
  }

  int turn_ = 0;
};

// Blocks of 128 threads that a multiprocessor has to hold at once, and with that the registers a thread may
// take: enough warps to hide the memory. A thread holds twice as many elements of the half types; teams of
// several sizes need a few registers more; float64 is bound by its arithmetic.
template <class T, class Team>
constexpr int kBlocks = sizeof(T) == 4   ? 6
                        : sizeof(T) == 2 ? 5
                                         : 4;
template <class T>
constexpr int kBlocks<T, WarpTeam<0>> = sizeof(T) == 4 ? 5 : 4;

}  // namespace rhovae::cuda
