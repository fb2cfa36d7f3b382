#pragma once

// Moving values between tensors of any type and buffers of the arithmetic's type: along a row (a run of its
// steps) and across rows (a row a lane, step after step).

#include "../core/problem.h"
#include "half.h"
#include "simd.h"

namespace rhovae::RHOVAE_ISA {

// How a tensor holds its values: `load` and `store` move the first `count` lanes of a register.
template <class C>
struct AsIs {
  using Value = C;
  static RHOVAE_INLINE V<C> load(const C* from, int count) { return load_some<C>(from, count); }
  static RHOVAE_INLINE void store(C* to, V<C> v, int count) { store_some<C>(to, v, count); }
};
// A type narrower than the arithmetic's: half a register, or less of it.
template <class Narrow, class Value>
RHOVAE_INLINE Narrow load_narrow(const Value* from, int count) {
  constexpr int lanes = sizeof(Narrow) / sizeof(Value);
  Narrow v;
  if (count >= lanes) {
    std::memcpy(&v, from, sizeof v);
  } else {
    Value values[lanes] = {};
    copy_some<Value, lanes>(values, from, count);
    std::memcpy(&v, values, sizeof v);
  }
  return v;
}
template <class Narrow, class Value>
RHOVAE_INLINE void store_narrow(Value* to, Narrow v, int count) {
  constexpr int lanes = sizeof(Narrow) / sizeof(Value);
  if (count >= lanes) {
    std::memcpy(to, &v, sizeof v);
  } else {
    Value values[lanes];
    std::memcpy(values, &v, sizeof v);
    copy_some<Value, lanes>(to, values, count);
  }
}
template <class Half>
struct AsHalf {
  using Value = uint16_t;
  static RHOVAE_INLINE F32 load(const uint16_t* from, int count) {
    return Half::widen(load_narrow<HalfU16>(from, count));
  }
  static RHOVAE_INLINE void store(uint16_t* to, F32 v, int count) {
    store_narrow(to, Half::narrow(v), count);
  }
};
struct AsSingle {  // float32 under float64
  using Value = float;
  static RHOVAE_INLINE F64 load(const float* from, int count) {
    return __builtin_convertvector(load_narrow<HalfF32>(from, count), F64);
  }
  static RHOVAE_INLINE void store(float* to, F64 v, int count) {
    store_narrow(to, __builtin_convertvector(v, HalfF32), count);
  }
};

template <class C>
constexpr Type kTypeOf = sizeof(C) == 4 ? Type::Float32 : Type::Float64;

// Calls f(As...{}) for the type's way of holding its values. float64 goes with float64 and float32 alone.
template <class C, class F>
RHOVAE_INLINE void with_type(Type type, const F& f) {
  if (type == kTypeOf<C>) return f(AsIs<C>{});
  if constexpr (sizeof(C) == 4) {
    type == Type::BFloat16 ? f(AsHalf<BFloat16>{}) : f(AsHalf<Float16>{});
  } else {
    f(AsSingle{});
  }
}

// The same for mu and z, which no float32 goes with where the arithmetic is in float64.
template <class C, class F>
RHOVAE_INLINE void with_sample_type(Type type, const F& f) {
  if constexpr (sizeof(C) == 4)
    with_type<C>(type, f);
  else
    f(AsIs<C>{});
}

template <class As>
RHOVAE_INLINE const typename As::Value* values_of(const Operand& from, int64_t start) {
  return static_cast<const typename As::Value*>(from.data) + start;
}
template <class As>
RHOVAE_INLINE typename As::Value* values_of(const Output& to, int64_t start) {
  return static_cast<typename As::Value*>(to.data) + start;
}

// Whole registers are written: up to one of them past `count`, zeros.
template <class C>
RHOVAE_INLINE void read_run(const Operand& from, int64_t start, int64_t count, C* to) {
  with_type<C>(from.type, [&](auto as) {
    const auto* at = values_of<decltype(as)>(from, start);
    over_registers<C>(
        count, [&](int64_t k, auto left) RHOVAE_INLINE_BODY { store<C>(to + k, as.load(at + k, left)); });
  });
}

template <class C>
RHOVAE_INLINE C read_one(const Operand& from, int64_t start) {
  C value{};
  with_type<C>(from.type, [&](auto as) RHOVAE_INLINE_BODY {
    value = as.load(values_of<decltype(as)>(from, start), 1)[0];
  });
  return value;
}

// The tensor itself where it is of the arithmetic's type, else the buffer, filled.
template <class C>
RHOVAE_INLINE const C* view_run(const Operand& from, int64_t start, int64_t count, C* buffer) {
  if (from.type == kTypeOf<C>) return static_cast<const C*>(from.data) + start;
  read_run(from, start, count, buffer);
  return buffer;
}

template <class C>
RHOVAE_INLINE void write_run(const Output& to, int64_t start, int64_t count, const C* from) {
  with_type<C>(to.type, [&](auto as) {
    auto* at = values_of<decltype(as)>(to, start);
    over_registers<C>(count, [&](int64_t k, auto left) RHOVAE_INLINE_BODY {
      as.store(at + k, load_some<C>(from + k, left), left);
    });
  });
}

template <class C>
RHOVAE_INLINE void write_one(const Output& to, int64_t start, double value) {
  with_type<C>(to.type, [&](auto as) RHOVAE_INLINE_BODY {
    as.store(values_of<decltype(as)>(to, start), splat<C>(static_cast<C>(value)), 1);
  });
}

// Where to write a run directly: the tensor itself, or the buffer, which finish_run then converts.
template <class C>
RHOVAE_INLINE C* begin_run(const Output& to, int64_t start, C* buffer) {
  return to.type == kTypeOf<C> ? static_cast<C*>(to.data) + start : buffer;
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

// Asks for short rows early: a group of them is wanted all at once, and drawing its noise takes as long as
// they take to come. Into the second-level cache: the first has room for too few requests, and the others
// would hold up the noise.
constexpr int kSecondLevel = 2;
template <int write>
RHOVAE_INLINE void prefetch(const void* data, int64_t start, int64_t count, int64_t size) {
  const char* run = static_cast<const char*>(data) + start * size;
  for (int64_t i = 0; i < count * size; i += 64) __builtin_prefetch(run + i, write, kSecondLevel);
}
RHOVAE_INLINE void prefetch_run(const Output& to, int64_t start, int64_t count) {
  prefetch<1>(to.data, start, count, size_of(to.type));
}
RHOVAE_INLINE void prefetch_rows(const Problem& p, const Operand& from, const int64_t* start, int rows) {
  const int64_t size = size_of(from.type);
  if (p.lead.axes == 1 && from.stride[0] == p.steps) {  // one after the other
    prefetch<0>(from.data, start[0], rows * p.steps, size);
  } else {
    for (int lane = 0; lane < rows; ++lane) prefetch<0>(from.data, start[lane], p.steps, size);
  }
}

// to[k * n + lane] = row lane's step k, for `rows` lanes; `neutral` in the others. Whole blocks of n steps
// are written: zeros past `steps`.
template <class C>
RHOVAE_INLINE void read_across(const Operand& from, const int64_t* start, int rows, int64_t steps, C neutral,
                               C* to) {
  constexpr int n = Lanes<C>::n;
  with_type<C>(from.type, [&](auto as) {
    const auto* at = values_of<decltype(as)>(from, 0);
    for (int64_t k = 0; k < steps; k += n) {
      const int left = static_cast<int>(steps - k);
      V<C> block[n];
      if (rows == n && left >= n) {
#pragma GCC unroll 16
        for (int lane = 0; lane < n; ++lane) block[lane] = as.load(at + start[lane] + k, n);
      } else {
#pragma GCC unroll 16
        for (int lane = 0; lane < n; ++lane) {
          block[lane] = lane < rows ? as.load(at + start[lane] + k, left) : splat<C>(neutral);
        }
      }
      transpose<C>(block);
#pragma GCC unroll 16
      for (int i = 0; i < n; ++i) store<C>(to + (k + i) * n, block[i]);
    }
  });
}

// The converse: rows of `steps` values, one after the other from `start` on.
template <class C>
RHOVAE_INLINE void write_across(const Output& to, int64_t start, int rows, int64_t steps, const C* from) {
  constexpr int n = Lanes<C>::n;
  with_type<C>(to.type, [&](auto as) {
    auto* at = values_of<decltype(as)>(to, start);
    for (int64_t k = 0; k < steps; k += n) {
      const int left = static_cast<int>(steps - k);
      V<C> block[n];
#pragma GCC unroll 16
      for (int i = 0; i < n; ++i) block[i] = load<C>(from + (k + i) * n);
      transpose<C>(block);
      if (rows == n && left >= n) {
#pragma GCC unroll 16
        for (int lane = 0; lane < n; ++lane) as.store(at + lane * steps + k, block[lane], n);
      } else {
#pragma GCC unroll 16
        for (int lane = 0; lane < n; ++lane) {
          if (lane < rows) as.store(at + lane * steps + k, block[lane], left);
        }
      }
    }
  });
}

}  // namespace rhovae::RHOVAE_ISA
