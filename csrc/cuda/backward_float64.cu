// A file for each operation and type, so that they compile side by side.
#include "backward_of.cuh"

namespace rhovae::cuda {
template int backward_of<double>(const Backward&, const Plan&, DeviceKey, void*, Stream);
}  // namespace rhovae::cuda
