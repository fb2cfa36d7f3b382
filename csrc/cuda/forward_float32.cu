// A file for each operation and type, so that they compile side by side.
#include "forward_of.cuh"

namespace rhovae::cuda {
template int forward_of<float>(const Forward&, const Plan&, DeviceKey, void*, Stream);
}  // namespace rhovae::cuda
