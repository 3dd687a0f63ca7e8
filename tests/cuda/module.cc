// The module cuda_emulated: the bindings of csrc/module/cuda*.cpp around kernels that run on the emulator.
#include "module.h"

PYBIND11_MODULE(cuda_emulated, m) {
  bind_cuda(m);
  bind_cuda_blocks(m);
  m.def("cuda_archs", [] { return "emulated"; });
}
