// The emulated kernels, bound to NumPy. Operands have the rank of (lead..., steps) with broadcast axes
// already there (of stride 0); a last axis of 1 is one value for the row. bfloat16 travels as uint16.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "../../csrc/cuda/launch.h"
#include "cuda_emulator.h"

namespace py = pybind11;
using namespace rhovae;
using Array = py::array;
using Optional = std::optional<py::array>;

static Type type_of(const Array& a) {
  if (a.dtype().is(py::dtype::of<double>())) return Type::Float64;
  if (a.dtype().is(py::dtype::of<float>())) return Type::Float32;
  if (a.dtype().is(py::dtype::of<uint16_t>())) return Type::BFloat16;
  if (a.dtype().kind() == 'f' && a.itemsize() == 2) return Type::Float16;
  throw std::invalid_argument("an array of a type that no kernel has");
}

// (samples?, lead..., steps); `steps`: what a last axis per step has.
static Operand operand(const Array& a, const Leading& lead, int64_t steps, bool with_samples = false) {
  Operand o{};
  o.data = a.data();
  o.type = type_of(a);
  const int first = with_samples ? 1 : 0;
  if (a.ndim() != first + lead.axes + 1) throw std::invalid_argument("an operand of the wrong rank");
  const py::ssize_t last = a.shape(a.ndim() - 1);
  if (last != steps && last != 1) throw std::invalid_argument("an operand with a wrong last axis");
  o.step = last == steps ? 1 : 0;
  if (with_samples) o.sample_stride = a.strides(0) / a.itemsize();
  for (int i = 0; i < lead.axes; ++i) {
    if (a.shape(first + i) != lead.size[i]) throw std::invalid_argument("operands of different leading axes");
    o.stride[i] = a.strides(first + i) / a.itemsize();
  }
  return o;
}

static Array like(const Array& a, std::vector<py::ssize_t> shape) {
  Array out(a.dtype(), shape);
  std::memset(out.mutable_data(), 0xFF, static_cast<size_t>(out.nbytes()));  // NaN in every type
  return out;
}
static Output output(Array& a) {
  return {a.mutable_data(), type_of(a)};
}
static py::dtype arithmetic(const Array& mu) {
  return mu.itemsize() == 8 ? py::dtype::of<double>() : py::dtype::of<float>();
}
static Array of_type(const py::dtype& type, std::vector<py::ssize_t> shape) {
  return like(Array(type, 0), shape);
}

static void describe(Problem& p, const Array& mu, const Array& scale, const Array& rho, int64_t samples,
                     bool logits) {
  p.lead.axes = static_cast<int32_t>(mu.ndim() - 1);
  p.rows = 1;
  for (int i = 0; i < p.lead.axes; ++i) p.rows *= p.lead.size[i] = mu.shape(i);
  p.steps = mu.shape(p.lead.axes);
  p.samples = samples;
  p.logits = logits;
  p.mu = operand(mu, p.lead, p.steps);
  p.scale = operand(scale, p.lead, p.steps);
  p.rho = operand(rho, p.lead, p.steps - 1);
}

class Memory {
 public:
  explicit Memory(int64_t size) : bytes_(static_cast<size_t>(size), char(0xFF)) {}
  void* at() { return bytes_.empty() ? nullptr : bytes_.data(); }

 private:
  std::vector<char> bytes_;
};

struct Draw {
  uint64_t key[2];
  bool in_memory;
  void describe(Problem& p, uint64_t row_offset) const {
    // A kernel that reads the key from memory must not look at these.
    p.noise = in_memory ? Noise{~key[0], ~key[1], row_offset} : Noise{key[0], key[1], row_offset};
  }
  const uint64_t* device() const { return in_memory ? key : nullptr; }
};
static Draw draw(const py::tuple& key, bool in_memory) {
  return {{key[0].cast<uint64_t>(), key[1].cast<uint64_t>()}, in_memory};
}

static void check(int error) {
  if (error) throw std::runtime_error("a launch failed: " + std::to_string(error));
}

static py::tuple forward(const Array& mu, const Array& scale, const Array& rho, const Optional& eps,
                         const py::tuple& key, bool key_in_memory, uint64_t row_offset, int64_t samples,
                         bool logits, bool sample, int kl) {
  Forward p{};
  const Draw source = draw(key, key_in_memory);
  describe(p, mu, scale, rho, samples, logits);
  source.describe(p, row_offset);
  if (eps) p.eps = operand(*eps, p.lead, p.steps, true);
  Array z = sample ? like(mu, {samples, p.rows, p.steps}) : like(mu, {0});
  Array divergence = kl == 1   ? of_type(arithmetic(mu), {p.rows})
                     : kl == 2 ? of_type(arithmetic(mu), {p.rows, p.steps})
                               : of_type(arithmetic(mu), {0});
  if (sample) p.z = output(z);
  p.kl_kind = static_cast<Kl>(kl);
  if (kl) p.kl = output(divergence);
  Memory work(cuda::forward_workspace(p));
  check(cuda::forward(p, source.device(), work.at(), nullptr));
  return py::make_tuple(z, divergence);
}

static py::tuple backward(const Optional& dz, const Optional& dkl, const Array& mu, const Array& scale,
                          const Array& rho, const Optional& eps, const py::tuple& key, bool key_in_memory,
                          uint64_t row_offset, int64_t samples, bool logits, bool needs_deps) {
  Backward p{};
  const Draw source = draw(key, key_in_memory);
  describe(p, mu, scale, rho, samples, logits);
  source.describe(p, row_offset);
  if (eps) p.eps = operand(*eps, p.lead, p.steps, true);
  if (dz) p.dz = operand(*dz, p.lead, p.steps, true);
  if (dkl) p.dkl = operand(*dkl, p.lead, p.steps);
  // Several samples add up in the arithmetic's type.
  const auto gradient = [&](const Array& input, py::ssize_t last) {
    return samples > 1 ? of_type(arithmetic(mu), {p.rows, last}) : like(input, {p.rows, last});
  };
  Array dmu = gradient(mu, p.steps), dscale = gradient(scale, scale.shape(scale.ndim() - 1));
  Array drho = gradient(rho, rho.shape(rho.ndim() - 1));
  Array deps = needs_deps ? like(*eps, {samples, p.rows, p.steps}) : like(mu, {0});
  p.dmu = output(dmu), p.dscale = output(dscale), p.drho = output(drho);
  if (needs_deps) p.deps = output(deps);
  Memory work(cuda::backward_workspace(p));
  check(cuda::backward(p, source.device(), work.at(), nullptr));
  return py::make_tuple(dmu, dscale, drho, deps);
}

static Array log_prob(const Array& z, const Array& mu, const Array& scale, const Array& rho, bool logits) {
  LogProb p{};
  describe(p, mu, scale, rho, 1, logits);
  p.z = operand(z, p.lead, p.steps);
  Array out = of_type(arithmetic(mu), {p.rows});
  p.log_prob = output(out);
  Memory work(cuda::log_prob_workspace(p));
  check(cuda::log_prob(p, work.at(), nullptr));
  return out;
}

static py::tuple log_prob_backward(const Array& dlog_prob, const Array& z, const Array& mu,
                                   const Array& scale, const Array& rho, bool logits) {
  LogProbBackward p{};
  describe(p, mu, scale, rho, 1, logits);
  p.z = operand(z, p.lead, p.steps);
  p.dlog_prob = operand(dlog_prob, p.lead, p.steps);
  Array dz = like(z, {p.rows, p.steps}), dmu = like(mu, {p.rows, p.steps});
  Array dscale = like(scale, {p.rows, scale.shape(scale.ndim() - 1)});
  Array drho = like(rho, {p.rows, rho.shape(rho.ndim() - 1)});
  p.dz = output(dz), p.dmu = output(dmu), p.dscale = output(dscale), p.drho = output(drho);
  Memory work(cuda::log_prob_workspace(p));
  check(cuda::log_prob_backward(p, work.at(), nullptr));
  return py::make_tuple(dz, dmu, dscale, drho);
}

static py::tuple write_key(bool in_memory, int64_t seed, int64_t offset, uint64_t extra) {
  uint64_t key[2] = {0, 0};
  const auto by_value = [](int64_t v) { return static_cast<uint64_t>(v); };
  check(cuda::write_key({in_memory, by_value(seed), by_value(offset), &seed, &offset, extra}, key, nullptr));
  return py::make_tuple(key[0], key[1]);
}

// eps (samples, rows, steps) of keys (rows, 2), the rows numbered within their keys.
static Array row_noise(const py::array_t<uint64_t>& keys, const py::array_t<int64_t>& numbers, int64_t steps,
                       int64_t samples, uint64_t row_offset, bool wide) {
  Problem p{};
  p.rows = numbers.shape(0), p.steps = steps, p.samples = samples;
  p.mu.type = wide ? Type::Float64 : Type::Float32;
  p.noise.row_offset = row_offset;
  p.keys = {keys.data(), numbers.data(), 1};
  Array eps = of_type(wide ? py::dtype::of<double>() : py::dtype::of<float>(), {samples, p.rows, steps});
  check(cuda::row_noise(p, eps.mutable_data(), nullptr));
  return eps;
}

// Kernels that break a rule of the machine, to see that the emulator says so.
static void broken(const std::string& rule) {
  using namespace rhovae::cuda;
  static char bytes[64];
  cuda_emulator::launch(dim3(1), dim3(64), [&] {
    if (rule == "barrier" && threadIdx.x < 40) block_barrier();
    if (rule == "shuffle" && threadIdx.x % 32 != 7) shuffle_xor(1.0f, 1);
    if (rule == "alignment") load_16_bytes(bytes + 4 + reinterpret_cast<uintptr_t>(bytes) % 16 % 4);
  });
}

PYBIND11_MODULE(rhovae_cuda_emulator, m) {
  m.def("set_seed", &cuda_emulator::set_seed, "The order in which a block's threads run; 0: in order.");
  m.def("forward", &forward, py::kw_only(), py::arg("mu"), py::arg("scale"), py::arg("rho"), py::arg("eps"),
        py::arg("key"), py::arg("key_in_memory"), py::arg("row_offset"), py::arg("samples"),
        py::arg("logits"), py::arg("sample"), py::arg("kl"));
  m.def("backward", &backward, py::kw_only(), py::arg("dz"), py::arg("dkl"), py::arg("mu"), py::arg("scale"),
        py::arg("rho"), py::arg("eps"), py::arg("key"), py::arg("key_in_memory"), py::arg("row_offset"),
        py::arg("samples"), py::arg("logits"), py::arg("needs_deps"));
  m.def("log_prob", &log_prob, py::kw_only(), py::arg("z"), py::arg("mu"), py::arg("scale"), py::arg("rho"),
        py::arg("logits"));
  m.def("log_prob_backward", &log_prob_backward, py::kw_only(), py::arg("dlog_prob"), py::arg("z"),
        py::arg("mu"), py::arg("scale"), py::arg("rho"), py::arg("logits"));
  m.def("write_key", &write_key, py::kw_only(), py::arg("in_memory"), py::arg("seed"), py::arg("offset"),
        py::arg("extra"));
  m.def("row_noise", &row_noise, py::kw_only(), py::arg("keys"), py::arg("numbers"), py::arg("steps"),
        py::arg("samples"), py::arg("row_offset"), py::arg("wide"));
  m.def("broken", &broken);
}
