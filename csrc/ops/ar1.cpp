#include "ar1.h"

#include <new>
#include <string>

#include "keys.h"

namespace rhovae::ops {

static Tensor empty_like_nothing(const at::TensorOptions& options) {
  return at::empty({0}, options);
}

// Memory that the CPU does not have, said of the call; other devices have errors of their own for it.
template <class F>
static auto within_memory(const char* op, const Tensor& mu, const F& compute) {
  const auto refuse = [&](const std::string& reason) {
    TORCH_CHECK_WITH(OutOfMemoryError, false, op, ": mu of shape ", mu.sizes(),
                     " must need no more memory than there is, but got: ", reason, " Compute it in parts.");
  };
  try {
    return compute();
  } catch (const std::bad_alloc&) {
    refuse("the system gave none.");
  } catch (const c10::Error& error) {
    const std::string reason = error.what_without_backtrace();
    if (!mu.is_cpu() || reason.find("can't allocate") == std::string::npos) throw;
    refuse(reason.substr(0, reason.find('\n')));
  }
  return decltype(compute()){};  // never: a refusal throws
}

std::tuple<Tensor, Tensor> ar1_forward(const Ar1& call, bool sample, int64_t kl, const Run<Forward>& run) {
  constexpr auto op = "rhovae::ar1";
  return within_memory(op, call.mu, [&]() -> std::tuple<Tensor, Tensor> {
    Arguments arguments(
        check_ar1(op, call.mu, call.scale, call.rho, call.key, call.eps, call.num_samples, sample, kl),
        call.mu, call.scale, call.rho);
    Forward problem{};
    if (sample && call.eps) arguments.add_samples(problem.eps, *call.eps);
    const Keys keys(sample && !call.eps ? call.key : std::nullopt, call.row_offset, call.mu,
                    arguments.shape().lead);
    keys.put(problem);
    problem.kl_kind = static_cast<Kl>(kl);
    arguments.finish(problem, sample ? call.num_samples : std::nullopt, call.logits);

    const Shape& shape = arguments.shape();
    const at::TensorOptions options = arguments.arithmetic_options();
    Tensor z = sample ? at::empty(shape.with_samples(call.num_samples), call.mu.options())
                      : empty_like_nothing(call.mu.options());
    Tensor divergence = problem.kl_kind == Kl::None     ? empty_like_nothing(options)
                        : problem.kl_kind == Kl::PerRow ? at::empty(shape.lead, options)
                                                        : at::empty(shape.with(shape.steps), options);
    if (sample) problem.z = output_of(z);
    if (problem.kl_kind != Kl::None) problem.kl = output_of(divergence);
    if (shape.rows > 0) run(problem);
    return {std::move(z), std::move(divergence)};
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> ar1_backward(const Ar1& call, const OptionalTensor& dz,
                                                        const OptionalTensor& dkl, int64_t kl,
                                                        bool needs_deps, const Run<Backward>& run) {
  constexpr auto op = "rhovae::ar1_backward";
  return within_memory(op, call.mu, [&]() -> std::tuple<Tensor, Tensor, Tensor, Tensor> {
    Arguments arguments(check_ar1_backward(op, dz, dkl, call.mu, call.scale, call.rho, call.key, call.eps,
                                           call.num_samples, kl, needs_deps),
                        call.mu, call.scale, call.rho);
    Backward problem{};
    if (dz) arguments.add_samples(problem.dz, *dz);
    if (dz && call.eps) arguments.add_samples(problem.eps, *call.eps);
    if (dkl && static_cast<Kl>(kl) == Kl::PerStep) arguments.add_per_step(problem.dkl, *dkl);
    if (dkl && static_cast<Kl>(kl) == Kl::PerRow) arguments.add_per_row(problem.dkl, *dkl);
    const Keys keys(dz && !call.eps ? call.key : std::nullopt, call.row_offset, call.mu,
                    arguments.shape().lead);
    keys.put(problem);
    arguments.finish(problem, dz ? call.num_samples : std::nullopt, call.logits);

    const auto dmu = arguments.gradient_mu(problem.dmu);
    const auto dscale = arguments.gradient_scale(problem.dscale);
    const auto drho = arguments.gradient_rho(problem.drho);
    Tensor deps = needs_deps
                      ? (dz ? at::empty(call.eps->sizes(), call.eps->options()) : at::zeros_like(*call.eps))
                      : empty_like_nothing(call.mu.options());
    if (needs_deps && dz) problem.deps = output_of(deps);
    if (arguments.shape().rows > 0) run(problem);
    return {dmu.reduce(), dscale.reduce_held(), drho.reduce(), std::move(deps)};
  });
}

Tensor ar1_log_prob(const Tensor& z, const Tensor& mu, const Tensor& scale, const Tensor& rho, bool logits,
                    const Run<LogProb>& run) {
  constexpr auto op = "rhovae::ar1_log_prob";
  return within_memory(op, mu, [&] {
    Arguments arguments(check_log_prob<int64_t>(op, z, mu, scale, rho), mu, scale, rho);
    LogProb problem{};
    arguments.add_per_step(problem.z, z);
    arguments.finish(problem, std::nullopt, logits);
    Tensor log_prob = at::empty(arguments.shape().lead, arguments.arithmetic_options());
    problem.log_prob = output_of(log_prob);
    if (arguments.shape().rows > 0) run(problem);
    return log_prob;
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> ar1_log_prob_backward(const Tensor& dlog_prob, const Tensor& z,
                                                                 const Tensor& mu, const Tensor& scale,
                                                                 const Tensor& rho, bool logits,
                                                                 const Run<LogProbBackward>& run) {
  constexpr auto op = "rhovae::ar1_log_prob_backward";
  return within_memory(op, mu, [&]() -> std::tuple<Tensor, Tensor, Tensor, Tensor> {
    Arguments arguments(check_log_prob_backward<int64_t>(op, dlog_prob, z, mu, scale, rho), mu, scale, rho);
    LogProbBackward problem{};
    arguments.add_per_step(problem.z, z);
    arguments.add_per_row(problem.dlog_prob, dlog_prob);
    arguments.finish(problem, std::nullopt, logits);
    const auto dz = arguments.gradient_per_step(problem.dz, z);
    const auto dmu = arguments.gradient_mu(problem.dmu);
    const auto dscale = arguments.gradient_scale(problem.dscale);
    const auto drho = arguments.gradient_rho(problem.drho);
    if (arguments.shape().rows > 0) run(problem);
    return {dz.reduce_held(), dmu.reduce_held(), dscale.reduce(), drho.reduce()};
  });
}

}  // namespace rhovae::ops
