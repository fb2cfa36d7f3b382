#include "arguments.h"

#include <ATen/ExpandUtils.h>

#include "../core/parameters.h"

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

static Type type_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kDouble:
      return Type::Float64;
    case at::kBFloat16:
      return Type::BFloat16;
    case at::kHalf:
      return Type::Float16;
    default:
      return Type::Float32;
  }
}

Output output_of(const Tensor& tensor) {
  return {tensor.data_ptr(), type_of(tensor)};
}

Rows Arguments::per_step(const Tensor& tensor) {
  return {tensor, tensor.dim() - 1, tensor.size(-1)};
}

Arguments::Arguments(DimVector lead, const Tensor& mu, const Tensor& scale, const Tensor& rho)
    : mu_(per_step(mu)),
      scale_(parameter(scale)),
      rho_(parameter(rho)),
      arithmetic_(mu.scalar_type() == at::kDouble ? at::kDouble : at::kFloat),
      shape_{std::move(lead), mu_.last, 0} {
  shape_.rows = c10::multiply_integers(shape_.lead);
}

Rows Arguments::parameter(const Tensor& given) const {
  return given.dim() > mu_.axes ? per_step(given) : Rows{given, given.dim(), 1};
}

void Arguments::add(Operand& operand, Rows rows) {
  operand.type = type_of(rows.tensor);
  operand.step = rows.last == 1 ? 0 : 1;
  // A value per step must be beside the next: any other last stride is copied.
  if (rows.last > 1 && rows.tensor.stride(-1) != 1) rows.tensor = rows.tensor.contiguous();
  const int64_t missing = static_cast<int64_t>(shape_.lead.size()) - rows.axes;
  DimVector strides(shape_.lead.size(), 0);
  for (int64_t axis = 0; axis < rows.axes; ++axis) {
    if (rows.tensor.size(axis) == shape_.lead[missing + axis]) {
      strides[missing + axis] = rows.tensor.stride(axis);
    }
  }
  entries_.push_back({&operand, std::move(rows.tensor), std::move(strides)});
}

void Arguments::add_per_row(Operand& operand, const Tensor& tensor) {
  add(operand, {tensor, tensor.dim(), 1});
}

void Arguments::add_per_step(Operand& operand, const Tensor& tensor) {
  add(operand, per_step(tensor));
}

void Arguments::add_samples(Operand& operand, const Tensor& tensor) {
  const bool has_axis = tensor.dim() == static_cast<int64_t>(shape_.lead.size()) + 2;
  const bool as_it_is = (tensor.stride(-1) == 1 || shape_.steps == 1) && tensor.dim() <= kMaxAxes;
  const Tensor given = as_it_is ? tensor : tensor.contiguous();
  operand.sample_stride = has_axis ? given.stride(0) : 0;
  add(operand, per_step(has_axis ? given.select(0, 0) : given));
  operand.step = 1;
}

void Arguments::finish(Problem& problem, std::optional<int64_t> samples, bool logits) {
  static const float no_rho = 0;
  problem.rows = shape_.rows;
  problem.steps = shape_.steps;
  problem.samples = samples.value_or(1);
  adds_samples_in_memory_ = mu_.tensor.is_cuda() && problem.samples > 1;
  problem.logits = logits;
  add(problem.mu, mu_);
  add(problem.scale, scale_);
  if (shape_.steps > 1) add(problem.rho, rho_);

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
      const int64_t last = e.operand->step ? shape_.steps - (e.operand == &problem.rho) : 1;
      sizes.push_back(last), strides.push_back(1);
      e.tensor = e.tensor.as_strided(sizes, strides).contiguous();
      e.strides.back() = last;  // torch's own stride means nothing along an axis of one
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
  // A row of one step has no rho, and rho may have no element: its place takes what the kernel writes.
  const Tensor space = own ? at::empty(given.tensor.sizes(), given.tensor.options())
                           : at::empty(shape_.with(given.last == 0 ? 1 : given.last), arithmetic_options());
  output = output_of(space);
  return {space, given, own};
}

Tensor Arguments::Gradient::reduce_held() const {
  const double bound =
      space.scalar_type() == at::kDouble ? kLargestTerm<double> : double{kLargestTerm<float>};
  return own ? space : Gradient{space.clamp(-bound, bound), given, false}.reduce();
}

Tensor Arguments::Gradient::reduce() const {
  const Tensor& to = given.tensor;
  if (none) return at::zeros(to.sizes(), to.options());
  if (own) return space;
  if (to.numel() == 0) return at::empty(to.sizes(), to.options());
  DimVector sizes(given.lead());
  sizes.push_back(given.last);
  return at::sum_to(space, sizes).view(to.sizes()).to(to.scalar_type());
}

}  // namespace rhovae::ops
