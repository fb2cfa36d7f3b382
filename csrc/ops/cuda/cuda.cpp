// The ops on CUDA devices.

#include <ATen/cuda/CUDAGeneratorImpl.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "../../core/normal.h"
#include "../../cuda/launch.h"
#include "../ar1.h"

namespace rhovae::ops {

// The one way to the kernels: on the tensors' device, on its current stream, with the launch's own error
// checked. `launch` takes the workspace and the stream.
template <class F>
static void on_device_of(const Tensor& tensor, int64_t workspace_bytes, const F& launch) {
  const c10::cuda::CUDAGuard guard(tensor.device());
  const Tensor workspace =
      workspace_bytes ? at::empty({workspace_bytes}, tensor.options().dtype(at::kByte)) : Tensor();
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream().stream();
  C10_CUDA_CHECK(static_cast<cudaError_t>(launch(workspace_bytes ? workspace.data_ptr() : nullptr, stream)));
}

// A key on the CPU travels by value; one on the device is read there, without a synchronisation. Called once
// the key has been checked.
class DeviceKeyOf {
 public:
  explicit DeviceKeyOf(const OptionalTensor& key) {
    if (key && key->is_cuda() && key->dim() == 1) words_ = key->contiguous();
  }
  operator cuda::DeviceKey() const {
    return words_.defined() ? static_cast<cuda::DeviceKey>(words_.const_data_ptr()) : nullptr;
  }

 private:
  Tensor words_;
};

// Where rows have keys of their own the problem is given its noise; the memory lives as long as what this
// returns.
template <class P>
static Tensor give_noise_of_rows(P& problem, const Tensor& mu) {
  if (!problem.keys.words) return {};
  const int64_t size = problem.rows * problem.steps;
  const Tensor eps =
      at::empty({problem.samples * size},
                mu.options().dtype(mu.scalar_type() == at::kDouble ? at::kDouble : at::kFloat));
  on_device_of(mu, 0,
               [&](void*, cudaStream_t stream) { return cuda::row_noise(problem, eps.data_ptr(), stream); });
  problem.eps = {eps.const_data_ptr(), output_of(eps).type, 1, size, {}};
  int64_t stride = problem.steps;
  for (int axis = problem.lead.axes - 1; axis >= 0; --axis) {
    problem.eps.stride[axis] = stride;
    stride *= problem.lead.size[axis];
  }
  return eps;
}

static std::tuple<Tensor, Tensor> ar1(const Tensor& mu, const Tensor& scale, const Tensor& rho,
                                      const OptionalTensor& key, const OptionalTensor& eps,
                                      std::optional<int64_t> num_samples, int64_t row_offset, bool logits,
                                      bool sample, int64_t kl) {
  return ar1_forward({mu, scale, rho, key, eps, num_samples, row_offset, logits}, sample, kl, [&](Forward p) {
    const DeviceKeyOf words(key);
    const Tensor noise = give_noise_of_rows(p, mu);
    on_device_of(mu, cuda::forward_workspace(p), [&](void* workspace, cudaStream_t stream) {
      return cuda::forward(p, words, workspace, stream);
    });
  });
}

static std::tuple<Tensor, Tensor, Tensor, Tensor> ar1_backward_cuda(
    const OptionalTensor& dz, const OptionalTensor& dkl, const Tensor& mu, const Tensor& scale,
    const Tensor& rho, const OptionalTensor& key, const OptionalTensor& eps,
    std::optional<int64_t> num_samples, int64_t row_offset, bool logits, int64_t kl, bool needs_deps) {
  return ar1_backward(
      {mu, scale, rho, key, eps, num_samples, row_offset, logits}, dz, dkl, kl, needs_deps, [&](Backward p) {
        const DeviceKeyOf words(key);
        const Tensor noise = give_noise_of_rows(p, mu);
        on_device_of(mu, cuda::backward_workspace(p), [&](void* workspace, cudaStream_t stream) {
          return cuda::backward(p, words, workspace, stream);
        });
      });
}

static Tensor log_prob_cuda(const Tensor& z, const Tensor& mu, const Tensor& scale, const Tensor& rho,
                            bool logits) {
  return ar1_log_prob(z, mu, scale, rho, logits, [&](const LogProb& p) {
    on_device_of(mu, cuda::log_prob_workspace(p),
                 [&](void* workspace, cudaStream_t stream) { return cuda::log_prob(p, workspace, stream); });
  });
}

static std::tuple<Tensor, Tensor, Tensor, Tensor> log_prob_backward_cuda(const Tensor& dlog_prob,
                                                                         const Tensor& z, const Tensor& mu,
                                                                         const Tensor& scale,
                                                                         const Tensor& rho, bool logits) {
  return ar1_log_prob_backward(dlog_prob, z, mu, scale, rho, logits, [&](const LogProbBackward& p) {
    on_device_of(mu, cuda::log_prob_workspace(p), [&](void* workspace, cudaStream_t stream) {
      return cuda::log_prob_backward(p, workspace, stream);
    });
  });
}

// The generator's own state: its seed, and its offset in blocks of four words, moved on by what one row draws
// (rows differ in the other half of the counter). So no other kernel of torch that draws from this generator
// shares a block. Outside a capture both are known here, and the key stays on the CPU: no launch. While a
// graph is captured they are known at every replay only, and traced code has to know the key's device
// beforehand: there a small kernel writes the key.
static Tensor draw_key(const Tensor& like, const std::optional<at::Generator>& generator, bool on_device) {
  check_draw_key(like, generator);
  const c10::cuda::CUDAGuard guard(like.device());
  auto* drawn_from = at::get_generator_or_default<at::CUDAGeneratorImpl>(
      generator, at::cuda::detail::getDefaultCUDAGenerator(like.device().index()));
  const int64_t steps = like.dim() ? like.size(-1) : 1;
  const int64_t per_block =
      like.scalar_type() == at::kDouble ? kNormalsPerBlockDouble : kNormalsPerBlockFloat;
  const auto words = cuda::kWordsPerBlock * static_cast<uint64_t>((steps + per_block - 1) / per_block);
  at::PhiloxCudaState state;
  {
    const std::lock_guard<std::mutex> lock(drawn_from->mutex_);
    state = drawn_from->philox_cuda_state(words);
  }
  if (!state.captured_ && !on_device) {
    Tensor key = at::empty({2}, at::kLong);
    auto* values = static_cast<uint64_t*>(key.data_ptr());
    values[0] = state.seed_.val;
    values[1] = state.offset_.val / cuda::kWordsPerBlock;
    return key;
  }
  cuda::KeyState known{};
  if (state.captured_)
    known = {true, 0, 0, state.seed_.ptr, state.offset_.ptr, state.offset_intragraph_};
  else
    known = {false, state.seed_.val, state.offset_.val, nullptr, nullptr, 0};
  Tensor key = at::empty({2}, like.options().dtype(at::kLong));
  on_device_of(like, 0, [&](void*, cudaStream_t stream) {
    return cuda::write_key(known, static_cast<uint64_t*>(key.data_ptr()), stream);
  });
  return key;
}

TORCH_LIBRARY_IMPL(rhovae, CUDA, m) {
  m.impl("draw_key", draw_key);
  m.impl("ar1", ar1);
  m.impl("ar1_backward", ar1_backward_cuda);
  m.impl("ar1_log_prob", log_prob_cuda);
  m.impl("ar1_log_prob_backward", log_prob_backward_cuda);
}

}  // namespace rhovae::ops
