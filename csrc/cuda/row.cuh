#pragma once

// Where a team works: which row, sample and steps; and its operands there.

#include <type_traits>

#include "element.cuh"
#include "plan.h"
#include "team.cuh"

namespace rhovae::cuda {

struct Span {
  int64_t row, sample, segment;
  int64_t begin;  // the first step
  int32_t steps;  // 0: this team has nothing to do but keep the others company
};

template <class Team>
__device__ __forceinline__ Span span_of(const Problem& p, const Plan& plan, int64_t unit, bool samples_apart) {
  Span span{unit, 0, 0, 0, static_cast<int32_t>(p.steps)};
  if constexpr (Team::kWithinWarp) {
    if (unit >= plan.units) span.row = 0, span.steps = 0;
  } else if (plan.segments > 1) {
    span.row = unit / plan.segments;
    span.segment = unit - span.row * plan.segments;
    span.begin = span.segment * plan.segment_steps;
    const int64_t left = p.steps - span.begin;
    span.steps = static_cast<int32_t>(left < plan.segment_steps ? left : plan.segment_steps);
  }
  if (samples_apart && p.samples > 1) {
    span.sample = span.row / p.rows;
    span.row -= span.sample * p.rows;
  }
  return span;
}

// An input along a span: of type T, or of float.
template <class T>
class Source {
 public:
  using V = Arithmetic<T>;
  static constexpr int N = kItems<T>;

  __device__ __forceinline__ Source() {}
  // `ahead`: how many steps the operand's values lie before the row's own (rho's first ties steps 1 and 2).
  __device__ __forceinline__ Source(const Leading& lead, const Operand& operand, const Span& span, int ahead = 0)
      : step_(operand.step), own_type_(operand.type == kType<T>) {
    const int64_t start = row_start(lead, operand, span.row) + span.sample * operand.sample_stride +
                          (span.begin - ahead) * operand.step;
    at_ = static_cast<const char*>(operand.data) + start * size_of(operand.type);
    const uintptr_t alignment = own_type_ ? kRunAlignment<T, N> : kRunAlignment<float, N>;
    wide_until_ = step_ && reinterpret_cast<uintptr_t>(at_) % alignment == 0 ? span.steps : 0;
  }

  __device__ __forceinline__ bool per_step() const { return step_; }

  __device__ __forceinline__ V at(int k) const {
    if constexpr (!std::is_same_v<T, float>) {
      if (own_type_) return widen(reinterpret_cast<const T*>(at_)[static_cast<int64_t>(k) * step_]);
    }
    return static_cast<V>(reinterpret_cast<const float*>(at_)[static_cast<int64_t>(k) * step_]);
  }
  // Steps [k, k + N); zero where they do not lie in [from, steps).
  __device__ __forceinline__ void load(int k, int from, int steps, V (&to)[N]) const {
    if constexpr (!std::is_same_v<T, float>) {
      if (own_type_) return load_as<T>(k, from, steps, to);
    }
    load_as<float>(k, from, steps, to);
  }

 private:
  template <class S>
  __device__ __forceinline__ void load_as(int k, int from, int steps, V (&to)[N]) const {
    const S* values = reinterpret_cast<const S*>(at_);
    if (k >= from && k + N <= wide_until_) {
      load_run(values + k, to);
    } else {
#pragma unroll
      for (int j = 0; j < N; ++j) {
        const bool inside = k + j >= from && k + j < steps;
        to[j] = inside ? static_cast<V>(widen(values[(k + j) * step_])) : V(0);
      }
    }
  }

  const char* at_ = nullptr;
  int32_t step_ = 0;
  int32_t wide_until_ = 0;  // runs that end by here are read at once
  bool own_type_ = false;
};

// An output of type T, or of float, contiguous: `start` is the element that the span begins with.
template <class T>
class Sink {
 public:
  using V = Arithmetic<T>;
  static constexpr int N = kItems<T>;

  __device__ __forceinline__ Sink() {}
  __device__ __forceinline__ Sink(const Output& output, int64_t start, int steps)
      : own_type_(output.type == kType<T>) {
    at_ = static_cast<char*>(output.data) + start * size_of(output.type);
    const uintptr_t alignment = own_type_ ? kRunAlignment<T, N> : kRunAlignment<float, N>;
    wide_until_ = reinterpret_cast<uintptr_t>(at_) % alignment == 0 ? steps : 0;
  }

  // Steps [k, k + N) that lie in [from, steps); `add`: to what is there.
  __device__ __forceinline__ void store(int k, int from, int steps, V (&v)[N], bool add = false) const {
    if constexpr (!std::is_same_v<T, float>) {
      if (own_type_) return store_as<T>(k, from, steps, v, add);
    }
    store_as<float>(k, from, steps, v, add);
  }
  __device__ __forceinline__ void put(V v) const {
    if constexpr (!std::is_same_v<T, float>) {
      if (own_type_) {
        *reinterpret_cast<T*>(at_) = narrow<T>(v);
        return;
      }
    }
    *reinterpret_cast<float*>(at_) = static_cast<float>(v);
  }

 private:
  template <class S>
  __device__ __forceinline__ void store_as(int k, int from, int steps, V (&v)[N], bool add) const {
    S* to = reinterpret_cast<S*>(at_);
    if (add) {
#pragma unroll
      for (int j = 0; j < N; ++j) {
        if (k + j >= from && k + j < steps) v[j] += static_cast<V>(widen(to[k + j]));
      }
    }
    if (k >= from && k + N <= wide_until_) {
      store_run(to + k, v);
    } else {
#pragma unroll
      for (int j = 0; j < N; ++j) {
        if (k + j >= from && k + j < steps) to[k + j] = narrow<S>(static_cast<Arithmetic<S>>(v[j]));
      }
    }
  }

  char* at_ = nullptr;
  int32_t wide_until_ = 0;
  bool own_type_ = false;
};

}  // namespace rhovae::cuda
