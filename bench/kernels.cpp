// One kernel on one thread without torch, for a profiler or a quick look:
//
//   kernels [forward|backward|noise] [float32|float64|bfloat16|float16] [row|step] ROWS STEPS [REPEATS]
//
// prints the least nanoseconds per element of REPEATS runs. RHOVAE_CPU_CAPABILITY chooses the instruction
// set.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string>
#include <vector>

#include "../csrc/cpu/kernels.h"

using namespace rhovae;

namespace {

Type type_named(const std::string& name) {
  if (name == "float32") return Type::Float32;
  if (name == "float64") return Type::Float64;
  if (name == "bfloat16") return Type::BFloat16;
  if (name == "float16") return Type::Float16;
  std::fprintf(stderr, "unknown type %s: float32, float64, bfloat16 or float16\n", name.c_str());
  std::exit(2);
}

// Memory laid out as torch lays out a tensor's: from the start of a line on.
template <class T>
struct Aligned {
  using value_type = T;
  static T* allocate(size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), kLine)); }
  static void deallocate(T* at, size_t) { ::operator delete(at, kLine); }
  bool operator==(const Aligned&) const { return true; }
  bool operator!=(const Aligned&) const { return false; }
  static constexpr std::align_val_t kLine{64};
};
using Bytes = std::vector<char, Aligned<char>>;

// Small positive numbers in every type.
Bytes values(Type type, int64_t count) {
  Bytes bytes(static_cast<size_t>(count * size_of(type)));
  for (int64_t i = 0; i < count; ++i) {
    const double value = 0.25 + 0.5 * static_cast<double>(i % 7) / 7;
    const float single = static_cast<float>(value);
    uint32_t bits;
    std::memcpy(&bits, &single, sizeof bits);
    const uint16_t brain = static_cast<uint16_t>(bits >> 16);
    const uint16_t half = static_cast<uint16_t>((bits - 0x38000000u) >> 13);
    const void* from = type == Type::Float64    ? static_cast<const void*>(&value)
                       : type == Type::Float32  ? static_cast<const void*>(&single)
                       : type == Type::BFloat16 ? static_cast<const void*>(&brain)
                                                : static_cast<const void*>(&half);
    std::memcpy(bytes.data() + i * size_of(type), from, static_cast<size_t>(size_of(type)));
  }
  return bytes;
}

template <class Run>
double least_seconds(int repeats, const Run& run) {
  double least = 1e30;
  for (int i = 0; i < repeats; ++i) {
    const auto start = std::chrono::steady_clock::now();
    run();
    least = std::min(least, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return least;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 6) {
    std::fprintf(stderr, "usage: %s forward|backward|noise TYPE row|step ROWS STEPS [REPEATS]\n", argv[0]);
    return 2;
  }
  const std::string what = argv[1];
  const Type type = type_named(argv[2]);
  const bool per_step = std::strcmp(argv[3], "step") == 0;
  const int64_t rows = std::atoll(argv[4]), steps = std::atoll(argv[5]);
  const int repeats = argc > 6 ? std::atoi(argv[6]) : 1;
  const Type arithmetic = type == Type::Float64 ? Type::Float64 : Type::Float32;
  const cpu::Kernels& kernels = cpu::kernels();

  const int64_t per_row = per_step ? steps : 1, ties = per_step ? steps - 1 : 1;
  const Bytes mu = values(type, rows * steps), scale = values(type, rows * per_row),
              rho = values(type, rows * ties), dz = values(type, rows * steps),
              dkl = values(arithmetic, rows);
  Bytes z = values(type, rows * steps), kl = values(arithmetic, rows), dscale = scale, drho = rho;

  const auto fill = [&](Problem& p) {
    p.rows = rows, p.steps = steps, p.samples = 1, p.logits = true;
    p.lead = {1, {rows}};
    p.mu = {mu.data(), type, 1, 0, {steps}};
    p.scale = {scale.data(), type, per_step, 0, {per_row}};
    p.rho = {rho.data(), type, per_step, 0, {ties}};
    p.noise = {11, 22, 33};
  };
  double seconds = 0;
  if (what == "forward") {
    Forward p{};
    fill(p);
    p.z = {z.data(), type}, p.kl = {kl.data(), arithmetic}, p.kl_kind = Kl::PerRow;
    seconds = least_seconds(repeats, [&] { kernels.forward(p, 0, rows); });
  } else if (what == "backward") {
    Backward p{};
    fill(p);
    p.dz = {dz.data(), type, 1, 0, {steps}}, p.dkl = {dkl.data(), arithmetic, 0, 0, {1}};
    p.dmu = {z.data(), type}, p.dscale = {dscale.data(), type}, p.drho = {drho.data(), type};
    seconds = least_seconds(repeats, [&] { kernels.backward(p, 0, rows); });
  } else {
    const Noise noise{11, 22, 33};
    seconds = least_seconds(repeats, [&] {
      for (int64_t row = 0; row < rows; ++row) {
        const uint64_t id = static_cast<uint64_t>(row);
        if (type == Type::Float64)
          kernels.normals_double(noise, id, steps, reinterpret_cast<double*>(z.data()) + row * steps);
        else
          kernels.normals_float(noise, id, steps, reinterpret_cast<float*>(z.data()) + row * steps);
      }
    });
  }
  std::printf("%s %s %s %s %lld x %lld: %.3f ns per element\n", kernels.name, argv[1], argv[2], argv[3],
              static_cast<long long>(rows), static_cast<long long>(steps),
              seconds * 1e9 / static_cast<double>(rows * steps));
}
