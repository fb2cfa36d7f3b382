#pragma once

// Room for what a kernel works on at a time: most of a megabyte, too much for the stack of a thread that a
// server or an OpenMP runtime has made. Each thread keeps its own on the heap.

#include <cstddef>
#include <memory>
#include <new>
#include <type_traits>

namespace rhovae::cpu {

class Scratch {
 public:
  // The calling thread's, made when it is first asked for.
  static Scratch& of_thread();

  // A T that lives until the Scope it was made in ends. Its members with an initialiser are set and no
  // others: arrays are too long to be cleared for nothing. Nothing is destroyed: T holds plain values.
  template <class T>
  T& make() {
    void* memory = take(sizeof(T));
    if constexpr (std::is_array_v<T>)
      return *static_cast<T*>(memory);
    else
      return *new (memory) T;
  }

  class Scope {
   public:
    explicit Scope(Scratch& scratch) : scratch_(scratch), used_(scratch.used_) {}
    ~Scope() { scratch_.used_ = used_; }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Scratch& scratch_;
    size_t used_;
  };

 private:
  static constexpr size_t kAlignment = 64, kBytes = size_t{3} << 19;
  struct Free {
    void operator()(char* memory) const { ::operator delete[](memory, std::align_val_t{kAlignment}); }
  };

  Scratch();
  void* take(size_t bytes);

  std::unique_ptr<char[], Free> memory_;
  size_t used_ = 0;
};

}  // namespace rhovae::cpu
