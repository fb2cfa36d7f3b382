// The ops on the CPU: rows spread over torch's threads.

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <deque>

#include "../cpu/kernels.h"
#include "ar1.h"

namespace rhovae::ops {

// f(problem, begin, end) for rows [begin, end): where rows have keys of their own, for those of each key as a
// problem with that key alone.
template <class P, class F>
static void by_key(const P& problem, int64_t begin, int64_t end, const F& f) {
  const RowKeys& keys = problem.keys;
  if (!keys.words) return f(problem, begin, end);
  P own = problem;
  while (begin < end) {
    const int64_t until = std::min(end, (begin / keys.run + 1) * keys.run);
    own.noise = {keys.words[2 * begin], keys.words[2 * begin + 1],
                 problem.noise.row_offset + static_cast<uint64_t>(keys.numbers[begin] - begin)};
    f(own, begin, until);
    begin = until;
  }
}

// Few elements stay on one thread. Of rows that share the lanes of a register whole groups are handed out,
// for the widest of registers; of longer ones single rows; and a few very long ones are shared by all
// threads.
template <class P>
static void over_rows(const P& problem, const cpu::Kernel<P>& kernel) {
  constexpr int64_t kLanes = 16, kElementsPerThread = 16384;
  const int64_t tiles = cpu::tiles_of(problem), threads = at::get_num_threads();
  const bool few = problem.rows < 4 * threads && !at::in_parallel_region();
  if (threads > 1 && few && problem.steps * problem.samples > kElementsPerThread && tiles >= 4) {
    std::deque<cpu::Relay> relays;
    for (int64_t row = 0; row < problem.rows; ++row) relays.emplace_back(problem.samples, tiles, true);
    at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
      for (int64_t thread = begin; thread < end; ++thread) {
        by_key(problem, 0, problem.rows, [&](const P& own, int64_t row, int64_t until) {
          for (; row < until; ++row) kernel.shared(own, row, relays[row]);
        });
      }
    });
    return;
  }
  const int64_t group = problem.steps < cpu::kShortRow ? kLanes : 1;
  const int64_t elements = problem.steps * problem.samples * group;
  const int64_t grain = (kElementsPerThread + elements - 1) / elements;
  at::parallel_for(0, (problem.rows + group - 1) / group, grain, [&](int64_t begin, int64_t end) {
    by_key(problem, begin * group, std::min(end * group, problem.rows), kernel);
  });
}

static void forward(const Forward& p) {
  over_rows(p, cpu::kernels().forward);
}
static void backward(const Backward& p) {
  over_rows(p, cpu::kernels().backward);
}
static void log_prob(const LogProb& p) {
  over_rows(p, cpu::kernels().log_prob);
}
static void log_prob_backward(const LogProbBackward& p) {
  over_rows(p, cpu::kernels().log_prob_backward);
}

static std::tuple<Tensor, Tensor> ar1(const Tensor& mu, const Tensor& scale, const Tensor& rho,
                                      const OptionalTensor& key, const OptionalTensor& eps,
                                      std::optional<int64_t> num_samples, int64_t row_offset, bool logits,
                                      bool sample, int64_t kl) {
  return ar1_forward({mu, scale, rho, key, eps, num_samples, row_offset, logits}, sample, kl, forward);
}

static std::tuple<Tensor, Tensor, Tensor, Tensor> ar1_backward_cpu(
    const OptionalTensor& dz, const OptionalTensor& dkl, const Tensor& mu, const Tensor& scale,
    const Tensor& rho, const OptionalTensor& key, const OptionalTensor& eps,
    std::optional<int64_t> num_samples, int64_t row_offset, bool logits, int64_t kl, bool needs_deps) {
  return ar1_backward({mu, scale, rho, key, eps, num_samples, row_offset, logits}, dz, dkl, kl, needs_deps,
                      backward);
}

static Tensor log_prob_cpu(const Tensor& z, const Tensor& mu, const Tensor& scale, const Tensor& rho,
                           bool logits) {
  return ar1_log_prob(z, mu, scale, rho, logits, log_prob);
}

static std::tuple<Tensor, Tensor, Tensor, Tensor> log_prob_backward_cpu(const Tensor& dlog_prob,
                                                                        const Tensor& z, const Tensor& mu,
                                                                        const Tensor& scale,
                                                                        const Tensor& rho, bool logits) {
  return ar1_log_prob_backward(dlog_prob, z, mu, scale, rho, logits, log_prob_backward);
}

static Tensor draw_key(const Tensor& like, const std::optional<at::Generator>& generator, bool) {
  check_draw_key(like, generator);
  auto* drawn_from =
      at::get_generator_or_default<at::CPUGeneratorImpl>(generator, at::detail::getDefaultCPUGenerator());
  Tensor key = at::empty({2}, at::kLong);
  auto* words = static_cast<uint64_t*>(key.data_ptr());
  const std::lock_guard<std::mutex> lock(drawn_from->mutex_);
  words[0] = drawn_from->random64();
  words[1] = drawn_from->random64();
  return key;
}

TORCH_LIBRARY_IMPL(rhovae, CPU, m) {
  m.impl("draw_key", draw_key);
  m.impl("ar1", ar1);
  m.impl("ar1_backward", ar1_backward_cpu);
  m.impl("ar1_log_prob", log_prob_cpu);
  m.impl("ar1_log_prob_backward", log_prob_backward_cpu);
}

}  // namespace rhovae::ops
