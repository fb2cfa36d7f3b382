#pragma once

// Moving values between tensors of any type and buffers of the arithmetic's type: along a row (a run of its
// steps) and across rows (a row a lane, step after step).

#include "../core/problem.h"
#include "half.h"
#include "simd.h"

namespace rhovae::RHOVAE_ISA {

// How a tensor holds its values: `load` and `store` move the first `count` lanes of a register, an int or a
// Part.
template <class C>
struct AsIs {
  using Value = C;
  template <class Count>
  static RHOVAE_INLINE V<C> load(const C* from, Count count) {
    return load_some(from, count);
  }
  template <class Count>
  static RHOVAE_INLINE void store(C* to, V<C> v, Count count) {
    store_some(to, v, count);
  }
};
template <class Half>
struct AsHalf {
  using Value = uint16_t;
  template <class Count>
  static RHOVAE_INLINE F32 load(const uint16_t* from, Count count) {
    return Half::widen(load_some<uint16_t, HalfU16>(from, count));
  }
  template <class Count>
  static RHOVAE_INLINE void store(uint16_t* to, F32 v, Count count) {
    store_some(to, Half::narrow(v), count);
  }
};
struct AsSingle {  // float32 under float64
  using Value = float;
  template <class Count>
  static RHOVAE_INLINE F64 load(const float* from, Count count) {
    return __builtin_convertvector((load_some<float, HalfF32>(from, count)), F64);
  }
  template <class Count>
  static RHOVAE_INLINE void store(float* to, F64 v, Count count) {
    store_some(to, __builtin_convertvector(v, HalfF32), count);
  }
};

template <class C>
constexpr Type kTypeOf = sizeof(C) == 4 ? Type::Float32 : Type::Float64;

// Calls f(As...{}) for the type's way of holding its values. float64 goes with float64 and float32 alone.
template <class C, class F>
RHOVAE_INLINE void with_type(Type type, const F& f) {
  if (type == kTypeOf<C>) return f(AsIs<C>{});
  if constexpr (sizeof(C) == 4) {
    if (type == Type::Float16) return f(AsHalf<Float16>{});
#if RHOVAE_X86_64_LEVEL == 4
    if (kHasBFloat16Instruction) return f(AsHalf<BFloat16ByInstruction>{});
#endif
    f(AsHalf<BFloat16>{});
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

// Rows that share a register, a row a lane.
struct Group {
  int64_t first;
  int rows;
  RHOVAE_INLINE Group next() const { return {first + rows, rows}; }
  // Its place in an output of (samples, rows, steps).
  RHOVAE_INLINE Group of_sample(int64_t sample, int64_t all_rows) const {
    return {sample * all_rows + first, rows};
  }
};

// A group of short rows is wanted all at once, but cannot come at once. So it is asked for while the noise of
// the group before is drawn, which needs no memory, a few lines at a time: these ask for what steps [k, k +
// count) fill, of all rows together. Into the second-level cache: the first has room for too few requests. An
// address past the tensor's end is no error. (A function of its own would be dropped: it changes nothing.)
template <int write>
RHOVAE_INLINE void prefetch(const void* data, int64_t start, int64_t count, int64_t size) {
  constexpr int second_level = 2;
  const char* run = static_cast<const char*>(data) + start * size;
  for (int64_t i = 0; i < count * size; i += 64) __builtin_prefetch(run + i, write, second_level);
}
template <class C>
RHOVAE_INLINE void prefetch_steps(const Problem& p, const Output& to, Group group, int64_t k, int64_t count) {
  constexpr int n = Lanes<C>::n;
  prefetch<1>(to.data, group.first * p.steps + k * n, count * n, size_of(to.type));
}
template <class C>
RHOVAE_INLINE void prefetch_steps(const Problem& p, const Operand& from, Group group, int64_t k,
                                  int64_t count, int64_t sample = 0) {
  constexpr int n = Lanes<C>::n;
  const int64_t size = size_of(from.type), start = sample * from.sample_stride;
  if (p.lead.axes == 1 && from.stride[0] > 0 && from.stride[0] <= p.steps) {  // one after the other
    prefetch<0>(from.data, start + group.first * from.stride[0] + k * n, count * n, size);
  } else {
    for (int lane = 0; lane < group.rows; ++lane) {
      prefetch<0>(from.data, start + row_start(p.lead, from, group.first + lane) + k, count, size);
    }
  }
}

// f(rows, left) for a block of n rows by n steps: what is whole as a constant, a row's last steps as a Part.
template <class C, class F>
RHOVAE_INLINE void with_block(int rows, int64_t left, const F& f) {
  constexpr std::integral_constant<int, Lanes<C>::n> all;
  if (rows < all) return f(rows, static_cast<int>(left));
  left < all ? f(all, Part{static_cast<int>(left)}) : f(all, all);
}

// Where the rows of a group begin in the tensor.
template <class C>
RHOVAE_INLINE void row_starts(const Problem& p, const Operand& from, Group group, int64_t sample,
                              int64_t (&start)[Lanes<C>::n]) {
  const int64_t offset = sample * from.sample_stride;
  if (p.lead.axes == 1) {
    for (int lane = 0; lane < Lanes<C>::n; ++lane) {
      start[lane] = offset + (group.first + lane) * from.stride[0];
    }
  } else {
    for (int lane = 0; lane < group.rows; ++lane) {
      start[lane] = offset + row_start(p.lead, from, group.first + lane);
    }
  }
}

// to[k * n + lane] = row lane's step first + k, for a group of rows; `neutral` in the lanes without one.
// Whole blocks of n steps are written: zeros past `count`.
template <class C>
RHOVAE_ALONE void read_across(const Problem& p, const Operand& from, Group group, int64_t first,
                              int64_t count, C neutral, C* to, int64_t sample = 0) {
  constexpr int n = Lanes<C>::n;
  int64_t start[n];
  row_starts<C>(p, from, group, sample, start);
  with_type<C>(from.type, [&](auto as) RHOVAE_INLINE_BODY {
    const auto* at = values_of<decltype(as)>(from, first);
    for (int64_t k = 0; k < count; k += n) {
      V<C> block[n];
      with_block<C>(group.rows, count - k, [&](auto rows, auto left) RHOVAE_INLINE_BODY {
#pragma GCC unroll 16
        for (int lane = 0; lane < n; ++lane) {
          block[lane] = lane < rows ? as.load(at + start[lane] + k, left) : splat<C>(neutral);
        }
        transpose_to<C>(block, left);
      });
#pragma GCC unroll 16
      for (int i = 0; i < n; ++i) store<C>(to + (k + i) * n, block[i]);
    }
  });
}

// The converse, to rows of `steps` values, one after the other.
template <class C>
RHOVAE_ALONE void write_across(const Output& to, Group group, int64_t steps, const C* from) {
  constexpr int n = Lanes<C>::n;
  with_type<C>(to.type, [&](auto as) RHOVAE_INLINE_BODY {
    auto* at = values_of<decltype(as)>(to, group.first * steps);
    for (int64_t k = 0; k < steps; k += n) {
      V<C> block[n];
#pragma GCC unroll 16
      for (int i = 0; i < n; ++i) block[i] = load<C>(from + (k + i) * n);
      with_block<C>(group.rows, steps - k, [&](auto rows, auto left) RHOVAE_INLINE_BODY {
        transpose_from<C>(block, left);
#pragma GCC unroll 16
        for (int lane = 0; lane < n; ++lane) {
          if (lane < rows) as.store(at + lane * steps + k, block[lane], left);
        }
      });
    }
  });
}

}  // namespace rhovae::RHOVAE_ISA
