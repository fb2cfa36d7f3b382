#pragma once

// From tensors to the plain descriptions that kernels take, the same for every device: broadcasting, strides,
// collapsed axes, outputs and the reduction of gradients to their inputs' shapes. The friendly refusals of
// bad input are the Python functions'; the checks here keep memory safe when an op is called directly.

#include <ATen/ATen.h>

#include <optional>
#include <vector>

#include "../core/problem.h"

namespace rhovae::ops {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// The leading axes on which all operands agree, the steps of a row, and the number of rows.
struct Shape {
  std::vector<int64_t> lead;
  int64_t steps;
  int64_t rows;

  std::vector<int64_t> with(int64_t last) const;
  std::vector<int64_t> with_samples(std::optional<int64_t> samples) const;  // (samples?, lead..., steps)
};

// The tensors of one call as operands. Ranks decide what a parameter is, never sizes: rank mu.dim() - 1 or 0
// is one value per row, a higher one has its last axis for the steps.
class Arguments {
 public:
  // z takes part in the broadcast where it is given (the log-density).
  Arguments(const char* op, const Tensor& mu, const Tensor& scale, const Tensor& rho,
            const OptionalTensor& z = {});

  const Shape& shape() const { return shape_; }
  at::ScalarType arithmetic() const { return arithmetic_; }
  at::TensorOptions arithmetic_options() const { return mu_.options().dtype(arithmetic_); }

  void add_rows(Operand& operand, const Tensor& tensor, const char* name);  // (lead...) or (lead..., steps)
  void add_samples(Operand& operand, const Tensor& tensor, const char* name);  // (samples?, lead..., steps)
  // Fills in what every problem has; to be called last, when all operands are known.
  void finish(Problem& problem, std::optional<int64_t> samples, bool logits);

  // Space for the gradient of mu, s or rho: of the input's own shape and type where nothing was broadcast,
  // else whole, in the arithmetic's type; `reduce` then sums what was broadcast.
  struct Gradient {
    Tensor space;
    Tensor given;      // the input
    Tensor with_last;  // the same with a last axis
    Tensor reduce() const;
  };
  Gradient gradient_mu(Output& output) const { return gradient(output, mu_, mu_); }
  Gradient gradient_scale(Output& output) const { return gradient(output, scale_given_, scale_); }
  Gradient gradient_rho(Output& output) const { return gradient(output, rho_given_, rho_); }
  Gradient gradient(Output& output, const Tensor& given, const Tensor& with_last) const;

 private:
  void add(Operand& operand, const Tensor& expanded, int64_t sample_stride);
  Tensor parameter(const Tensor& given, int64_t per_step, const char* name) const;

  struct Entry {
    Operand* operand;
    Tensor tensor;  // (lead..., last)
  };

  const char* op_;
  Tensor mu_, scale_given_, rho_given_;
  Tensor scale_, rho_;  // with a last axis
  at::ScalarType arithmetic_;
  Shape shape_;
  std::vector<Entry> entries_;
  bool adds_samples_in_memory_ = false;  // CUDA: gradients of several samples, in the arithmetic's type
};

Output output_of(const Tensor& tensor);
Type type_of(const char* op, const Tensor& tensor, const char* name);

}  // namespace rhovae::ops
