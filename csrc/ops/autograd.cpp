// The derivatives of the ops, for every device. Nothing here looks at sizes or values, so that tracing passes
// through. First derivatives are kernels; wherever more is asked, tangents or a graph of the gradients, the
// op is put into torch's own operations (`plain_`), which have every derivative.

#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/library.h>

#include "arguments.h"

namespace rhovae::ops {

using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

using Ar1Op = std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&,
                                         const OptionalTensor&, std::optional<c10::SymInt>, c10::SymInt, bool,
                                         bool, int64_t);
using Ar1BackwardOp = std::tuple<Tensor, Tensor, Tensor, Tensor>(const OptionalTensor&, const OptionalTensor&,
                                                                 const Tensor&, const Tensor&, const Tensor&,
                                                                 const OptionalTensor&, const OptionalTensor&,
                                                                 std::optional<c10::SymInt>, c10::SymInt,
                                                                 bool, int64_t, bool);
using LogProbOp = Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&, bool);
using LogProbBackwardOp = std::tuple<Tensor, Tensor, Tensor, Tensor>(const Tensor&, const Tensor&,
                                                                     const Tensor&, const Tensor&,
                                                                     const Tensor&, bool);

template <class Signature>
static auto op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

static OptionalTensor if_defined(const Tensor& tensor) {
  return tensor.defined() ? OptionalTensor(tensor) : std::nullopt;
}

// The implementations that these derivatives serve, by the names of their ops.
struct Compiled {
  static constexpr auto ar1 = "rhovae::ar1";
  static constexpr auto ar1_backward = "rhovae::ar1_backward";
  static constexpr auto log_prob = "rhovae::ar1_log_prob";
  static constexpr auto log_prob_backward = "rhovae::ar1_log_prob_backward";
};
struct Triton {
  static constexpr auto ar1 = "rhovae::triton_ar1";
  static constexpr auto ar1_backward = "rhovae::triton_ar1_backward";
  static constexpr auto log_prob = "rhovae::triton_ar1_log_prob";
  static constexpr auto log_prob_backward = "rhovae::triton_ar1_log_prob_backward";
};
struct Plain {
  static constexpr auto ar1 = "rhovae::plain_ar1";
  static constexpr auto ar1_backward = "rhovae::plain_ar1_backward";
  static constexpr auto log_prob = "rhovae::plain_ar1_log_prob";
  static constexpr auto log_prob_backward = "rhovae::plain_ar1_log_prob_backward";
};

template <class Call>
static auto below_autograd(const Call& call) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  return call();
}

static bool has_tangent(const Tensor& tensor) {
  return tensor.defined() && tensor._fw_grad(0).defined();
}
template <class... Tensors>
static bool have_tangents(const Tensors&... inputs) {
  return (has_tangent(inputs) || ...);
}

// A node's call of its gradients, which looks at autograd only where somebody may differentiate them.
template <class Call, class... Tensors>
static auto gradients_of(const Call& call, const Tensors&... inputs) {
  return at::GradMode::is_enabled() || have_tangents(inputs...) ? call() : below_autograd(call);
}
// An op's call of itself, or where its results are to be differentiated of the plain one: call(op).
template <class Op, class Call, class... Tensors>
static auto kernel_or_plain(const Op& kernel, const Op& plain, const Call& call, const Tensors&... inputs) {
  if (have_tangents(inputs...) || torch::autograd::compute_requires_grad(inputs...)) return call(plain);
  return below_autograd([&] { return call(kernel); });
}

// A key is kept as it is, out of the reach of hooks that pack tensors as floats; that nobody wrote into it
// since is checked here.
class SavedKey {
 public:
  SavedKey() = default;
  explicit SavedKey(const OptionalTensor& key)
      : key_(key), version_(key && !key->is_inference() ? key->_version() : 0) {}
  const OptionalTensor& unpack() const {
    TORCH_CHECK(!key_ || key_->is_inference() || key_->_version() == version_,
                "rhovae: key must stay as it is until backward has drawn the noise again, but it was written "
                "to in place. Give every call a key of its own, for example by rhovae_ext.fold_in.");
    return key_;
  }
  void reset() { key_.reset(); }

 private:
  OptionalTensor key_;
  int64_t version_ = 0;
};

// Nodes written out, as torch's own operators have them: torch::autograd::Function keeps what it saves in
// maps by name, and at 128 x 10 that costs more than the arithmetic. What they save is unpacked where
// autograd is on: a checkpoint's hooks compute it again there.
//
// torch counts a node's references in the node itself from some version on, and beside it before.
template <class N>
static auto make_node() {
  if constexpr (std::is_base_of_v<c10::intrusive_ptr_target, N>)
    return c10::make_intrusive<N>();
  else
    return std::shared_ptr<N>(new N(), [](auto* node) { deleteNode(node); });
}
template <class N>
using NodePointer = decltype(make_node<N>());

template <class N, class... Tensors>
static NodePointer<N> node_of(const Tensors&... inputs) {
  NodePointer<N> node = make_node<N>();
  node->set_next_edges(torch::autograd::collect_next_edges(inputs...));
  return node;
}

template <class Ops>
struct Ar1Node final : torch::autograd::Node {
  SavedVariable mu, scale, rho, eps;
  SavedKey key;
  std::optional<c10::SymInt> num_samples;
  c10::SymInt row_offset;
  int64_t kl;
  bool logits, sample;

  std::string name() const override { return "Ar1Backward"; }

  void release_variables() override {
    for (SavedVariable* saved : {&mu, &scale, &rho, &eps}) saved->reset_data();
    key.reset();
  }

  variable_list apply(variable_list&& grads) override {
    static const auto ar1_backward = op<Ar1BackwardOp>(Ops::ar1_backward);
    const std::lock_guard<std::mutex> lock(mutex_);
    const Tensor dz = sample ? grads[0] : Tensor(), dkl = kl ? grads[sample] : Tensor();
    if (!dz.defined() && !dkl.defined()) return variable_list(4);
    const Tensor mean = mu.unpack(), s = scale.unpack(), r = rho.unpack(), noise = eps.unpack();
    const bool needs_deps = task_should_compute_output(3);
    const auto call = [&] {
      return ar1_backward.call(if_defined(dz), if_defined(dkl), mean, s, r, key.unpack(), if_defined(noise),
                               num_samples, row_offset, logits, kl, needs_deps);
    };
    auto gradients = gradients_of(call, dz, dkl, mean, s, r, noise);
    auto& [dmu, dscale, drho, deps] = gradients;
    const auto wanted = [&](size_t input, const Tensor& gradient) {
      return task_should_compute_output(input) ? gradient : Tensor();
    };
    return {wanted(0, dmu), wanted(1, dscale), wanted(2, drho), wanted(3, deps)};
  }
};

template <class Ops>
static std::tuple<Tensor, Tensor> ar1(const Tensor& mu, const Tensor& scale, const Tensor& rho,
                                      const OptionalTensor& key, const OptionalTensor& eps,
                                      std::optional<c10::SymInt> num_samples, c10::SymInt row_offset,
                                      bool logits, bool sample, int64_t kl) {
  static const auto ar1 = op<Ar1Op>(Ops::ar1), plain = op<Ar1Op>(Plain::ar1);
  const Tensor noise = eps.value_or(Tensor());
  if (have_tangents(mu, scale, rho, noise))
    return plain.call(mu, scale, rho, key, eps, num_samples, row_offset, logits, sample, kl);
  NodePointer<Ar1Node<Ops>> node;
  if (torch::autograd::compute_requires_grad(mu, scale, rho, noise)) {
    node = node_of<Ar1Node<Ops>>(mu, scale, rho, noise);
    node->mu = SavedVariable(mu, false);
    node->scale = SavedVariable(scale, false);
    node->rho = SavedVariable(rho, false);
    node->key = SavedKey(key);
    node->eps = SavedVariable(noise, false);
    node->num_samples = num_samples;
    node->row_offset = row_offset, node->kl = kl, node->logits = logits, node->sample = sample;
  }
  auto outputs = below_autograd([&] {
    return ar1.call(mu, scale, rho, key, eps, std::move(num_samples), std::move(row_offset), logits, sample,
                    kl);
  });
  if (node) {
    if (sample) torch::autograd::set_history(std::get<0>(outputs), node);
    if (kl) torch::autograd::set_history(std::get<1>(outputs), node);
  }
  return outputs;
}

// The gradients as functions of their own.
template <class Ops>
static std::tuple<Tensor, Tensor, Tensor, Tensor> ar1_backward(
    const OptionalTensor& dz, const OptionalTensor& dkl, const Tensor& mu, const Tensor& scale,
    const Tensor& rho, const OptionalTensor& key, const OptionalTensor& eps,
    std::optional<c10::SymInt> num_samples, c10::SymInt row_offset, bool logits, int64_t kl,
    bool needs_deps) {
  static const auto kernel = op<Ar1BackwardOp>(Ops::ar1_backward),
                    plain = op<Ar1BackwardOp>(Plain::ar1_backward);
  const auto call = [&](const auto& chosen) {
    return chosen.call(dz, dkl, mu, scale, rho, key, eps, num_samples, row_offset, logits, kl, needs_deps);
  };
  return kernel_or_plain(kernel, plain, call, dz.value_or(Tensor()), dkl.value_or(Tensor()), mu, scale, rho,
                         eps.value_or(Tensor()));
}

template <class Ops>
struct LogProbNode final : torch::autograd::Node {
  SavedVariable z, mu, scale, rho;
  bool logits;

  std::string name() const override { return "Ar1LogProbBackward"; }

  void release_variables() override {
    for (SavedVariable* saved : {&z, &mu, &scale, &rho}) saved->reset_data();
  }

  variable_list apply(variable_list&& grads) override {
    static const auto log_prob_backward = op<LogProbBackwardOp>(Ops::log_prob_backward);
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!grads[0].defined()) return variable_list(4);
    const Tensor point = z.unpack(), mean = mu.unpack(), s = scale.unpack(), r = rho.unpack();
    const auto call = [&] { return log_prob_backward.call(grads[0], point, mean, s, r, logits); };
    auto [dz, dmu, dscale, drho] = gradients_of(call, grads[0], point, mean, s, r);
    return {dz, dmu, dscale, drho};
  }
};

template <class Ops>
static Tensor log_prob(const Tensor& z, const Tensor& mu, const Tensor& scale, const Tensor& rho,
                       bool logits) {
  static const auto log_prob = op<LogProbOp>(Ops::log_prob), plain = op<LogProbOp>(Plain::log_prob);
  if (have_tangents(z, mu, scale, rho)) return plain.call(z, mu, scale, rho, logits);
  NodePointer<LogProbNode<Ops>> node;
  if (torch::autograd::compute_requires_grad(z, mu, scale, rho)) {
    node = node_of<LogProbNode<Ops>>(z, mu, scale, rho);
    node->z = SavedVariable(z, false);
    node->mu = SavedVariable(mu, false);
    node->scale = SavedVariable(scale, false);
    node->rho = SavedVariable(rho, false);
    node->logits = logits;
  }
  Tensor output = below_autograd([&] { return log_prob.call(z, mu, scale, rho, logits); });
  if (node) torch::autograd::set_history(output, node);
  return output;
}

template <class Ops>
static std::tuple<Tensor, Tensor, Tensor, Tensor> log_prob_backward(const Tensor& dlog_prob, const Tensor& z,
                                                                    const Tensor& mu, const Tensor& scale,
                                                                    const Tensor& rho, bool logits) {
  static const auto kernel = op<LogProbBackwardOp>(Ops::log_prob_backward),
                    plain = op<LogProbBackwardOp>(Plain::log_prob_backward);
  const auto call = [&](const auto& chosen) { return chosen.call(dlog_prob, z, mu, scale, rho, logits); };
  return kernel_or_plain(kernel, plain, call, dlog_prob, z, mu, scale, rho);
}

template <class Ops>
static void register_autograd(torch::Library& m) {
  m.impl(Ops::ar1, ar1<Ops>);
  m.impl(Ops::ar1_backward, ar1_backward<Ops>);
  m.impl(Ops::log_prob, log_prob<Ops>);
  m.impl(Ops::log_prob_backward, log_prob_backward<Ops>);
}

TORCH_LIBRARY_IMPL(rhovae, Autograd, m) {
  register_autograd<Compiled>(m);
  register_autograd<Triton>(m);
}

}  // namespace rhovae::ops
