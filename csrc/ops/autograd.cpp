// The derivatives of the ops, for every device. Nothing here looks at sizes or values, so that tracing passes
// through.

#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/library.h>

#include "arguments.h"

namespace rhovae::ops {

using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

using Ar1Op = std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&,
                                         const OptionalTensor&, std::optional<c10::SymInt>, int64_t, bool,
                                         bool, int64_t);
using Ar1BackwardOp = std::tuple<Tensor, Tensor, Tensor, Tensor>(const OptionalTensor&, const OptionalTensor&,
                                                                 const Tensor&, const Tensor&, const Tensor&,
                                                                 const OptionalTensor&, const OptionalTensor&,
                                                                 std::optional<c10::SymInt>, int64_t, bool,
                                                                 int64_t, bool);
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

// Nodes written out, as torch's own operators have them: torch::autograd::Function keeps what it saves in
// maps by name, and at 128 x 10 that costs more than the arithmetic.
struct Node : torch::autograd::Node {
  using torch::autograd::Node::Node;

  // The gradients of the gradients are nobody's: asked for, their op has to say so; else that is passed by.
  template <class Call>
  static auto below_autograd_unless_recorded(const Call& call) {
    if (at::GradMode::is_enabled()) return call();
    const at::AutoDispatchBelowADInplaceOrView guard;
    return call();
  }
};

template <class... Tensors>
static bool records(const char* name, const Tensors&... inputs) {
  const auto has_tangent = [](const Tensor& tensor) {
    return tensor.defined() && tensor._fw_grad(0).defined();
  };
  TORCH_CHECK_NOT_IMPLEMENTED(!(has_tangent(inputs) || ...), name,
                              ": forward-mode derivatives are not implemented");
  return torch::autograd::compute_requires_grad(inputs...);
}

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
struct Ar1Node final : Node {
  SavedVariable mu, scale, rho, key, eps;
  std::optional<c10::SymInt> num_samples;
  int64_t row_offset, kl;
  bool logits, sample;

  std::string name() const override { return "Ar1Backward"; }

  void release_variables() override {
    for (SavedVariable* saved : {&mu, &scale, &rho, &key, &eps}) saved->reset_data();
  }

  variable_list apply(variable_list&& grads) override {
    static const auto ar1_backward = op<Ar1BackwardOp>(Ops::ar1_backward);
    const std::lock_guard<std::mutex> lock(mutex_);
    const Tensor dz = sample ? grads[0] : Tensor(), dkl = kl ? grads[sample] : Tensor();
    if (!dz.defined() && !dkl.defined()) return variable_list(4);
    const bool needs_deps = task_should_compute_output(3);
    auto gradients = below_autograd_unless_recorded([&] {
      return ar1_backward.call(if_defined(dz), if_defined(dkl), mu.unpack(), scale.unpack(), rho.unpack(),
                               if_defined(key.unpack()), if_defined(eps.unpack()), num_samples, row_offset,
                               logits, kl, needs_deps);
    });
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
                                      std::optional<c10::SymInt> num_samples, int64_t row_offset, bool logits,
                                      bool sample, int64_t kl) {
  static const auto ar1 = op<Ar1Op>(Ops::ar1);
  const Tensor noise = eps.value_or(Tensor());
  NodePointer<Ar1Node<Ops>> node;
  if (records(Ops::ar1, mu, scale, rho, noise)) {
    node = node_of<Ar1Node<Ops>>(mu, scale, rho, noise);
    node->mu = SavedVariable(mu, false);
    node->scale = SavedVariable(scale, false);
    node->rho = SavedVariable(rho, false);
    node->key = SavedVariable(key.value_or(Tensor()), false);
    node->eps = SavedVariable(noise, false);
    node->num_samples = num_samples;
    node->row_offset = row_offset, node->kl = kl, node->logits = logits, node->sample = sample;
  }
  auto outputs = [&] {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return ar1.call(mu, scale, rho, key, eps, std::move(num_samples), row_offset, logits, sample, kl);
  }();
  if (node) {
    if (sample) torch::autograd::set_history(std::get<0>(outputs), node);
    if (kl) torch::autograd::set_history(std::get<1>(outputs), node);
  }
  return outputs;
}

template <class Ops>
struct LogProbNode final : Node {
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
    auto [dz, dmu, dscale, drho] = below_autograd_unless_recorded([&] {
      return log_prob_backward.call(grads[0], z.unpack(), mu.unpack(), scale.unpack(), rho.unpack(), logits);
    });
    return {dz, dmu, dscale, drho};
  }
};

template <class Ops>
static Tensor log_prob(const Tensor& z, const Tensor& mu, const Tensor& scale, const Tensor& rho,
                       bool logits) {
  static const auto log_prob = op<LogProbOp>(Ops::log_prob);
  NodePointer<LogProbNode<Ops>> node;
  if (records(Ops::log_prob, z, mu, scale, rho)) {
    node = node_of<LogProbNode<Ops>>(z, mu, scale, rho);
    node->z = SavedVariable(z, false);
    node->mu = SavedVariable(mu, false);
    node->scale = SavedVariable(scale, false);
    node->rho = SavedVariable(rho, false);
    node->logits = logits;
  }
  Tensor output = [&] {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return log_prob.call(z, mu, scale, rho, logits);
  }();
  if (node) torch::autograd::set_history(output, node);
  return output;
}

template <class Ops>
static void register_autograd(torch::Library& m) {
  m.impl(Ops::ar1, ar1<Ops>);
  m.impl(Ops::log_prob, log_prob<Ops>);
  // The gradients themselves are not differentiable: said when somebody tries, not answered wrongly.
  m.impl(Ops::ar1_backward, torch::autograd::autogradNotImplementedFallback());
  m.impl(Ops::log_prob_backward, torch::autograd::autogradNotImplementedFallback());
}

TORCH_LIBRARY_IMPL(rhovae, Autograd, m) {
  register_autograd<Compiled>(m);
  register_autograd<Triton>(m);
}

}  // namespace rhovae::ops
