// The derivatives of the ops, for every device. Nothing here looks at sizes or values, so that tracing passes
// through.

#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "arguments.h"

namespace rhovae::ops {

using torch::autograd::AutogradContext;
using torch::autograd::Variable;
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

template <class Ops>
struct Ar1Function : torch::autograd::Function<Ar1Function<Ops>> {
  static variable_list forward(AutogradContext* ctx, const Tensor& mu, const Tensor& scale, const Tensor& rho,
                               const OptionalTensor& key, const OptionalTensor& eps,
                               std::optional<c10::SymInt> num_samples, int64_t row_offset, bool logits,
                               bool sample, int64_t kl) {
    static const auto ar1 = op<Ar1Op>(Ops::ar1);
    const at::AutoDispatchBelowADInplaceOrView guard;
    auto [z, divergence] = ar1.call(mu, scale, rho, key, eps, num_samples, row_offset, logits, sample, kl);
    ctx->save_for_backward({mu, scale, rho, key.value_or(Tensor()), eps.value_or(Tensor())});
    ctx->saved_data["num_samples"] = num_samples;
    ctx->saved_data["row_offset"] = row_offset;
    ctx->saved_data["logits"] = logits;
    ctx->saved_data["kl"] = kl;
    // Asked here: needs_input_grad counts only the tensors that were given.
    ctx->saved_data["needs_deps"] = eps && eps->requires_grad();
    ctx->set_materialize_grads(false);
    variable_list unused;
    if (!sample) unused.push_back(z);
    if (kl == 0) unused.push_back(divergence);
    ctx->mark_non_differentiable(unused);
    return {z, divergence};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    static const auto ar1_backward = op<Ar1BackwardOp>(Ops::ar1_backward);
    const auto saved = ctx->get_saved_variables();
    if (!grads[0].defined() && !grads[1].defined()) return variable_list(10);
    const bool needs_deps = ctx->saved_data["needs_deps"].toBool();
    auto [dmu, dscale, drho, deps] = ar1_backward.call(
        if_defined(grads[0]), if_defined(grads[1]), saved[0], saved[1], saved[2], if_defined(saved[3]),
        if_defined(saved[4]), ctx->saved_data["num_samples"].to<std::optional<c10::SymInt>>(),
        ctx->saved_data["row_offset"].toInt(), ctx->saved_data["logits"].toBool(),
        ctx->saved_data["kl"].toInt(), needs_deps);
    const auto wanted = [&](size_t input, const Tensor& gradient) {
      return ctx->needs_input_grad(input) ? gradient : Tensor();
    };
    return {wanted(0, dmu), wanted(1, dscale), wanted(2, drho), Tensor(), needs_deps ? deps : Tensor(),
            Tensor(),       Tensor(),          Tensor(),        Tensor(), Tensor()};
  }
};

template <class Ops>
static std::tuple<Tensor, Tensor> ar1(const Tensor& mu, const Tensor& scale, const Tensor& rho,
                                      const OptionalTensor& key, const OptionalTensor& eps,
                                      std::optional<c10::SymInt> num_samples, int64_t row_offset, bool logits,
                                      bool sample, int64_t kl) {
  auto outputs =
      Ar1Function<Ops>::apply(mu, scale, rho, key, eps, num_samples, row_offset, logits, sample, kl);
  return {outputs[0], outputs[1]};
}

template <class Ops>
struct LogProbFunction : torch::autograd::Function<LogProbFunction<Ops>> {
  static Tensor forward(AutogradContext* ctx, const Tensor& z, const Tensor& mu, const Tensor& scale,
                        const Tensor& rho, bool logits) {
    static const auto log_prob = op<LogProbOp>(Ops::log_prob);
    const at::AutoDispatchBelowADInplaceOrView guard;
    ctx->save_for_backward({z, mu, scale, rho});
    ctx->saved_data["logits"] = logits;
    return log_prob.call(z, mu, scale, rho, logits);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    static const auto log_prob_backward = op<LogProbBackwardOp>(Ops::log_prob_backward);
    const auto saved = ctx->get_saved_variables();
    auto [dz, dmu, dscale, drho] = log_prob_backward.call(grads[0], saved[0], saved[1], saved[2], saved[3],
                                                          ctx->saved_data["logits"].toBool());
    return {dz, dmu, dscale, drho, Tensor()};
  }
};

template <class Ops>
static Tensor log_prob(const Tensor& z, const Tensor& mu, const Tensor& scale, const Tensor& rho,
                       bool logits) {
  return LogProbFunction<Ops>::apply(z, mu, scale, rho, logits);
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
