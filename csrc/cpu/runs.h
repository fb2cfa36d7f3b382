#pragma once

// Moving values between tensors of any type and buffers of the arithmetic's type: along a row (a run of its
// steps) and across rows (a row a lane, step after step).

#include "../core/problem.h"
#include "half.h"
#include "simd.h"

namespace rhovae::RHOVAE_ISA {

constexpr int64_t kShortRow = 64;  // rows shorter than this share the lanes of a register

template <class C>
constexpr Type kTypeOf = sizeof(C) == 4 ? Type::Float32 : Type::Float64;

RHOVAE_INLINE const char* address(const Operand& from, int64_t start) {
  return static_cast<const char*>(from.data) + start * size_of(from.type);
}

template <class C>
RHOVAE_INLINE C read_one(const Operand& from, int64_t start) {
  const char* at = address(from, start);
  switch (from.type) {
    case Type::Float32:
      return static_cast<C>(*reinterpret_cast<const float*>(at));
    case Type::Float64:
      return static_cast<C>(*reinterpret_cast<const double*>(at));
    case Type::BFloat16:
      return static_cast<C>(BFloat16::widen(*reinterpret_cast<const uint16_t*>(at)));
    case Type::Float16:
      return static_cast<C>(Float16::widen(*reinterpret_cast<const uint16_t*>(at)));
  }
  return C{};
}

template <class C>
RHOVAE_INLINE void read_run(const Operand& from, int64_t start, int64_t count, C* to) {
  const char* at = address(from, start);
  if constexpr (sizeof(C) == 4) {
    if (from.type == Type::BFloat16) return widen<BFloat16>(reinterpret_cast<const uint16_t*>(at), to, count);
    if (from.type == Type::Float16) return widen<Float16>(reinterpret_cast<const uint16_t*>(at), to, count);
  }
  if (from.type == kTypeOf<C>) {
    std::memcpy(to, at, static_cast<size_t>(count) * sizeof(C));
  } else {
    for (int64_t k = 0; k < count; ++k) to[k] = static_cast<C>(reinterpret_cast<const float*>(at)[k]);
  }
}

// The tensor itself where it is of the arithmetic's type, else the buffer, filled.
template <class C>
RHOVAE_INLINE const C* view_run(const Operand& from, int64_t start, int64_t count, C* buffer) {
  if (from.type == kTypeOf<C>) return reinterpret_cast<const C*>(address(from, start));
  read_run(from, start, count, buffer);
  return buffer;
}

RHOVAE_INLINE char* address(const Output& to, int64_t start) {
  return static_cast<char*>(to.data) + start * size_of(to.type);
}

template <class C>
RHOVAE_INLINE void write_run(const Output& to, int64_t start, int64_t count, const C* from) {
  char* at = address(to, start);
  if constexpr (sizeof(C) == 4) {
    if (to.type == Type::BFloat16) return narrow<BFloat16>(from, reinterpret_cast<uint16_t*>(at), count);
    if (to.type == Type::Float16) return narrow<Float16>(from, reinterpret_cast<uint16_t*>(at), count);
  }
  if (to.type == kTypeOf<C>) {
    std::memcpy(at, from, static_cast<size_t>(count) * sizeof(C));
  } else {
    for (int64_t k = 0; k < count; ++k) reinterpret_cast<float*>(at)[k] = static_cast<float>(from[k]);
  }
}

template <class C>
RHOVAE_INLINE void write_one(const Output& to, int64_t start, double value) {
  const C v = static_cast<C>(value);
  write_run(to, start, 1, &v);
}

// Where to write a run directly: the tensor itself, or the buffer, which finish_run then converts.
template <class C>
RHOVAE_INLINE C* begin_run(const Output& to, int64_t start, C* buffer) {
  return to.type == kTypeOf<C> ? reinterpret_cast<C*>(address(to, start)) : buffer;
}
template <class C>
RHOVAE_INLINE void finish_run(const Output& to, int64_t start, int64_t count, const C* buffer) {
  if (to.type != kTypeOf<C>) write_run(to, start, count, buffer);
}

// Neutral values past `count`, up to a whole register, so that sums need no mask.
template <class C>
RHOVAE_INLINE void pad(C* run, int64_t count, C neutral) {
  for (int64_t k = count; k % Lanes<C>::n != 0; ++k) run[k] = neutral;
}

// to[k * n + lane] = row lane's step k, for `rows` lanes; `neutral` in the others.
template <class C>
RHOVAE_INLINE void read_across(const Operand& from, const int64_t* start, int rows, int64_t steps, C neutral,
                               C* to) {
  constexpr int n = Lanes<C>::n;
  alignas(kBytes) C buffer[kShortRow + n];
  for (int lane = 0; lane < n; ++lane) {
    if (lane < rows) {
      const C* run = view_run(from, start[lane], steps, buffer);
      for (int64_t k = 0; k < steps; ++k) to[k * n + lane] = run[k];
    } else {
      for (int64_t k = 0; k < steps; ++k) to[k * n + lane] = neutral;
    }
  }
}

// The converse: rows of `steps` values, one after the other from `start` on.
template <class C>
RHOVAE_INLINE void write_across(const Output& to, int64_t start, int rows, int64_t steps, const C* from) {
  constexpr int n = Lanes<C>::n;
  alignas(kBytes) C buffer[kShortRow + n];
  for (int lane = 0; lane < rows; ++lane) {
    C* run = begin_run(to, start + lane * steps, buffer);
    for (int64_t k = 0; k < steps; ++k) run[k] = from[k * n + lane];
    finish_run(to, start + lane * steps, steps, buffer);
  }
}

}  // namespace rhovae::RHOVAE_ISA
