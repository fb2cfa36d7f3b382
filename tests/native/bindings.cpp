// The core and the CPU kernels' noise, bound to NumPy for the tests. No torch.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "../../csrc/core/philox.h"
#include "../../csrc/cpu/kernels.h"

namespace py = pybind11;
using Words = py::array_t<uint32_t, py::array::c_style | py::array::forcecast>;

static Words philox(const Words& counter, const Words& key) {
  const py::ssize_t n = counter.shape(0);
  if (counter.ndim() != 2 || counter.shape(1) != 4 || key.ndim() != 2 || key.shape(0) != n ||
      key.shape(1) != 2) {
    throw std::invalid_argument("philox: expected counter (n, 4) and key (n, 2)");
  }
  Words out({n, py::ssize_t(4)});
  for (py::ssize_t i = 0; i < n; ++i) {
    uint32_t w[4] = {counter.at(i, 0), counter.at(i, 1), counter.at(i, 2), counter.at(i, 3)};
    const uint64_t seed = key.at(i, 0) | static_cast<uint64_t>(key.at(i, 1)) << 32;
    rhovae::philox4x32_10<rhovae::ScalarWord>(rhovae::round_keys(seed), w);
    for (int j = 0; j < 4; ++j) out.mutable_at(i, j) = w[j];
  }
  return out;
}

static py::array normals(uint64_t seed, uint64_t offset, uint64_t row, py::ssize_t d,
                         const std::string& dtype, const std::string& capability) {
  const rhovae::cpu::Kernels* kernels = rhovae::cpu::find_kernels(capability.c_str());
  if (!kernels) throw std::invalid_argument("normals: this processor has no " + capability);
  const rhovae::Noise noise{seed, offset, 0};
  if (dtype == "float32") {
    py::array_t<float> out(d);
    kernels->normals_float(noise, row, d, out.mutable_data());
    return out;
  }
  if (dtype != "float64")
    throw std::invalid_argument("normals: expected dtype float32 or float64, got " + dtype);
  py::array_t<double> out(d);
  kernels->normals_double(noise, row, d, out.mutable_data());
  return out;
}

static py::list capabilities() {
  py::list names;
  for (const char* name : {"avx512", "avx2", "portable"}) {
    if (rhovae::cpu::find_kernels(name)) names.append(name);
  }
  return names;
}

PYBIND11_MODULE(rhovae_core, m) {
  m.def("philox", &philox, py::arg("counter"), py::arg("key"));
  m.def("normals", &normals, py::arg("seed"), py::arg("offset"), py::arg("row"), py::arg("d"),
        py::arg("dtype"), py::arg("capability"));
  m.def("capabilities", &capabilities, "The instruction sets that this processor has, best first.");
}
