#pragma once

// Where a team works: which row, sample and steps; and its operands there.

#include <type_traits>

#include "element.cuh"
#include "plan.h"
#include "team.cuh"

namespace rhovae::cuda {

struct Span {
  int64_t row, sample, segment;
  int64_t sample_row;  // rows counted through the samples
  int64_t begin;       // the first step
  int32_t steps;       // 0: this team has nothing to do but keep the others company
};

template <class Team>
__device__ __forceinline__ Span span_of(const Problem& p, const Plan& plan, int64_t unit,
                                        bool samples_apart) {
  Span span{unit, 0, 0, unit, 0, static_cast<int32_t>(p.steps)};
  if constexpr (Team::kWithinWarp) {
    if (unit >= plan.units) span.row = 0, span.steps = 0;
  } else if (plan.segments > 1) {
    span.row = unit / plan.segments;
    span.segment = unit - span.row * plan.segments;
    span.begin = span.segment * plan.segment_steps;
    const int64_t left = p.steps - span.begin;
    span.steps = static_cast<int32_t>(left < plan.segment_steps ? left : plan.segment_steps);
  }
  span.sample_row = span.row;
  if (samples_apart && p.samples > 1) {
    span.sample = span.row / p.rows;
    span.row -= span.sample * p.rows;
  }
  return span;
}

// Leading axes that do not collapse into one are rare: their divisions are kept short in code, not in time.
__device__ __forceinline__ int64_t start_of_row(const Leading& lead, const Operand& operand, int64_t row) {
  if (lead.axes == 1) return row * operand.stride[0];
  int64_t start = 0;
#pragma unroll 1
  for (int axis = lead.axes - 1; axis > 0; --axis) {
    const int64_t outer = row / lead.size[axis];
    start += (row - outer * lead.size[axis]) * operand.stride[axis];
    row = outer;
  }
  return start + row * operand.stride[0];
}

__device__ __forceinline__ bool aligned(const void* at, int bytes = 16) {
  return reinterpret_cast<uintptr_t>(at) % bytes == 0;
}

// Of T or of float.
template <class T>
__device__ __forceinline__ int bytes_of(Type type) {
  return type == kType<T> ? sizeof(T) : sizeof(float);
}

// An input along a span: of type T, or of float.
template <class T>
class Source {
 public:
  using V = Arithmetic<T>;
  static constexpr int N = kItems<T>;

  __device__ __forceinline__ Source() {}
  // `ahead`: how many steps the operand's values lie before the row's own (rho's first ties steps 1 and 2).
  __device__ __forceinline__ Source(const Leading& lead, const Operand& operand, const Span& span,
                                    int ahead = 0)
      : Source(operand, start_of_row(lead, operand, span.row), span, ahead) {}
  // An operand with a sample axis.
  static __device__ __forceinline__ Source of_sample(const Leading& lead, const Operand& operand,
                                                     const Span& span) {
    return Source(operand, start_of_row(lead, operand, span.row) + span.sample * operand.sample_stride, span,
                  0);
  }

  __device__ __forceinline__ bool per_step() const { return operand_->step; }
  __device__ __forceinline__ bool own_type() const { return operand_->type == kType<T>; }
  __device__ __forceinline__ const T* own() const { return reinterpret_cast<const T*>(at_); }

  __device__ __forceinline__ V at(int k) const {
    const int64_t i = operand_->step ? k : 0;
    if constexpr (!std::is_same_v<T, float>) {
      if (own_type()) return widen(load_one(reinterpret_cast<const T*>(at_) + i));
    }
    return static_cast<V>(load_one(reinterpret_cast<const float*>(at_) + i));
  }
  // Steps [k, k + N); zero where they do not lie in [from, steps).
  __device__ __forceinline__ void load(int k, int from, int steps, V (&to)[N]) const {
    if constexpr (!std::is_same_v<T, float>) {
      if (own_type()) return load_as<T>(k, from, steps, to);
    }
    load_as<float>(k, from, steps, to);
  }

 private:
  __device__ __forceinline__ Source(const Operand& operand, int64_t start, const Span& span, int ahead)
      : operand_(&operand) {
    if (operand.step) start += span.begin - ahead;
    at_ = pinned(static_cast<const char*>(operand.data) + start * bytes_of<T>(operand.type));
  }

  template <class S>
  __device__ __forceinline__ void load_as(int k, int from, int steps, V (&to)[N]) const {
    const S* values = reinterpret_cast<const S*>(at_);
    const bool wide = operand_->step && aligned(at_, kRunAlignment<S, N>);
    if (wide && k >= from && k + N <= steps) {
      load_run(values + k, to);
    } else {
#pragma unroll
      for (int j = 0; j < N; ++j) {
        const bool inside = k + j >= from && k + j < steps;
        to[j] = inside ? static_cast<V>(widen(load_one(values + (operand_->step ? k + j : 0)))) : V(0);
      }
    }
  }

  const char* at_ = nullptr;
  const Operand* operand_ = nullptr;  // among the launch's constants: no register
};

// An output of type T, or of float, contiguous: `start` is the element that the span begins with.
template <class T>
class Sink {
 public:
  using V = Arithmetic<T>;
  static constexpr int N = kItems<T>;

  __device__ __forceinline__ Sink() {}
  __device__ __forceinline__ Sink(const Output& output, int64_t start)
      : at_(pinned(static_cast<char*>(output.data) + start * bytes_of<T>(output.type))), output_(&output) {}

  __device__ __forceinline__ bool own_type() const { return output_->type == kType<T>; }
  __device__ __forceinline__ T* own() const { return reinterpret_cast<T*>(at_); }

  // Steps [k, k + N) that lie in [from, steps); `add`: to what is there.
  __device__ __forceinline__ void store(int k, int from, int steps, V (&v)[N], bool add = false) const {
    if constexpr (!std::is_same_v<T, float>) {
      if (own_type()) return store_as<T>(k, from, steps, v, add);
    }
    store_as<float>(k, from, steps, v, add);
  }
  __device__ __forceinline__ void put(V v) const {
    if constexpr (!std::is_same_v<T, float>) {
      if (own_type()) return store_one(reinterpret_cast<T*>(at_), narrow<T>(v));
    }
    store_one(reinterpret_cast<float*>(at_), static_cast<float>(v));
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
    const bool wide = aligned(at_, kRunAlignment<S, N>);
    if (wide && k >= from && k + N <= steps) {
      store_run(to + k, v);
    } else {
#pragma unroll
      for (int j = 0; j < N; ++j) {
        if (k + j >= from && k + j < steps)
          store_one(to + (k + j), narrow<S>(static_cast<Arithmetic<S>>(v[j])));
      }
    }
  }

  char* at_ = nullptr;
  const Output* output_ = nullptr;
};

}  // namespace rhovae::cuda
