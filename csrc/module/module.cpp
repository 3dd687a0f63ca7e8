// The module spfde._C.
#include "module.h"

#include <dlfcn.h>
#include <omp.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "cpu/isa.h"

namespace {

std::string path_providing(void* symbol) {
  Dl_info info;
  return dladdr(symbol, &info) != 0 && info.dli_fname != nullptr ? info.dli_fname : "";
}

std::vector<std::string> names(const std::vector<cpu::Isa>& isas) {
  std::vector<std::string> out;
  for (const cpu::Isa& isa : isas) out.emplace_back(isa.name);
  return out;
}

void bind_environment(py::module_& m) {
  m.def("compiled_isas", [] { return names(cpu::compiled_isas()); });
  m.def("isas", [] { return names(cpu::runnable_isas()); });
  m.def("isa", [] { return cpu::isa().name; });
  m.def("lanes", [] { return cpu::kernels().lanes; });
  m.def("cuda_archs", [] { return std::vector<std::string>{SPFDE_CUDA_ARCHS}; });
  m.def("cuda_left_out", [] { return std::vector<std::string>{SPFDE_CUDA_LEFT_OUT}; });
  m.def("openmp_library", [] { return path_providing(reinterpret_cast<void*>(&omp_get_max_threads)); });
  m.def("build_info", [] {
    py::dict info;
    info["compiler"] = __VERSION__;
    info["openmp"] = _OPENMP;
    info["pybind11"] = PYBIND11_TOSTRING(PYBIND11_VERSION_MAJOR) "." PYBIND11_TOSTRING(PYBIND11_VERSION_MINOR);
#ifdef SPFDE_CUDA
    info["nvcc"] = SPFDE_NVCC;
#endif
    return info;
  });
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  bind_environment(m);
  bind_linear(m);
  bind_conv2d(m);
  bind_conv2d_norm_act(m);
  bind_conv_chain(m);
  bind_norm_act(m);
  bind_scatter(m);
  bind_cuda(m);
  bind_cuda_blocks(m);
}
