#pragma once

// s and rho along a row, ready for a thread's run of steps, and the chain's recurrences over a team.

#include "math.cuh"
#include "row.cuh"

namespace rhovae::cuda {

// s, one for the row or one per step. kGradient: held where a log s has run away, for gradients are added up
// with either sign.
template <class T, bool kGradient = false>
class Scales {
 public:
  using V = Arithmetic<T>;
  static constexpr int N = kItems<T>;

  __device__ __forceinline__ Scales(const Problem& p, const Span& span)
      : source_(p.lead, p.scale, span), logits_(p.logits) {
    if (!per_step()) row_ = read(source_.at(0));
  }
  __device__ __forceinline__ bool per_step() const { return source_.per_step(); }
  __device__ __forceinline__ const Scale<V>& row() const { return row_; }

  __device__ __forceinline__ Scale<V> at(int k) const { return per_step() ? read(source_.at(k)) : row_; }
  __device__ __forceinline__ void load(int k, int steps, Scale<V> (&to)[N]) const {
    if (!per_step()) {
#pragma unroll
      for (int j = 0; j < N; ++j) to[j] = row_;
      return;
    }
    V given[N];
    source_.load(k, 0, steps, given);
#pragma unroll
    for (int j = 0; j < N; ++j) to[j] = read(given[j]);
  }

 private:
  __device__ __forceinline__ Scale<V> read(V given) const {
    Scale<V> scale = scale_of(logits_, given);
    if (kGradient && logits_) scale.s = Functions<V>::at_most(scale.s, kLargestTerm<V>);
    return scale;
  }

  Source<T> source_;
  Scale<V> row_;
  bool logits_;
};

// Before a row's first step and after its last.
template <class V>
__device__ __forceinline__ Correlation<V> untied() {
  return {V(0), V(1), V(0)};
}

// Whether a long row, which has a block to itself, would not forget what rounding takes off rho.
template <class Team, class V>
__device__ __forceinline__ bool remembers(const Correlation<V>& tie) {
  return sizeof(V) == 4 && !Team::kWithinWarp && tie.c * tie.c < V(0x1p-9);
}
template <class Team, class V>
__device__ __forceinline__ Product<V> product_of(const Correlation<V>& tie) {
  if (!remembers<Team>(tie)) return {tie.rho, V(0)};
  const V size = Functions<V>::abs(tie.rho), rounded_off = (V(1) - size) - gap_of(size, tie.c);
  return {tie.rho, tie.rho < V(0) ? -rounded_off : rounded_off};
}

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
    run_power_ = product_of<Team>(row_);
#pragma unroll
    for (int j = 1; j < N; j *= 2) run_power_ = run_power_ * run_power_;
    if constexpr (Team::kWithinWarp) hops_ = team.hops(run_power_.high);
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
      before = team.template scan<false>(run_power_, last, carry);
    V value = before;
#pragma unroll
    for (int j = 0; j < N; ++j) source[j] = value = advance(row_.rho, value, source[j]);
    return before;
  }

 private:
  struct Nothing {};
  Correlation<V> row_;
  Product<V> run_power_;
  V first_rho_, first_c_;
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
        at_[j] = tied ? row_ : untied<V>();
      }
    }
  }
  __device__ __forceinline__ V rho(int j) const { return at_[j].rho; }
  __device__ __forceinline__ V c(int j) const { return at_[j].c; }
  __device__ __forceinline__ V minus_log_c(int j) const { return at_[j].minus_log_c; }

  // What the run multiplies by.
  __device__ __forceinline__ Product<V> power() const {
    bool forgets = true;
#pragma unroll
    for (int j = 0; j < N; ++j) forgets = forgets && !remembers<Team>(at_[j]);
    if (!Team::kWithinWarp && !true_for_warp(forgets)) {
      Product<V> a = product_of<Team>(at_[0]);
#pragma unroll
      for (int j = 1; j < N; ++j) a = a * product_of<Team>(at_[j]);
      return a;
    }
    V a = at_[0].rho;
#pragma unroll
    for (int j = 1; j < N; ++j) a = a * at_[j].rho;
    return {a, V(0)};
  }

  __device__ __forceinline__ V run(Team& team, V (&source)[N], V& carry) const {
    V last = source[0];
#pragma unroll
    for (int j = 1; j < N; ++j) last = advance(at_[j].rho, last, source[j]);
    const V before = scan<false>(team, last, carry);
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
    V message = scan<true>(team, last, carry);
#pragma unroll
    for (int j = N - 1; j >= 0; --j) {
      source[j] = source[j] + message;
      message = at_[j].rho * source[j];
    }
  }

 private:
  template <bool kReverse>
  __device__ __forceinline__ V scan(Team& team, V last, V& carry) const {
    const Product<V> run = power();
    if constexpr (Team::kWithinWarp)
      return team.template scan<kReverse>(Affine<V>{run.high, last}, carry);
    else
      return team.template scan<kReverse>(run, last, carry);
  }

  Source<T> source_;
  Correlation<V> row_;
  Correlation<V> at_[N];
  bool row_begins_, logits_;
};

template <class T, class Team, bool kPerStep>
using Chain = std::conditional_t<kPerStep, PerStepChain<T, Team>, UniformChain<T, Team>>;

}  // namespace rhovae::cuda
