// Every instruction set of this processor against the recurrence written out in float64: values, KL,
// gradients by finite differences, and the same bits over any split of the rows and any number of threads on
// one.

#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#include "../../csrc/core/philox.h"
#include "../../csrc/cpu/kernels.h"
#include "check.h"

using namespace rhovae;

namespace {

struct Chain {
  int64_t rows, steps;
  bool per_step, logits;
  std::vector<double> mu, scale, rho, eps;

  Chain(int64_t r, int64_t d, bool step, bool with_logits)
      : rows(r), steps(d), per_step(step), logits(with_logits) {
    const size_t n = static_cast<size_t>(r * d);
    uint32_t counter = 0;
    const auto uniform = [&] {  // in (-1, 1)
      uint32_t w[4] = {counter++, 7, 0, 0};
      philox4x32_10<ScalarWord>(round_keys(99), w);
      return w[0] * 0x1p-31 - 1;
    };
    for (size_t i = 0; i < n; ++i) mu.push_back(uniform()), eps.push_back(1.5 * uniform());
    for (size_t i = 0; i < (step ? n : static_cast<size_t>(r)); ++i)
      scale.push_back(logits ? uniform() : 1.1 + uniform());
    for (size_t i = 0; i < static_cast<size_t>(step ? r * (d - 1) : r); ++i) rho.push_back(0.9 * uniform());
  }

  double s(int64_t row, int64_t k) const {
    const double v = scale[static_cast<size_t>(per_step ? row * steps + k : row)];
    return logits ? std::exp(v) : v;
  }
  double r(int64_t row, int64_t k) const {
    const double v = rho[static_cast<size_t>(per_step ? row * (steps - 1) + k - 1 : row)];
    return logits ? std::tanh(v) : v;
  }
  void truth(std::vector<double>& z, std::vector<double>& kl) const {
    z.assign(mu.size(), 0), kl.assign(static_cast<size_t>(rows), 0);
    for (int64_t row = 0; row < rows; ++row) {
      double x = 0;
      for (int64_t k = 0; k < steps; ++k) {
        const size_t i = static_cast<size_t>(row * steps + k);
        x = k == 0 ? eps[i] : r(row, k) * x + std::sqrt(1 - r(row, k) * r(row, k)) * eps[i];
        z[i] = mu[i] + s(row, k) * x;
        kl[static_cast<size_t>(row)] += 0.5 * (mu[i] * mu[i] + s(row, k) * s(row, k) - 1) -
                                        std::log(s(row, k)) -
                                        (k == 0 ? 0 : 0.5 * std::log1p(-r(row, k) * r(row, k)));
      }
    }
  }
  // sum of z's weighted by their own place, and of the KL: any scalar will do.
  double loss() const {
    std::vector<double> z, kl;
    truth(z, kl);
    double sum = 0;
    for (size_t i = 0; i < z.size(); ++i) sum += weight(i) * z[i];
    for (double v : kl) sum += v;
    return sum;
  }
  static double weight(size_t i) { return std::cos(static_cast<double>(i)); }
};

template <class T>
std::vector<T> cast(const std::vector<double>& from) {
  return std::vector<T>(from.begin(), from.end());
}

template <class T>
constexpr Type kType = sizeof(T) == 4 ? Type::Float32 : Type::Float64;

template <class T>
Operand operand(const std::vector<T>& values, int64_t stride, int step) {
  return {values.data(), kType<T>, step, 0, {stride}};
}

template <class T>
struct Inputs {
  std::vector<T> mu, scale, rho, eps;
  explicit Inputs(const Chain& c)
      : mu(cast<T>(c.mu)), scale(cast<T>(c.scale)), rho(cast<T>(c.rho)), eps(cast<T>(c.eps)) {}
  void fill(const Chain& c, Problem& p, bool draw) const {
    p.rows = c.rows, p.steps = c.steps, p.samples = 1, p.logits = c.logits;
    p.lead = {1, {c.rows}};
    p.mu = operand(mu, c.steps, 1);
    p.scale = operand(scale, c.per_step ? c.steps : 1, c.per_step);
    p.rho = operand(rho, c.per_step ? c.steps - 1 : 1, c.per_step);
    if (!draw) p.eps = operand(eps, c.steps, 1);
    p.noise = {11, 22, 33};
  }
};

template <class T>
void check_values_and_gradients(const cpu::Kernels& kernels, Chain c, double tolerance) {
  const Inputs<T> in(c);
  std::vector<T> z(c.mu.size()), kl(static_cast<size_t>(c.rows));
  Forward f{};
  in.fill(c, f, false);
  f.z = {z.data(), kType<T>}, f.kl = {kl.data(), kType<T>}, f.kl_kind = Kl::PerRow;
  kernels.forward(f, 0, c.rows);
  std::vector<double> z_true, kl_true;
  c.truth(z_true, kl_true);
  for (size_t i = 0; i < z.size(); ++i) CHECK(close(z[i], z_true[i], tolerance));
  for (size_t i = 0; i < kl.size(); ++i) CHECK(close(kl[i], kl_true[i], 10 * tolerance));

  std::vector<T> dz(z.size()), dkl(kl.size(), 1), dmu(z.size()), dscale(c.scale.size()), drho(c.rho.size()),
      deps(z.size());
  for (size_t i = 0; i < dz.size(); ++i) dz[i] = static_cast<T>(Chain::weight(i));
  for (bool with_deps : {false, true}) {
    Backward b{};
    in.fill(c, b, false);
    b.dz = operand(dz, c.steps, 1), b.dkl = operand(dkl, 1, 0);
    b.dmu = {dmu.data(), kType<T>}, b.dscale = {dscale.data(), kType<T>}, b.drho = {drho.data(), kType<T>};
    if (with_deps) b.deps = {deps.data(), kType<T>};
    kernels.backward(b, 0, c.rows);
    const auto by_differences = [&](std::vector<double>& values, const std::vector<T>& gradient) {
      const size_t stride = values.size() / 7 + 1;  // a few of them
      for (size_t i = 0; i < values.size(); i += stride) {
        const double kept = values[i], h = 1e-5;
        values[i] = kept + h;
        const double above = c.loss();
        values[i] = kept - h;
        const double below = c.loss();
        values[i] = kept;
        CHECK(close(gradient[i], (above - below) / (2 * h), 1e-5 + 100 * tolerance));
      }
    };
    by_differences(c.mu, dmu);
    by_differences(c.scale, dscale);
    by_differences(c.rho, drho);
    if (with_deps) by_differences(c.eps, deps);
  }
}

void check_splits(const cpu::Kernels& kernels, const Chain& c) {
  const Inputs<float> in(c);
  std::vector<float> whole(c.mu.size()), split(c.mu.size());
  Forward f{};
  in.fill(c, f, true);
  f.z = {whole.data(), Type::Float32};
  kernels.forward(f, 0, c.rows);
  f.z = {split.data(), Type::Float32};
  std::vector<std::thread> threads;
  for (int64_t begin = 0; begin < c.rows; begin += 5) {
    const int64_t end = begin + 5 < c.rows ? begin + 5 : c.rows;
    threads.emplace_back([&f, &kernels, begin, end] { kernels.forward(f, begin, end); });
  }
  for (std::thread& t : threads) t.join();
  CHECK(std::memcmp(whole.data(), split.data(), whole.size() * sizeof(float)) == 0);
}

// A row shared by any number of threads has the bits of one thread's work: values, KL and gradients.
void check_shared(const cpu::Kernels& kernels, const Chain& c, int64_t samples, bool with_deps) {
  const Inputs<float> in(c);
  const size_t n = c.mu.size() * static_cast<size_t>(samples), rows = static_cast<size_t>(c.rows);
  const int64_t tiles = (c.steps + cpu::kTile - 1) / cpu::kTile;
  std::vector<float> dz(n), dkl(rows, 0.5f), eps(n);
  for (size_t i = 0; i < n; ++i) {
    dz[i] = static_cast<float>(Chain::weight(i)), eps[i] = static_cast<float>(Chain::weight(3 * i));
  }
  struct Results {
    std::vector<float> z, kl, dmu, dscale, drho, deps;
  };
  const auto compute = [&](int threads) {
    Results r{std::vector<float>(n),
              std::vector<float>(rows),
              std::vector<float>(c.mu.size()),
              std::vector<float>(c.scale.size()),
              std::vector<float>(c.rho.size()),
              std::vector<float>(n)};
    const auto output = [](std::vector<float>& values) { return Output{values.data(), Type::Float32}; };
    Forward f{};
    in.fill(c, f, true);
    f.samples = samples, f.z = output(r.z), f.kl = output(r.kl), f.kl_kind = Kl::PerRow;
    Backward b{};
    in.fill(c, b, true);
    const int64_t sample_stride = c.rows * c.steps;
    if (with_deps) b.eps = {eps.data(), Type::Float32, 1, sample_stride, {c.steps}}, b.deps = output(r.deps);
    b.samples = samples, b.dz = {dz.data(), Type::Float32, 1, sample_stride, {c.steps}};
    b.dkl = operand(dkl, 1, 0);
    b.dmu = output(r.dmu), b.dscale = output(r.dscale), b.drho = output(r.drho);
    if (threads == 0) {
      kernels.forward(f, 0, c.rows);
      kernels.backward(b, 0, c.rows);
      return r;
    }
    for (int64_t row = 0; row < c.rows; ++row) {
      cpu::Relay forward_relay(samples, tiles, true), backward_relay(samples, tiles, true);
      std::vector<std::thread> team;
      for (int i = 0; i < threads; ++i) {
        team.emplace_back([&, row] {
          kernels.forward.shared(f, row, forward_relay);
          kernels.backward.shared(b, row, backward_relay);
        });
      }
      for (std::thread& thread : team) thread.join();
    }
    return r;
  };
  const Results alone = compute(0);
  for (const int threads : {1, 2, 3}) {
    const Results shared = compute(threads);
    for (const auto part :
         {&Results::z, &Results::kl, &Results::dmu, &Results::dscale, &Results::drho, &Results::deps}) {
      const std::vector<float>&one = alone.*part, &many = shared.*part;
      CHECK(std::memcmp(one.data(), many.data(), one.size() * sizeof(float)) == 0);
    }
  }
}

}  // namespace

int main() {
  for (const char* name : {"avx512", "avx2", "portable"}) {
    const cpu::Kernels* kernels = cpu::find_kernels(name);
    if (!kernels) {
      std::printf("skipped: this processor has no %s\n", name);
      continue;
    }
    for (const bool per_step : {false, true}) {
      for (const bool logits : {false, true}) {
        for (const int64_t steps : {2, 5, 16, 17, 63, 64, 127, 128, 131, 159, 160, 319, 320, 1029}) {
          const Chain c(steps > 1000 ? 2 : 19, steps, per_step, logits);
          check_values_and_gradients<float>(*kernels, c, 1e-5);
          check_values_and_gradients<double>(*kernels, c, 1e-12);
          check_splits(*kernels, c);
        }
      }
      const Chain few(2, 5 * cpu::kTile + 77, per_step, true),
          longer(1, 16 * cpu::kTile + 77, per_step, true);
      check_shared(*kernels, few, 1, false);
      check_shared(*kernels, few, 3, true);
      check_shared(*kernels, longer, 2, true);
    }
  }
  return result();
}
