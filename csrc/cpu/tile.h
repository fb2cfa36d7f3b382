#pragma once

// A stretch of one row: its noise and its parameters, step by step, in buffers of the first-level cache.

#include "noise.h"
#include "relay.h"
#include "row_parameters.h"
#include "scratch.h"

namespace rhovae::RHOVAE_ISA {

using cpu::Baton;
using cpu::Relay;
using cpu::Scratch;
using cpu::tile_of;
using cpu::tiles_of;

// Values along a row, or one value for all of it (step 0).
template <class C>
struct Run {
  const C* at;
  int64_t step;
  RHOVAE_INLINE V<C> operator[](int64_t k) const { return load<C>(at + k * step); }
};

template <class C>
RHOVAE_INLINE const C* eps_along(const Problem& p, const LaneKeys& keys, int64_t row, int64_t sample,
                                 int64_t first, int64_t count, C* buffer) {
  if (p.eps.data) {
    read_run(p.eps, sample * p.eps.sample_stride + row_start(p.lead, p.eps, row) + first, count, buffer);
    pad(buffer, count, C(0));
  } else {
    const uint64_t position = p.noise.offset + static_cast<uint64_t>(first / kNormalsPerBlock<C>);
    normals_along<C>(keys, position,
                     noise_row(p.noise.row_offset, static_cast<uint64_t>(row),
                               static_cast<uint64_t>(p.samples), static_cast<uint64_t>(sample)),
                     buffer, count);
  }
  return buffer;
}

// One row's parameters over one tile. of_s: s's term of the KL, or log s for the density.
template <class C, Terms terms>
struct TileParameters {
  alignas(64) TileBuffer<C> s_buffer, of_s_buffer, rho, c, minus_log_c;
  Run<C> s, of_s;
  // What enters the tile does not die out in it: the rounding of rho would show in a long row.
  bool remembers;

  RHOVAE_INLINE void read(const Problem& p, const PerRow<C>& row, int lane, int64_t scale_start,
                          int64_t rho_start, int64_t first, int64_t count, bool uniform_rho_too) {
    if (p.scale.step) {
      scale_run<C, terms>(p, scale_start, first, count, s_buffer, of_s_buffer);
    } else {
      const V<C> s_row = splat<C>(row.s[lane]);
      store<C>(s_buffer, working_scale<C, terms>(p, s_row));
      store<C>(of_s_buffer, splat<C>(terms == Terms::Kl ? row.kl_of_s[lane] : row.log_s[lane]));
    }
    s = {s_buffer, p.scale.step};
    of_s = {of_s_buffer, p.scale.step};
    C mean_square = row.c[lane] * row.c[lane];
    if (p.rho.step)
      mean_square = rho_run<C, terms>(p, rho_start, first, count, rho, c, minus_log_c);
    else if (uniform_rho_too)
      rho_run_uniform<C, terms>(row, lane, p.steps, first, count, rho, c);
    remembers = sizeof(C) == 4 && mean_square < static_cast<C>(0x1p-9);
  }
};

// A sum over a run of registers. What the lanes hold goes into float64 every few registers: a long row's sum
// keeps its digits.
template <class C>
class RunSum {
 public:
  RHOVAE_INLINE void add(V<C> v) {
    lanes_ += v;
    if (++registers_ < kRegisters) return;
    total_ = total();
    lanes_ = V<C>{};
    registers_ = 0;
  }
  RHOVAE_INLINE double total() const { return total_ + static_cast<double>(sum_lanes<C>(lanes_)); }

 private:
  static constexpr int kRegisters = 16;
  V<C> lanes_{};
  int registers_ = 0;
  double total_ = 0;
};

}  // namespace rhovae::RHOVAE_ISA
