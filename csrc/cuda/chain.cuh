#pragma once

// s and rho along a row, ready for a thread's run of steps, and the chain's recurrences over a team.

#include "math.cuh"
#include "row.cuh"

namespace rhovae::cuda {

// s, one for the row or one per step.
template <class T>
class Scales {
 public:
  using V = Arithmetic<T>;
  static constexpr int N = kItems<T>;

  __device__ __forceinline__ Scales(const Problem& p, const Span& span)
      : source_(p.lead, p.scale, span), logits_(p.logits) {
    if (!per_step()) row_ = scale_of(logits_, source_.at(0));
  }
  __device__ __forceinline__ bool per_step() const { return source_.per_step(); }
  __device__ __forceinline__ const Scale<V>& row() const { return row_; }

  __device__ __forceinline__ Scale<V> at(int k) const {
    return per_step() ? scale_of(logits_, source_.at(k)) : row_;
  }
  __device__ __forceinline__ void load(int k, int steps, Scale<V> (&to)[N]) const {
    if (!per_step()) {
#pragma unroll
      for (int j = 0; j < N; ++j) to[j] = row_;
      return;
    }
    V given[N];
    source_.load(k, 0, steps, given);
#pragma unroll
    for (int j = 0; j < N; ++j) to[j] = scale_of(logits_, given[j]);
  }

 private:
  Source<T> source_;
  Scale<V> row_;
  bool logits_;
};

// One rho for the row: its powers serve every tile.
template <class T, class Team>
class UniformChain {
 public:
  using V = Arithmetic<T>;
  static constexpr int N = kItems<T>;

  __device__ __forceinline__ UniformChain(const Problem& p, const Span& span, const Team& team)
      : row_begins_(span.begin == 0) {
    // A row of one step has no correlation, whatever the value.
    const V given = p.steps > 1 ? Source<T>(p.lead, p.rho, span).at(0) : V(0);
    row_ = correlation_of(p.logits, given);
    run_power_ = row_.rho;
#pragma unroll
    for (int j = 1; j < N; j *= 2) run_power_ = run_power_ * run_power_;
    if constexpr (Team::kWithinWarp) hops_ = team.hops(run_power_);
  }

  __device__ __forceinline__ const Correlation<V>& row() const { return row_; }
  __device__ __forceinline__ void load(int k, int) {
    const bool first = row_begins_ && k == 0;
    first_rho_ = first ? V(0) : row_.rho;
    first_c_ = first ? V(1) : row_.c;
  }
  __device__ __forceinline__ void load_next() { first_rho_ = row_.rho, first_c_ = row_.c; }
  __device__ __forceinline__ V rho(int j) const { return j == 0 ? first_rho_ : row_.rho; }
  __device__ __forceinline__ V c(int j) const { return j == 0 ? first_c_ : row_.c; }

  // v_j = rho_j v_{j-1} + source_j along the row, in place. Returns what precedes v_0 (zero at the row's
  // first step, where rho does not matter then).
  __device__ __forceinline__ V run(Team& team, V (&source)[N], V& carry) const {
    V last = source[0];
#pragma unroll
    for (int j = 1; j < N; ++j) last = advance(row_.rho, last, source[j]);
    V before;
    if constexpr (Team::kWithinWarp)
      before = team.scan(last, hops_, carry);
    else
      before = team.template scan<false>(Affine<V>{run_power_, last}, carry);
    V value = before;
#pragma unroll
    for (int j = 0; j < N; ++j) source[j] = value = advance(row_.rho, value, source[j]);
    return before;
  }

 private:
  struct Nothing {};
  Correlation<V> row_;
  V run_power_, first_rho_, first_c_;
  std::conditional_t<Team::kWithinWarp, Hops<V>, Nothing> hops_;
  bool row_begins_;
};

// Any rho, one per step or one for the row.
template <class T, class Team>
class PerStepChain {
 public:
  using V = Arithmetic<T>;
  static constexpr int N = kItems<T>;

  __device__ __forceinline__ PerStepChain(const Problem& p, const Span& span, const Team&)
      : source_(p.lead, p.rho, span, p.rho.step), row_begins_(span.begin == 0), logits_(p.logits) {
    if (!per_step()) row_ = correlation_of(logits_, p.steps > 1 ? source_.at(0) : V(0));
  }

  __device__ __forceinline__ bool per_step() const { return source_.per_step(); }
  __device__ __forceinline__ const Correlation<V>& row() const { return row_; }
  // Before the row's first step and after its last there is no tie: rho = 0, c = 1.
  __device__ __forceinline__ void load(int k, int steps) {
    const int from = row_begins_ ? 1 : 0;
    if (per_step()) {
      V given[N];
      source_.load(k, from, steps, given);
#pragma unroll
      for (int j = 0; j < N; ++j) at_[j] = correlation_of(logits_, given[j]);
    } else {
#pragma unroll
      for (int j = 0; j < N; ++j) {
        const bool tied = k + j >= from && k + j < steps;
        at_[j] = tied ? row_ : Correlation<V>{V(0), V(1), V(0)};
      }
    }
  }
  __device__ __forceinline__ V rho(int j) const { return at_[j].rho; }
  __device__ __forceinline__ V c(int j) const { return at_[j].c; }
  __device__ __forceinline__ V minus_log_c(int j) const { return at_[j].minus_log_c; }

  __device__ __forceinline__ V power() const {
    V a = at_[0].rho;
#pragma unroll
    for (int j = 1; j < N; ++j) a = a * at_[j].rho;
    return a;
  }

  __device__ __forceinline__ V run(Team& team, V (&source)[N], V& carry) const {
    V last = source[0];
#pragma unroll
    for (int j = 1; j < N; ++j) last = advance(at_[j].rho, last, source[j]);
    const V before = team.template scan<false>(Affine<V>{power(), last}, carry);
    V value = before;
#pragma unroll
    for (int j = 0; j < N; ++j) source[j] = value = advance(at_[j].rho, value, source[j]);
    return before;
  }

  // lambda_j = source_j + rho_{j+1} lambda_{j+1} from the row's end, in place. What passes from step to step,
  // the carry too, is rho_j lambda_j.
  __device__ __forceinline__ void run_back(Team& team, V (&source)[N], V& carry) const {
    V last = V(0);
#pragma unroll
    for (int j = N - 1; j >= 0; --j) last = at_[j].rho * (source[j] + last);
    V message = team.template scan<true>(Affine<V>{power(), last}, carry);
#pragma unroll
    for (int j = N - 1; j >= 0; --j) {
      source[j] = source[j] + message;
      message = at_[j].rho * source[j];
    }
  }

 private:
  Source<T> source_;
  Correlation<V> row_;
  Correlation<V> at_[N];
  bool row_begins_, logits_;
};

template <class T, class Team, bool kPerStep>
using Chain = std::conditional_t<kPerStep, PerStepChain<T, Team>, UniformChain<T, Team>>;

}  // namespace rhovae::cuda
