// The ops' schemas and the module that Python imports to have them registered.

#include <Python.h>
#include <torch/library.h>

#include <string>

#include "../cpu/kernels.h"

#if !defined(RHOVAE_TORCH_VERSION) || !defined(RHOVAE_CUDA_DECISION) || !defined(RHOVAE_CUDA_ARCHITECTURES)
#error "build with setup.py, which records what was decided"
#endif

namespace rhovae::ops {

#if defined(RHOVAE_WITH_CUDA)
#define RHOVAE_HAS_CUDA "true"
#else
#define RHOVAE_HAS_CUDA "false"
#endif

// One piece of the file, for Python to read where the module cannot be loaded.
__attribute__((used)) static const char kBuild[] =
    "{\"torch\": \"" RHOVAE_TORCH_VERSION "\", \"torch_commit\": \"" RHOVAE_TORCH_COMMIT
    "\", \"cxx11_abi\": " RHOVAE_CXX11_ABI ", \"cuda\": " RHOVAE_HAS_CUDA
    ", \"cuda_decision\": \"" RHOVAE_CUDA_DECISION "\", \"cuda_architectures\": \"" RHOVAE_CUDA_ARCHITECTURES
    "\", \"compiler\": \"" __VERSION__ "\"}";

static std::string build_info() {
  return kBuild;
}

static std::string cpu_capability() {
  return cpu::kernels().name;
}

// The ops of one implementation, by the prefix of their names; or the checks of their arguments. Those whose
// names begin with triton_ are implemented in Python; being defined here they share the autograd. plain_ are
// the same in torch's own operations, which every transform of torch passes through.
static void define_chain(torch::Library& m, const std::string& prefix) {
  const bool checks = prefix == "check_";
  const auto def = [&](const std::string& name, const std::string& arguments, const std::string& returns) {
    const std::string schema = checks ? name + "(str op, " + arguments + ") -> SymInt[]"
                                      : name + "(" + arguments + ") -> " + returns;
    m.def((prefix + schema).c_str(), {at::Tag::pt2_compliant_tag});
  };
  def("ar1",
      "Tensor mu, Tensor scale, Tensor rho, Tensor? key, Tensor? eps, SymInt? num_samples, SymInt "
      "row_offset, "
      "bool logits, bool sample, int kl",
      "(Tensor z, Tensor kl)");
  def("ar1_backward",
      "Tensor? dz, Tensor? dkl, Tensor mu, Tensor scale, Tensor rho, Tensor? key, Tensor? eps, "
      "SymInt? num_samples, SymInt row_offset, bool logits, int kl, bool needs_deps",
      "(Tensor dmu, Tensor dscale, Tensor drho, Tensor deps)");
  def("ar1_log_prob", "Tensor z, Tensor mu, Tensor scale, Tensor rho, bool logits", "Tensor");
  def("ar1_log_prob_backward", "Tensor dlog_prob, Tensor z, Tensor mu, Tensor scale, Tensor rho, bool logits",
      "(Tensor dz, Tensor dmu, Tensor dscale, Tensor drho)");
}

TORCH_LIBRARY(rhovae, m) {
  // The key is drawn by an op of its own; all others are functions of their arguments.
  // `on_device`: on like's device, as code that is traced for it needs; else wherever that costs no launch.
  // Two draws are never one: torch.jit believes it of an op of ours only where it must fear side effects.
  m.def(torch::schema("draw_key(Tensor like, Generator? generator=None, *, bool on_device=False) -> Tensor",
                      c10::AliasAnalysisKind::CONSERVATIVE),
        {at::Tag::nondeterministic_seeded});
  define_chain(m, "");
  define_chain(m, "triton_");
  define_chain(m, "plain_");
  define_chain(m, "check_");
  m.def("check_draw_key(Tensor like, Generator? generator) -> ()", {at::Tag::pt2_compliant_tag});
  m.def("build_info() -> str", build_info);
  m.def("cpu_capability() -> str", cpu_capability);
}

}  // namespace rhovae::ops

extern "C" __attribute__((visibility("default"))) PyObject* PyInit__C() {
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&definition);
}
