#pragma once

// A stretch of one row: its noise and its parameters, step by step, in buffers of the first-level cache.

#include "noise.h"
#include "relay.h"
#include "row_parameters.h"

namespace rhovae::RHOVAE_ISA {

using cpu::Baton;
using cpu::Relay;
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

// One row's parameters over one tile.
template <class C, bool logs>
struct TileParameters {
  alignas(64) TileBuffer<C> s_buffer, log_s_buffer, rho, c, minus_log_c;
  Run<C> s, log_s;

  RHOVAE_INLINE void read(const Problem& p, const PerRow<C>& row, int lane, int64_t scale_start,
                          int64_t rho_start, int64_t first, int64_t count, bool uniform_rho_too) {
    if (p.scale.step) {
      scale_run<C, logs>(p, scale_start, first, count, s_buffer, log_s_buffer);
    } else {
      store<C>(s_buffer, splat<C>(row.s[lane]));
      store<C>(log_s_buffer, splat<C>(row.log_s[lane]));
    }
    s = {s_buffer, p.scale.step};
    log_s = {log_s_buffer, p.scale.step};
    if (p.rho.step)
      rho_run<C, logs>(p, rho_start, first, count, rho, c, minus_log_c);
    else if (uniform_rho_too)
      rho_run_uniform(row.rho[lane], row.c[lane], p.steps, first, count, rho, c);
  }
};

}  // namespace rhovae::RHOVAE_ISA
