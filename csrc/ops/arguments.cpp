#include "arguments.h"

#include <ATen/ExpandUtils.h>

namespace rhovae::ops {

std::vector<int64_t> Shape::with(int64_t last) const {
  std::vector<int64_t> sizes = lead;
  sizes.push_back(last);
  return sizes;
}

std::vector<int64_t> Shape::with_samples(std::optional<int64_t> samples) const {
  std::vector<int64_t> sizes = with(steps);
  if (samples) sizes.insert(sizes.begin(), *samples);
  return sizes;
}

Type type_of(const char* op, const Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case at::kFloat:
      return Type::Float32;
    case at::kDouble:
      return Type::Float64;
    case at::kBFloat16:
      return Type::BFloat16;
    case at::kHalf:
      return Type::Float16;
    default:
      TORCH_CHECK_TYPE(false, op, ": ", name, " must be float32, float64, bfloat16 or float16, got ",
                       tensor.scalar_type());
  }
}

Output output_of(const Tensor& tensor) {
  return {tensor.data_ptr(), type_of("rhovae", tensor, "an output")};
}

Arguments::Arguments(const char* op, const Tensor& mu, const Tensor& scale, const Tensor& rho,
                     const OptionalTensor& z)
    : op_(op), mu_(mu), scale_given_(scale), rho_given_(rho) {
  TORCH_CHECK_VALUE(mu.dim() >= 1 && mu.size(-1) >= 1, op,
                    ": mu must have a last axis of at least one step, got shape ", mu.sizes());
  arithmetic_ = mu.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  shape_.steps = mu.size(-1);
  scale_ = parameter(scale, shape_.steps, "s");
  rho_ = parameter(rho, shape_.steps - 1, "rho");
  for (const Tensor* tensor : {&scale, &rho}) {
    TORCH_CHECK_TYPE(tensor->scalar_type() == mu.scalar_type() || tensor->scalar_type() == at::kFloat, op,
                     ": s and rho must be of mu's type (", mu.scalar_type(), ") or float32, got ",
                     tensor->scalar_type());
    TORCH_CHECK_VALUE(tensor->device() == mu.device(), op, ": s and rho must be on mu's device (",
                      mu.device(), "), got ", tensor->device());
  }
  const auto leading = [](const Tensor& t) { return t.sizes().slice(0, t.dim() - 1); };
  shape_.lead = at::infer_size(at::infer_size(leading(mu_), leading(scale_)), leading(rho_));
  if (z) {
    TORCH_CHECK_VALUE(z->dim() >= 1 && z->size(-1) == shape_.steps, op, ": z must have mu's last axis (",
                      shape_.steps, "), got shape ", z->sizes());
    shape_.lead = at::infer_size(shape_.lead, leading(*z));
  }
  shape_.rows = c10::multiply_integers(shape_.lead);
}

Tensor Arguments::parameter(const Tensor& given, int64_t per_step, const char* name) const {
  if (given.dim() == 0) return given.unsqueeze(0);
  if (given.dim() < mu_.dim()) {
    TORCH_CHECK_VALUE(given.dim() == mu_.dim() - 1, op_, ": ", name,
                      " must be a number, have mu's rank less one (", mu_.dim() - 1,
                      ", a value per row) or have a last axis of 1 or ", per_step, ", got shape ",
                      given.sizes());
    return given.unsqueeze(-1);
  }
  TORCH_CHECK_VALUE(given.size(-1) == 1 || given.size(-1) == per_step, op_, ": the last axis of ", name,
                    " must be 1 or ", per_step, ", got shape ", given.sizes());
  return given;
}

void Arguments::add(Operand& operand, const Tensor& expanded, int64_t sample_stride) {
  operand.sample_stride = sample_stride;
  entries_.push_back({&operand, expanded});
}

// A value per step must be beside the next: any other last stride is copied.
static Tensor unit_last_stride(const Tensor& t) {
  return t.size(-1) == 1 || t.stride(-1) == 1 ? t : t.contiguous();
}

void Arguments::add_rows(Operand& operand, const Tensor& tensor, const char* name) {
  operand.type = type_of(op_, tensor, name);
  const Tensor given = unit_last_stride(tensor);
  operand.step = given.size(-1) == 1 ? 0 : 1;
  add(operand, given.expand(shape_.with(given.size(-1))), 0);
}

void Arguments::add_samples(Operand& operand, const Tensor& tensor, const char* name) {
  operand.type = type_of(op_, tensor, name);
  operand.step = 1;
  const Tensor given = unit_last_stride(tensor);
  const bool has_axis = given.dim() == static_cast<int64_t>(shape_.lead.size()) + 2;
  TORCH_CHECK_VALUE(
      given.sizes() == shape_.with_samples(has_axis ? std::optional(given.size(0)) : std::nullopt), op_, ": ",
      name, " must have z's shape, got ", given.sizes());
  if (has_axis)
    add(operand, given.select(0, 0), given.stride(0));
  else
    add(operand, given, 0);
}

void Arguments::finish(Problem& problem, std::optional<int64_t> samples, bool logits) {
  static const float no_rho = 0;
  TORCH_CHECK_VALUE(samples.value_or(1) >= 1, op_, ": num_samples must be at least 1, got ",
                    samples.value_or(1));
  problem.rows = shape_.rows;
  problem.steps = shape_.steps;
  problem.samples = samples.value_or(1);
  adds_samples_in_memory_ = mu_.is_cuda() && problem.samples > 1;
  problem.logits = logits;
  add_rows(problem.mu, mu_, "mu");
  add_rows(problem.scale, scale_, "s");
  if (shape_.steps > 1) add_rows(problem.rho, rho_, "rho");

  // Merge neighbouring axes wherever every operand steps through them as through one.
  const int axes = static_cast<int>(shape_.lead.size());
  const auto merges = [&](int axis) {
    for (const Entry& e : entries_) {
      if (e.tensor.stride(axis - 1) != e.tensor.stride(axis) * shape_.lead[axis]) return false;
    }
    return true;
  };
  std::vector<std::pair<int64_t, int>> groups;  // size, innermost axis
  for (int axis = 0; axis < axes; ++axis) {
    if (shape_.lead[axis] == 1) continue;
    if (!groups.empty() && groups.back().second == axis - 1 && merges(axis)) {
      groups.back() = {groups.back().first * shape_.lead[axis], axis};
    } else {
      groups.push_back({shape_.lead[axis], axis});
    }
  }
  if (groups.size() > kMaxAxes) {  // strides this wild are not worth following
    for (Entry& e : entries_) e.tensor = e.tensor.contiguous();
    groups.assign(1, {shape_.rows, axes - 1});
  }
  problem.lead.axes = groups.empty() ? 1 : static_cast<int32_t>(groups.size());
  problem.lead.size[0] = 1;
  for (size_t g = 0; g < groups.size(); ++g) problem.lead.size[g] = groups[g].first;
  for (Entry& e : entries_) {
    e.operand->data = e.tensor.const_data_ptr();
    e.operand->stride[0] = 0;
    for (size_t g = 0; g < groups.size(); ++g) e.operand->stride[g] = e.tensor.stride(groups[g].second);
  }
  if (shape_.steps == 1) problem.rho = Operand{&no_rho, Type::Float32, 0, 0, {}};
}

Arguments::Gradient Arguments::gradient(Output& output, const Tensor& given, const Tensor& with_last) const {
  // A row of one step has no rho: its place takes what the kernel writes, and is then dropped.
  const int64_t last = with_last.size(-1) == 0 ? 1 : with_last.size(-1);
  const std::vector<int64_t> whole = shape_.with(last);
  const bool own = with_last.sizes() == at::IntArrayRef(whole) && !adds_samples_in_memory_;
  const Tensor space = at::empty(whole, own ? given.options() : arithmetic_options());
  output = output_of(space);
  return {space, given, with_last};
}

Tensor Arguments::Gradient::reduce() const {
  if (given.numel() == 0 && space.numel() != 0) return at::zeros_like(given);
  return at::sum_to(space, with_last.sizes()).view(given.sizes()).to(given.scalar_type());
}

}  // namespace rhovae::ops
