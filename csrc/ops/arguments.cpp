#include "arguments.h"

#include <ATen/ExpandUtils.h>

namespace rhovae::ops {

DimVector Shape::with(int64_t last) const {
  DimVector sizes = lead;
  sizes.push_back(last);
  return sizes;
}

DimVector Shape::with_samples(std::optional<int64_t> samples) const {
  DimVector sizes;
  if (samples) sizes.push_back(*samples);
  sizes.append(lead.begin(), lead.end());
  sizes.push_back(steps);
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

Rows Arguments::per_step(const Tensor& tensor) {
  return {tensor, tensor.dim() - 1, tensor.size(-1)};
}

Arguments::Arguments(const char* op, const Tensor& mu, const Tensor& scale, const Tensor& rho,
                     const OptionalTensor& z)
    : op_(op) {
  TORCH_CHECK_VALUE(mu.dim() >= 1 && mu.size(-1) >= 1, op,
                    ": mu must have a last axis of at least one step, got shape ", mu.sizes());
  arithmetic_ = mu.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  mu_ = per_step(mu);
  shape_.steps = mu_.last;
  scale_ = parameter(scale, shape_.steps, "s");
  rho_ = parameter(rho, shape_.steps - 1, "rho");
  for (const Tensor* tensor : {&scale, &rho}) {
    TORCH_CHECK_TYPE(tensor->scalar_type() == mu.scalar_type() || tensor->scalar_type() == at::kFloat, op,
                     ": s and rho must be of mu's type (", mu.scalar_type(), ") or float32, got ",
                     tensor->scalar_type());
    TORCH_CHECK_VALUE(tensor->device() == mu.device(), op, ": s and rho must be on mu's device (",
                      mu.device(), "), got ", tensor->device());
  }
  shape_.lead = at::infer_size_dimvector(at::infer_size_dimvector(mu_.lead(), scale_.lead()), rho_.lead());
  if (z) {
    TORCH_CHECK_VALUE(z->dim() >= 1 && z->size(-1) == shape_.steps, op, ": z must have mu's last axis (",
                      shape_.steps, "), got shape ", z->sizes());
    shape_.lead = at::infer_size_dimvector(shape_.lead, per_step(*z).lead());
  }
  shape_.rows = c10::multiply_integers(shape_.lead);
}

Rows Arguments::parameter(const Tensor& given, int64_t per_step, const char* name) const {
  const int64_t rank = mu_.axes + 1;
  if (given.dim() == 0) return {given, 0, 1};
  if (given.dim() < rank) {
    TORCH_CHECK_VALUE(
        given.dim() == rank - 1, op_, ": ", name, " must be a number, have mu's rank less one (", rank - 1,
        ", a value per row) or have a last axis of 1 or ", per_step, ", got shape ", given.sizes());
    return {given, given.dim(), 1};
  }
  TORCH_CHECK_VALUE(given.size(-1) == 1 || given.size(-1) == per_step, op_, ": the last axis of ", name,
                    " must be 1 or ", per_step, ", got shape ", given.sizes());
  return {given, given.dim() - 1, given.size(-1)};
}

void Arguments::add(Operand& operand, Rows rows, const char* name) {
  operand.type = type_of(op_, rows.tensor, name);
  operand.step = rows.last == 1 ? 0 : 1;
  // A value per step must be beside the next: any other last stride is copied.
  if (rows.last > 1 && rows.tensor.stride(-1) != 1) rows.tensor = rows.tensor.contiguous();
  const int64_t missing = static_cast<int64_t>(shape_.lead.size()) - rows.axes;
  TORCH_CHECK_VALUE(missing >= 0, op_, ": ", name, " has too many axes: ", rows.tensor.sizes());
  DimVector strides(shape_.lead.size(), 0);
  for (int64_t axis = 0; axis < rows.axes; ++axis) {
    const int64_t size = rows.tensor.size(axis), whole = shape_.lead[missing + axis];
    TORCH_CHECK_VALUE(size == whole || size == 1, op_, ": ", name, " must broadcast to ", shape_.lead,
                      ", got shape ", rows.tensor.sizes());
    if (size == whole) strides[missing + axis] = rows.tensor.stride(axis);
  }
  entries_.push_back({&operand, std::move(rows.tensor), std::move(strides)});
}

void Arguments::add_per_row(Operand& operand, const Tensor& tensor, const char* name) {
  add(operand, {tensor, tensor.dim(), 1}, name);
}

void Arguments::add_per_step(Operand& operand, const Tensor& tensor, const char* name) {
  add(operand, per_step(tensor), name);
}

void Arguments::add_samples(Operand& operand, const Tensor& tensor, const char* name) {
  const bool has_axis = tensor.dim() == static_cast<int64_t>(shape_.lead.size()) + 2;
  const bool as_it_is = (tensor.stride(-1) == 1 || shape_.steps == 1) && tensor.dim() <= kMaxAxes;
  const Tensor given = as_it_is ? tensor : tensor.contiguous();
  TORCH_CHECK_VALUE(
      given.sizes() == shape_.with_samples(has_axis ? std::optional(given.size(0)) : std::nullopt), op_, ": ",
      name, " must have z's shape, got ", given.sizes());
  operand.sample_stride = has_axis ? given.stride(0) : 0;
  add(operand, per_step(has_axis ? given.select(0, 0) : given), name);
  operand.step = 1;
}

void Arguments::finish(Problem& problem, std::optional<int64_t> samples, bool logits) {
  static const float no_rho = 0;
  TORCH_CHECK_VALUE(samples.value_or(1) >= 1, op_, ": num_samples must be at least 1, got ",
                    samples.value_or(1));
  problem.rows = shape_.rows;
  problem.steps = shape_.steps;
  problem.samples = samples.value_or(1);
  adds_samples_in_memory_ = mu_.tensor.is_cuda() && problem.samples > 1;
  problem.logits = logits;
  add(problem.mu, mu_, "mu");
  add(problem.scale, scale_, "s");
  if (shape_.steps > 1) add(problem.rho, rho_, "rho");

  // Merge neighbouring axes wherever every operand steps through them as through one.
  const int axes = static_cast<int>(shape_.lead.size());
  const auto merges = [&](int axis) {
    for (const Entry& e : entries_) {
      if (e.strides[axis - 1] != e.strides[axis] * shape_.lead[axis]) return false;
    }
    return true;
  };
  c10::SmallVector<std::pair<int64_t, int>, kMaxAxes> groups;  // size, innermost axis
  for (int axis = 0; axis < axes; ++axis) {
    if (shape_.lead[axis] == 1) continue;
    if (!groups.empty() && groups.back().second == axis - 1 && merges(axis)) {
      groups.back() = {groups.back().first * shape_.lead[axis], axis};
    } else {
      groups.push_back({shape_.lead[axis], axis});
    }
  }
  if (groups.size() > kMaxAxes) {  // strides this wild are not worth following
    for (Entry& e : entries_) {
      DimVector sizes = shape_.lead, strides = e.strides;
      if (e.operand->step) sizes.push_back(shape_.steps - (e.operand == &problem.rho)), strides.push_back(1);
      e.tensor = e.tensor.as_strided(sizes, strides).contiguous();
      e.strides.back() = e.tensor.stride(axes - 1);
    }
    groups.assign(1, {shape_.rows, axes - 1});
  }
  problem.lead.axes = groups.empty() ? 1 : static_cast<int32_t>(groups.size());
  problem.lead.size[0] = 1;
  for (size_t g = 0; g < groups.size(); ++g) problem.lead.size[g] = groups[g].first;
  for (Entry& e : entries_) {
    e.operand->data = e.tensor.const_data_ptr();
    e.operand->stride[0] = 0;
    for (size_t g = 0; g < groups.size(); ++g) e.operand->stride[g] = e.strides[groups[g].second];
  }
  if (shape_.steps == 1) problem.rho = Operand{&no_rho, Type::Float32, 0, 0, {}};
}

Arguments::Gradient Arguments::gradient(Output& output, const Rows& given) const {
  const bool own =
      given.last != 0 && given.lead() == at::IntArrayRef(shape_.lead) && !adds_samples_in_memory_;
  // A row of one step has no rho: its place takes what the kernel writes, and is then dropped.
  const Tensor space = own ? at::empty(given.tensor.sizes(), given.tensor.options())
                           : at::empty(shape_.with(given.last == 0 ? 1 : given.last), arithmetic_options());
  output = output_of(space);
  return {space, given, own};
}

Tensor Arguments::Gradient::reduce() const {
  if (own) return space;
  const Tensor& to = given.tensor;
  if (to.numel() == 0 && space.numel() != 0) return at::zeros_like(to);
  DimVector sizes(given.lead());
  sizes.push_back(given.last);
  return at::sum_to(space, sizes).view(to.sizes()).to(to.scalar_type());
}

}  // namespace rhovae::ops
