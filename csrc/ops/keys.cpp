#include "keys.h"

namespace rhovae::ops {

Keys::Keys(const OptionalTensor& key, int64_t row_offset, const Tensor& mu, at::IntArrayRef lead)
    : noise_{0, 0, static_cast<uint64_t>(row_offset)} {
  if (!key) return;
  if (key->dim() == 1) {
    if (!key->is_cpu()) return;
    const auto* words = static_cast<const uint64_t*>(key->const_data_ptr());
    noise_.seed = words[0];
    noise_.offset = words[key->stride(0)];
    return;
  }
  // Rows are numbered over the axes along which they share a key, the last of them running fastest.
  const int64_t axes = static_cast<int64_t>(lead.size());
  const at::IntArrayRef own = key->sizes().slice(0, axes);
  at::DimVector counted(lead), everywhere(lead);
  for (int64_t axis = 0; axis < axes; ++axis) {
    if (own[axis] != 1) counted[axis] = 1;
  }
  for (int64_t axis = axes - 1; axis >= 0 && own[axis] == 1; --axis) run_ *= lead[axis];
  const int64_t rows = c10::multiply_integers(lead);
  const at::TensorOptions integers = at::TensorOptions(mu.device()).dtype(at::kLong);
  numbers_ = at::arange(c10::multiply_integers(counted), integers).view(counted).expand(lead).contiguous();
  everywhere.push_back(2);
  words_ = key->to(mu.device()).view(at::kLong).expand(everywhere).contiguous().view({rows, 2});
}

void Keys::put(Problem& problem) const {
  problem.noise = noise_;
  if (!words_.defined()) return;
  problem.keys = {static_cast<const uint64_t*>(words_.const_data_ptr()),
                  static_cast<const int64_t*>(numbers_.const_data_ptr()), run_};
}

}  // namespace rhovae::ops
