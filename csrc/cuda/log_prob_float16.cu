// A file for each operation and type, so that they compile side by side.
#include "log_prob_of.cuh"

namespace rhovae::cuda {
template int log_prob_of<Float16>(const LogProb&, const Plan&, void*, Stream);
template int log_prob_backward_of<Float16>(const LogProbBackward&, const Plan&, void*, Stream);
}  // namespace rhovae::cuda
