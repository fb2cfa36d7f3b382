#include "scratch.h"

#include <cstring>
#include <stdexcept>

namespace rhovae::cpu {

Scratch::Scratch() : memory_(new (std::align_val_t{kAlignment}) char[kBytes]) {}

Scratch& Scratch::of_thread() {
  thread_local Scratch scratch;
  return scratch;
}

void* Scratch::take(size_t bytes) {
  const size_t begin = used_, end = begin + (bytes + kAlignment - 1) / kAlignment * kAlignment;
  if (end > kBytes) throw std::logic_error("rhovae: a kernel works on more than its scratch memory holds");
  used_ = end;
#if defined(__SANITIZE_ADDRESS__) || defined(RHOVAE_POISON)
  std::memset(memory_.get() + begin, 0xFF, end - begin);  // NaN: what nobody wrote shows where it is read
#endif
  return memory_.get() + begin;
}

}  // namespace rhovae::cpu
