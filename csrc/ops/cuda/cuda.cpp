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

// A key on the CPU travels by value; one on the device is read there, without a synchronisation.
struct Key {
  Noise noise;
  Tensor on_device;

  cuda::DeviceKey words() const {
    return on_device.defined() ? static_cast<cuda::DeviceKey>(on_device.const_data_ptr()) : nullptr;
  }
};
static Key key_of(const OptionalTensor& key, const Tensor& mu, int64_t row_offset, bool needed) {
  Key found{{0, 0, static_cast<uint64_t>(row_offset)}, Tensor()};
  if (!key) {
    TORCH_CHECK_VALUE(!needed, "rhovae::ar1: neither key nor eps was given");
    return found;
  }
  TORCH_CHECK_VALUE(key->scalar_type() == at::kUInt64 && key->dim() == 1 && key->size(0) == 2 &&
                        (key->is_cpu() || key->device() == mu.device()),
                    "rhovae::ar1: key must be a uint64 tensor (seed, offset) on the CPU or on mu's device (",
                    mu.device(), "), got ", key->scalar_type(), " of shape ", key->sizes(), " on ",
                    key->device());
  if (key->is_cpu()) {
    const auto* words = static_cast<const uint64_t*>(key->const_data_ptr());
    found.noise.seed = words[0];
    found.noise.offset = words[key->stride(0)];
  } else {
    found.on_device = key->contiguous();
  }
  return found;
}

// What the kernels read besides mu and the parameters is of mu's type or float32; anything else would be
// misread.
static void check_type(const OptionalTensor& tensor, const Tensor& mu, const char* name) {
  if (!tensor) return;
  TORCH_CHECK_TYPE(tensor->scalar_type() == mu.scalar_type() || tensor->scalar_type() == at::kFloat,
                   "rhovae: ", name, " must be of mu's type (", mu.scalar_type(), ") or float32, got ",
                   tensor->scalar_type());
  TORCH_CHECK_VALUE(tensor->device() == mu.device(), "rhovae: ", name, " must be on mu's device (",
                    mu.device(), "), got ", tensor->device());
}

static std::tuple<Tensor, Tensor> ar1(const Tensor& mu, const Tensor& scale, const Tensor& rho,
                                      const OptionalTensor& key, const OptionalTensor& eps,
                                      std::optional<int64_t> num_samples, int64_t row_offset, bool logits,
                                      bool sample, int64_t kl) {
  check_type(eps, mu, "eps");
  const Key drawn = key_of(key, mu, row_offset, sample && !eps);
  return ar1_forward({mu, scale, rho, eps, num_samples, drawn.noise, logits}, sample, static_cast<Kl>(kl),
                     [&](const Forward& p) {
                       on_device_of(mu, cuda::forward_workspace(p),
                                    [&](void* workspace, cudaStream_t stream) {
                                      return cuda::forward(p, drawn.words(), workspace, stream);
                                    });
                     });
}

static std::tuple<Tensor, Tensor, Tensor, Tensor> ar1_backward_cuda(
    const OptionalTensor& dz, const OptionalTensor& dkl, const Tensor& mu, const Tensor& scale,
    const Tensor& rho, const OptionalTensor& key, const OptionalTensor& eps,
    std::optional<int64_t> num_samples, int64_t row_offset, bool logits, int64_t kl, bool needs_deps) {
  check_type(eps, mu, "eps");
  check_type(dz, mu, "dz");
  check_type(dkl, mu, "dkl");
  const Key drawn = key_of(key, mu, row_offset, dz && !eps);
  return ar1_backward({mu, scale, rho, eps, num_samples, drawn.noise, logits}, dz, dkl, static_cast<Kl>(kl),
                      needs_deps, [&](const Backward& p) {
                        on_device_of(mu, cuda::backward_workspace(p),
                                     [&](void* workspace, cudaStream_t stream) {
                                       return cuda::backward(p, drawn.words(), workspace, stream);
                                     });
                      });
}

static Tensor log_prob_cuda(const Tensor& z, const Tensor& mu, const Tensor& scale, const Tensor& rho,
                            bool logits) {
  check_type(z, mu, "z");
  return ar1_log_prob(z, mu, scale, rho, logits, [&](const LogProb& p) {
    on_device_of(mu, cuda::log_prob_workspace(p),
                 [&](void* workspace, cudaStream_t stream) { return cuda::log_prob(p, workspace, stream); });
  });
}

static std::tuple<Tensor, Tensor, Tensor, Tensor> log_prob_backward_cuda(const Tensor& dlog_prob,
                                                                         const Tensor& z, const Tensor& mu,
                                                                         const Tensor& scale,
                                                                         const Tensor& rho, bool logits) {
  check_type(z, mu, "z");
  check_type(dlog_prob, mu, "dlog_prob");
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
    Tensor key = at::empty({2}, at::kUInt64);
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
  Tensor key = at::empty({2}, like.options().dtype(at::kUInt64));
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
