#pragma once

// From tensors to the plain descriptions that kernels take, the same for every device: broadcasting, strides,
// collapsed axes, outputs and the reduction of gradients to their inputs' shapes. All that comes here has
// been checked. Only sizes and strides are looked at: a view of a tensor costs more than a small problem's
// arithmetic.

#include "../core/problem.h"
#include "checks.h"

namespace rhovae::ops {

using at::DimVector;

// The leading axes on which all operands agree, the steps of a row, and the number of rows.
struct Shape {
  DimVector lead;
  int64_t steps;
  int64_t rows;

  DimVector with(int64_t last) const;
  DimVector with_samples(std::optional<int64_t> samples) const;  // (samples?, lead..., steps)
};

// A tensor's leading axes, and how many values it has along the last axis: 1 where it has no such axis.
struct Rows {
  Tensor tensor;
  int64_t axes;
  int64_t last;

  at::IntArrayRef lead() const { return tensor.sizes().slice(0, axes); }
};

// The tensors of one call as operands. Ranks decide what a parameter is, never sizes: rank mu.dim() - 1 or 0
// is one value per row, a higher one has its last axis for the steps.
class Arguments {
 public:
  // `lead`: what the checks found the leading axes to be.
  Arguments(DimVector lead, const Tensor& mu, const Tensor& scale, const Tensor& rho);

  const Shape& shape() const { return shape_; }
  at::ScalarType arithmetic() const { return arithmetic_; }
  at::TensorOptions arithmetic_options() const { return mu_.tensor.options().dtype(arithmetic_); }

  void add_per_row(Operand& operand, const Tensor& tensor);   // (lead...)
  void add_per_step(Operand& operand, const Tensor& tensor);  // (lead..., steps)
  void add_samples(Operand& operand, const Tensor& tensor);   // (samples?, lead..., steps)
  // Fills in what every problem has; to be called last, when all operands are known.
  void finish(Problem& problem, std::optional<int64_t> samples, bool logits);

  // Space for the gradient of mu, s or rho: the gradient itself where nothing was broadcast, else whole, in
  // the arithmetic's type; `reduce` then sums what was broadcast.
  struct Gradient {
    Tensor space;
    Rows given;
    bool own;
    bool none = false;  // a row of one step has no rho: zero, whatever its place was given
    Tensor reduce() const;
    // Of terms that may be infinite, with either sign: held first, or they would cancel to NaN.
    Tensor reduce_held() const;
  };
  Gradient gradient_mu(Output& output) const { return gradient(output, mu_); }
  Gradient gradient_scale(Output& output) const { return gradient(output, scale_); }
  Gradient gradient_rho(Output& output) const {
    Gradient found = gradient(output, rho_);
    found.none = shape_.steps == 1;
    return found;
  }
  Gradient gradient_per_step(Output& output, const Tensor& given) const {
    return gradient(output, per_step(given));
  }

 private:
  struct Entry {
    Operand* operand;
    Tensor tensor;
    DimVector strides;  // of the leading axes; 0 where it is broadcast
  };

  static Rows per_step(const Tensor& tensor);
  Rows parameter(const Tensor& given) const;
  void add(Operand& operand, Rows rows);
  Gradient gradient(Output& output, const Rows& given) const;

  Rows mu_, scale_, rho_;
  at::ScalarType arithmetic_;
  Shape shape_;
  c10::SmallVector<Entry, 6> entries_;
  bool adds_samples_in_memory_ = false;  // CUDA: gradients of several samples, in the arithmetic's type
};

Output output_of(const Tensor& tensor);

}  // namespace rhovae::ops
