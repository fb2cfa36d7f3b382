#include "checks.h"

#include <torch/library.h>

#include <sstream>
#include <string>
#include <type_traits>
#include <vector>

namespace rhovae::ops {

using c10::ArrayRef;
using c10::SymInt;

// More elements have no address, and what is computed from so many (bytes, rows times samples) fits 64 bits.
static constexpr int64_t kMostElements = int64_t{1} << 56;

template <class Int>
static ArrayRef<Int> sizes_of(const Tensor& tensor) {
  if constexpr (std::is_same_v<Int, SymInt>)
    return tensor.sym_sizes();
  else
    return tensor.sizes();
}

// Of symbols: whether that is known to be so.
static bool same(int64_t a, int64_t b) {
  return a == b;
}
static bool same(const SymInt& a, const SymInt& b) {
  return TORCH_GUARD_OR_FALSE(a.sym_eq(b));
}
static bool differ(int64_t a, int64_t b) {
  return a != b;
}
static bool differ(const SymInt& a, const SymInt& b) {
  return TORCH_GUARD_OR_FALSE(a.sym_ne(b));
}
static bool below(int64_t a, int64_t b) {
  return a < b;
}
static bool below(const SymInt& a, const SymInt& b) {
  return TORCH_GUARD_OR_FALSE(a.sym_lt(b));
}
static int64_t known(int64_t size) {
  return size;
}
static int64_t known(const SymInt& size) {
  return size.maybe_as_int().value_or(1);
}

template <class Int>
static bool differ(ArrayRef<Int> a, ArrayRef<Int> b) {
  if (a.size() != b.size()) return true;
  for (size_t i = 0; i < a.size(); ++i) {
    if (differ(a[i], b[i])) return true;
  }
  return false;
}

// The axes broadcast to, counted from the last one; false where they do not agree.
template <class Int>
static bool broadcast(Sizes<Int>& lead, ArrayRef<Int> more) {
  if (more.size() > lead.size()) lead.insert(lead.begin(), more.size() - lead.size(), Int(1));
  const size_t missing = lead.size() - more.size();
  for (size_t i = 0; i < more.size(); ++i) {
    Int& size = lead[missing + i];
    if (same(size, Int(1)))
      size = more[i];
    else if (differ(size, more[i]) && differ(more[i], Int(1)))
      return false;
  }
  return true;
}

namespace {

// The checks of one call, all against its mu.
template <class Int>
struct Checks {
  const char* op;
  const Tensor& mu;
  Sizes<Int> lead;
  Int steps{1};

  Checks(const char* op, const Tensor& mu, const Tensor& scale, const Tensor& rho) : op(op), mu(mu) {
    const at::ScalarType type = mu.scalar_type();
    TORCH_CHECK_TYPE(type == at::kFloat || type == at::kDouble || type == at::kBFloat16 || type == at::kHalf,
                     op, ": mu must be float32, float64, bfloat16 or float16, but got ", type,
                     ". Convert it: mu.float().");
    const ArrayRef<Int> sizes = sizes_of<Int>(mu);
    TORCH_CHECK_VALUE(!sizes.empty() && !below(sizes.back(), Int(1)), op,
                      ": mu must have a last axis of at least one step, but got shape ", sizes, ".");
    steps = sizes.back();
    lead.assign(sizes.begin(), sizes.end() - 1);
    parameter("scale", scale, steps);
    parameter("rho", rho, steps - 1);
  }

  void parameter(const char* name, const Tensor& given, const Int& per_step) {
    own_type_or_float32(name, given);
    on_device(name, given);
    ArrayRef<Int> axes = sizes_of<Int>(given);
    const size_t rank = mu.dim();
    if (axes.size() >= rank) {
      TORCH_CHECK_VALUE(!differ(axes.back(), Int(1)) || !differ(axes.back(), per_step), op,
                        ": the last axis of ", name, " must be 1 or ", per_step, ", but got shape ", axes,
                        " with mu of shape ", sizes_of<Int>(mu), ".");
      axes = axes.slice(0, axes.size() - 1);
    } else {
      TORCH_CHECK_VALUE(axes.empty() || axes.size() == rank - 1, op, ": ", name,
                        " must be a number, have mu's rank less one (a value per row) or at least mu's rank "
                        "(with a last axis of 1 or ",
                        per_step, "), but got shape ", axes, " with mu of shape ", sizes_of<Int>(mu), ".");
    }
    agrees(name, given, axes);
  }

  void agrees(const char* name, const Tensor& given, ArrayRef<Int> axes) {
    TORCH_CHECK_VALUE(broadcast(lead, axes), op, ": the leading axes of ", name,
                      " must broadcast with those of the others, ", ArrayRef<Int>(lead), ", but got shape ",
                      sizes_of<Int>(given), ". Make each of them equal or 1.");
  }

  void own_type(const char* name, const Tensor& given) const {
    TORCH_CHECK_TYPE(given.scalar_type() == mu.scalar_type(), op, ": ", name, " must be ", mu.scalar_type(),
                     " (as mu), but got ", given.scalar_type(), ". Convert it: ", name, ".to(mu.dtype).");
  }
  void own_type_or_float32(const char* name, const Tensor& given) const {
    TORCH_CHECK_TYPE(given.scalar_type() == mu.scalar_type() || given.scalar_type() == at::kFloat, op, ": ",
                     name, " must be ", mu.scalar_type(), " (as mu) or Float, but got ", given.scalar_type(),
                     ". Convert it: ", name, ".to(mu.dtype).");
  }
  void on_device(const char* name, const Tensor& given) const {
    TORCH_CHECK_VALUE(given.device() == mu.device(), op, ": ", name, " must be on mu's device, ", mu.device(),
                      ", but got a tensor on ", given.device(), ". Move it: ", name, ".to(mu.device).");
  }
  void shaped(const char* name, const Tensor& given, const char* as, const Sizes<Int>& shape) const {
    TORCH_CHECK_VALUE(!differ(sizes_of<Int>(given), ArrayRef<Int>(shape)), op, ": ", name, " must have ", as,
                      " shape, ", ArrayRef<Int>(shape), ", but got ", sizes_of<Int>(given),
                      ". Expand it to that shape.");
  }

  Sizes<Int> per_step() const {
    Sizes<Int> shape = lead;
    shape.push_back(steps);
    return shape;
  }
  Sizes<Int> samples_of(const std::optional<Int>& num_samples) const {
    Sizes<Int> shape = per_step();
    if (num_samples) shape.insert(shape.begin(), *num_samples);
    return shape;
  }

  // To be called before anything is multiplied.
  void size(const std::optional<Int>& num_samples) const {
    TORCH_CHECK_VALUE(!num_samples || !below(*num_samples, Int(1)), op,
                      ": num_samples must be None or at least 1, but got ", *num_samples,
                      ". None draws one sample without an axis for it.");
    int64_t room = kMostElements / known(steps);
    for (const Int& axis : lead) room /= std::max(known(axis), int64_t{1});
    TORCH_CHECK_VALUE(room >= 1, op, ": mu must be of fewer than 2^56 elements, but got shape ",
                      sizes_of<Int>(mu), ", which broadcasts to ", ArrayRef<Int>(per_step()),
                      ". Compute it in parts.");
    TORCH_CHECK_VALUE(!num_samples || known(*num_samples) <= room, op, ": num_samples must leave z of shape ",
                      ArrayRef<Int>(samples_of(num_samples)), " fewer than 2^56 elements, but got ",
                      *num_samples, ". Draw them in parts.");
  }

  void noise(const OptionalTensor& key, const OptionalTensor& eps, const std::optional<Int>& num_samples,
             bool needed) const {
    if (key) {
      const ArrayRef<Int> sizes = sizes_of<Int>(*key);
      const at::ScalarType type = key->scalar_type();
      TORCH_CHECK_VALUE((type == at::kUInt64 || type == at::kLong) && is_key(sizes) &&
                            (key->is_cpu() || key->device() == mu.device()),
                        op, ": key must be a uint64 tensor (seed, offset), or one of shape ",
                        ArrayRef<Int>(lead), " and 2 (axes without a key of their own: 1), on the CPU or on ",
                        "mu's device, ", mu.device(), ", but got ", type, " of shape ", sizes, " on ",
                        key->device(), ". Make one with torch.tensor([seed, offset], dtype=torch.uint64).");
    }
    if (eps) {
      own_type_or_float32("eps", *eps);
      on_device("eps", *eps);
      shaped("eps", *eps, "z's", samples_of(num_samples));
    }
    TORCH_CHECK_VALUE(!needed || key || eps, op,
                      ": key or eps must be given where there are samples, but got neither.");
  }

  // One for all rows, or one along any of the leading axes.
  bool is_key(ArrayRef<Int> sizes) const {
    if (sizes.empty() || differ(sizes.back(), Int(2))) return false;
    if (sizes.size() == 1) return true;
    if (sizes.size() != lead.size() + 1) return false;
    for (size_t axis = 0; axis < lead.size(); ++axis) {
      if (differ(sizes[axis], lead[axis]) && differ(sizes[axis], Int(1))) return false;
    }
    return true;
  }

  void kind(int64_t kl) const {
    TORCH_CHECK_VALUE(kl >= 0 && kl <= 2, op, ": kl must be 0 (none), 1 (per row) or 2 (per step), but got ",
                      kl, ".");
  }

  void point(const Tensor& z) {
    own_type("z", z);
    on_device("z", z);
    const ArrayRef<Int> sizes = sizes_of<Int>(z);
    TORCH_CHECK_VALUE(!sizes.empty() && !differ(sizes.back(), steps), op, ": z must have mu's last axis of ",
                      steps, ", but got shape ", sizes, ".");
    agrees("z", z, sizes.slice(0, sizes.size() - 1));
  }
};

}  // namespace

template <class Int>
Sizes<Int> check_ar1(const char* op, const Tensor& mu, const Tensor& scale, const Tensor& rho,
                     const OptionalTensor& key, const OptionalTensor& eps,
                     const std::optional<Int>& num_samples, bool sample, int64_t kl) {
  Checks<Int> checks(op, mu, scale, rho);
  checks.size(num_samples);
  checks.noise(key, eps, num_samples, sample);
  checks.kind(kl);
  return std::move(checks.lead);
}

template <class Int>
Sizes<Int> check_ar1_backward(const char* op, const OptionalTensor& dz, const OptionalTensor& dkl,
                              const Tensor& mu, const Tensor& scale, const Tensor& rho,
                              const OptionalTensor& key, const OptionalTensor& eps,
                              const std::optional<Int>& num_samples, int64_t kl, bool needs_deps) {
  Checks<Int> checks(op, mu, scale, rho);
  checks.size(num_samples);
  checks.noise(key, eps, num_samples, dz.has_value());
  checks.kind(kl);
  if (dz) {
    checks.own_type("dz", *dz);
    checks.on_device("dz", *dz);
    checks.shaped("dz", *dz, "z's", checks.samples_of(num_samples));
  }
  if (dkl) {
    TORCH_CHECK_VALUE(kl != 0, op, ": dkl must be None where kl is 0 (none), but got a tensor.");
    checks.own_type_or_float32("dkl", *dkl);
    checks.on_device("dkl", *dkl);
    checks.shaped("dkl", *dkl, "the KL's", kl == 1 ? checks.lead : checks.per_step());
  }
  TORCH_CHECK_VALUE(!needs_deps || eps, op,
                    ": eps must be given where needs_deps asks for its gradient, but got None.");
  return std::move(checks.lead);
}

template <class Int>
Sizes<Int> check_log_prob(const char* op, const Tensor& z, const Tensor& mu, const Tensor& scale,
                          const Tensor& rho) {
  Checks<Int> checks(op, mu, scale, rho);
  checks.point(z);
  checks.size(std::nullopt);
  return std::move(checks.lead);
}

template <class Int>
Sizes<Int> check_log_prob_backward(const char* op, const Tensor& dlog_prob, const Tensor& z, const Tensor& mu,
                                   const Tensor& scale, const Tensor& rho) {
  Checks<Int> checks(op, mu, scale, rho);
  checks.point(z);
  checks.size(std::nullopt);
  checks.own_type_or_float32("dlog_prob", dlog_prob);
  checks.on_device("dlog_prob", dlog_prob);
  checks.shaped("dlog_prob", dlog_prob, "the density's", checks.lead);
  return std::move(checks.lead);
}

void check_draw_key(const Tensor& like, const std::optional<at::Generator>& generator) {
  TORCH_CHECK_VALUE(!generator || !generator->defined() || generator->device().type() == like.device().type(),
                    "rhovae::draw_key: generator must be on the device of like, ", like.device(),
                    ", but got one on ", generator->device(), ". Make it with torch.Generator(device).");
}

template Sizes<int64_t> check_ar1(const char*, const Tensor&, const Tensor&, const Tensor&,
                                  const OptionalTensor&, const OptionalTensor&, const std::optional<int64_t>&,
                                  bool, int64_t);
template Sizes<int64_t> check_ar1_backward(const char*, const OptionalTensor&, const OptionalTensor&,
                                           const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&,
                                           const OptionalTensor&, const std::optional<int64_t>&, int64_t,
                                           bool);
template Sizes<int64_t> check_log_prob(const char*, const Tensor&, const Tensor&, const Tensor&,
                                       const Tensor&);
template Sizes<int64_t> check_log_prob_backward(const char*, const Tensor&, const Tensor&, const Tensor&,
                                                const Tensor&, const Tensor&);

// The same for what is written in Python, fake kernels and Triton's: `op` and then the op's own arguments.

static std::vector<SymInt> listed(Sizes<SymInt> sizes) {
  return {sizes.begin(), sizes.end()};
}
static std::vector<SymInt> ar1(const std::string& op, const Tensor& mu, const Tensor& scale,
                               const Tensor& rho, const OptionalTensor& key, const OptionalTensor& eps,
                               std::optional<SymInt> num_samples, SymInt, bool, bool sample, int64_t kl) {
  return listed(check_ar1(op.c_str(), mu, scale, rho, key, eps, num_samples, sample, kl));
}
static std::vector<SymInt> ar1_backward(const std::string& op, const OptionalTensor& dz,
                                        const OptionalTensor& dkl, const Tensor& mu, const Tensor& scale,
                                        const Tensor& rho, const OptionalTensor& key,
                                        const OptionalTensor& eps, std::optional<SymInt> num_samples, SymInt,
                                        bool, int64_t kl, bool needs_deps) {
  return listed(
      check_ar1_backward(op.c_str(), dz, dkl, mu, scale, rho, key, eps, num_samples, kl, needs_deps));
}
static std::vector<SymInt> log_prob(const std::string& op, const Tensor& z, const Tensor& mu,
                                    const Tensor& scale, const Tensor& rho, bool) {
  return listed(check_log_prob<SymInt>(op.c_str(), z, mu, scale, rho));
}
static std::vector<SymInt> log_prob_backward(const std::string& op, const Tensor& dlog_prob, const Tensor& z,
                                             const Tensor& mu, const Tensor& scale, const Tensor& rho, bool) {
  return listed(check_log_prob_backward<SymInt>(op.c_str(), dlog_prob, z, mu, scale, rho));
}

TORCH_LIBRARY_IMPL(rhovae, CompositeImplicitAutograd, m) {
  m.impl("check_ar1", ar1);
  m.impl("check_ar1_backward", ar1_backward);
  m.impl("check_ar1_log_prob", log_prob);
  m.impl("check_ar1_log_prob_backward", log_prob_backward);
  m.impl("check_draw_key", check_draw_key);
}

// Tensors that no kernel takes, in place of the dispatcher's table of those that there are.
static void refuse(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const auto given = torch::jit::last(*stack, schema.arguments().size());
  const auto dense = [](const Tensor& tensor) {
    return !tensor.is_nested() && !tensor.is_quantized() && tensor.layout() == at::kStrided;
  };
  size_t at = 0;
  while (at < given.size() && (!given[at].isTensor() || dense(given[at].toTensor()))) ++at;
  if (at == given.size()) at = 0;
  while (!given[at].isTensor()) ++at;
  const Tensor& tensor = given[at].toTensor();
  std::ostringstream kind;
  kind << tensor.layout();
  TORCH_CHECK_TYPE(false, schema.name(), ": ", schema.arguments()[at].name(),
                   " must be a dense tensor on a device with kernels loaded, but got a ",
                   tensor.is_nested()      ? "nested"
                   : tensor.is_quantized() ? "quantized"
                                           : kind.str(),
                   " tensor on ", tensor.device(),
                   ". Convert it or see rhovae_ext.available_backends(device).");
}

static void refuse_what_is_left(torch::Library& m) {
  for (const char* prefix : {"", "triton_"}) {
    for (const char* name : {"ar1", "ar1_backward", "ar1_log_prob", "ar1_log_prob_backward"}) {
      m.impl((std::string(prefix) + name).c_str(), torch::CppFunction::makeFromBoxedFunction<&refuse>());
    }
  }
  m.impl("draw_key", torch::CppFunction::makeFromBoxedFunction<&refuse>());
}

TORCH_LIBRARY_IMPL(rhovae, CompositeExplicitAutograd, m) {
  refuse_what_is_left(m);
}
TORCH_LIBRARY_IMPL(rhovae, NestedTensorCPU, m) {
  refuse_what_is_left(m);
}
TORCH_LIBRARY_IMPL(rhovae, NestedTensorCUDA, m) {
  refuse_what_is_left(m);
}
TORCH_LIBRARY_IMPL(rhovae, AutogradNestedTensor, m) {
  refuse_what_is_left(m);
}

}  // namespace rhovae::ops
