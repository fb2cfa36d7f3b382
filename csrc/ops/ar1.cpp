#include "ar1.h"

namespace rhovae::ops {

static Tensor empty_like_nothing(const at::TensorOptions& options) {
  return at::empty({0}, options);
}

static void add_eps(Arguments& arguments, Problem& problem, const Ar1& call) {
  if (call.eps) {
    arguments.add_samples(problem.eps, *call.eps, "eps");
  }
  problem.noise = call.noise;
}

std::tuple<Tensor, Tensor> ar1_forward(const Ar1& call, bool sample, Kl kl, const Run<Forward>& run) {
  Arguments arguments("rhovae::ar1", call.mu, call.scale, call.rho);
  Forward problem{};
  add_eps(arguments, problem, call);
  arguments.finish(problem, call.num_samples, call.logits);

  const Shape& shape = arguments.shape();
  Tensor z = sample ? at::empty(shape.with_samples(call.num_samples), call.mu.options())
                    : empty_like_nothing(call.mu.options());
  Tensor divergence = kl == Kl::None     ? empty_like_nothing(arguments.arithmetic_options())
                      : kl == Kl::PerRow ? at::empty(shape.lead, arguments.arithmetic_options())
                                         : at::empty(shape.with(shape.steps), arguments.arithmetic_options());
  if (sample) problem.z = output_of(z);
  problem.kl_kind = kl;
  if (kl != Kl::None) problem.kl = output_of(divergence);
  if (shape.rows > 0) run(problem);
  return {std::move(z), std::move(divergence)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> ar1_backward(const Ar1& call, const OptionalTensor& dz,
                                                        const OptionalTensor& dkl, Kl kl, bool needs_deps,
                                                        const Run<Backward>& run) {
  Arguments arguments("rhovae::ar1_backward", call.mu, call.scale, call.rho);
  Backward problem{};
  TORCH_CHECK_TYPE(!dz || dz->scalar_type() == call.mu.scalar_type(),
                   "rhovae::ar1_backward: dz must be of mu's type (", call.mu.scalar_type(), "), got ",
                   dz->scalar_type());
  add_eps(arguments, problem, call);
  if (dz) arguments.add_samples(problem.dz, *dz, "dz");
  if (dkl && kl == Kl::PerStep) arguments.add_per_step(problem.dkl, *dkl, "dkl");
  if (dkl && kl != Kl::PerStep) arguments.add_per_row(problem.dkl, *dkl, "dkl");
  arguments.finish(problem, call.num_samples, call.logits);

  const auto dmu = arguments.gradient_mu(problem.dmu);
  const auto dscale = arguments.gradient_scale(problem.dscale);
  const auto drho = arguments.gradient_rho(problem.drho);
  Tensor deps = needs_deps
                    ? (dz ? at::empty(call.eps->sizes(), call.eps->options()) : at::zeros_like(*call.eps))
                    : empty_like_nothing(call.mu.options());
  if (needs_deps && dz) problem.deps = output_of(deps);
  if (arguments.shape().rows > 0) run(problem);
  return {dmu.reduce(), dscale.reduce(), drho.reduce(), std::move(deps)};
}

Tensor ar1_log_prob(const Tensor& z, const Tensor& mu, const Tensor& scale, const Tensor& rho, bool logits,
                    const Run<LogProb>& run) {
  Arguments arguments("rhovae::ar1_log_prob", mu, scale, rho, z);
  LogProb problem{};
  arguments.add_per_step(problem.z, z, "z");
  arguments.finish(problem, std::nullopt, logits);
  Tensor log_prob = at::empty(arguments.shape().lead, arguments.arithmetic_options());
  problem.log_prob = output_of(log_prob);
  if (arguments.shape().rows > 0) run(problem);
  return log_prob;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> ar1_log_prob_backward(const Tensor& dlog_prob, const Tensor& z,
                                                                 const Tensor& mu, const Tensor& scale,
                                                                 const Tensor& rho, bool logits,
                                                                 const Run<LogProbBackward>& run) {
  Arguments arguments("rhovae::ar1_log_prob_backward", mu, scale, rho, z);
  LogProbBackward problem{};
  arguments.add_per_step(problem.z, z, "z");
  arguments.add_per_row(problem.dlog_prob, dlog_prob, "dlog_prob");
  arguments.finish(problem, std::nullopt, logits);
  const auto dz = arguments.gradient_per_step(problem.dz, z);
  const auto dmu = arguments.gradient_mu(problem.dmu);
  const auto dscale = arguments.gradient_scale(problem.dscale);
  const auto drho = arguments.gradient_rho(problem.drho);
  if (arguments.shape().rows > 0) run(problem);
  return {dz.reduce(), dmu.reduce(), dscale.reduce(), drho.reduce()};
}

}  // namespace rhovae::ops
