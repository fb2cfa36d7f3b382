#pragma once

// Included by avx512.cpp, avx2.cpp and portable.cpp, once each: the kernels, compiled for that file's target.

#include "backward.h"
#include "kernels.h"
#include "log_prob.h"

namespace rhovae::RHOVAE_ISA {

inline bool is_double(const Problem& p) {
  return p.mu.type == Type::Float64;
}

void forward(const Forward& p, int64_t begin, int64_t end) {
  is_double(p) ? forward_rows<double>(p, begin, end) : forward_rows<float>(p, begin, end);
}
void forward_share(const Forward& p, int64_t row, Relay& relay) {
  is_double(p) ? forward_shared<double>(p, row, relay) : forward_shared<float>(p, row, relay);
}

void backward(const Backward& p, int64_t begin, int64_t end) {
  is_double(p) ? backward_rows<double>(p, begin, end) : backward_rows<float>(p, begin, end);
}
void backward_share(const Backward& p, int64_t row, Relay& relay) {
  is_double(p) ? backward_shared<double>(p, row, relay) : backward_shared<float>(p, row, relay);
}

void log_prob(const LogProb& p, int64_t begin, int64_t end) {
  is_double(p) ? log_prob_rows<double>(p, begin, end, log_prob_along<double>)
               : log_prob_rows<float>(p, begin, end, log_prob_along<float>);
}
void log_prob_share(const LogProb& p, int64_t row, Relay& relay) {
  is_double(p) ? log_prob_shared<double>(p, row, relay, log_prob_along<double>)
               : log_prob_shared<float>(p, row, relay, log_prob_along<float>);
}

void log_prob_backward(const LogProbBackward& p, int64_t begin, int64_t end) {
  is_double(p) ? log_prob_rows<double>(p, begin, end, log_prob_backward_along<double>)
               : log_prob_rows<float>(p, begin, end, log_prob_backward_along<float>);
}
void log_prob_backward_share(const LogProbBackward& p, int64_t row, Relay& relay) {
  is_double(p) ? log_prob_shared<double>(p, row, relay, log_prob_backward_along<double>)
               : log_prob_shared<float>(p, row, relay, log_prob_backward_along<float>);
}

template <class C>
void normals(const Noise& noise, uint64_t row, int64_t count, C* out) {
  const LaneKeys keys = lane_keys(noise.seed);
  Scratch& scratch = Scratch::of_thread();
  const Scratch::Scope scope(scratch);
  auto& buffer = scratch.make<TileBuffer<C>>();
  for (int64_t first = 0; first < count; first += kTile) {
    const int64_t some = count - first < kTile ? count - first : kTile;
    normals_along<C>(keys, noise.offset + static_cast<uint64_t>(first / kNormalsPerBlock<C>),
                     noise.row_offset + row, buffer, some);
    std::memcpy(out + first, buffer, static_cast<size_t>(some) * sizeof(C));
  }
}

}  // namespace rhovae::RHOVAE_ISA

#define RHOVAE_STRING_(x) #x
#define RHOVAE_STRING(x) RHOVAE_STRING_(x)
#define RHOVAE_KERNEL(name) {rhovae::RHOVAE_ISA::name, rhovae::RHOVAE_ISA::name##_share}
#define RHOVAE_KERNELS                 \
  {RHOVAE_STRING(RHOVAE_ISA),          \
   RHOVAE_KERNEL(forward),             \
   RHOVAE_KERNEL(backward),            \
   RHOVAE_KERNEL(log_prob),            \
   RHOVAE_KERNEL(log_prob_backward),   \
   rhovae::RHOVAE_ISA::normals<float>, \
   rhovae::RHOVAE_ISA::normals<double>}
