// The ops whose kernel of the instruction set in use takes the arguments as they are.
#include "cpu/ops.h"

#include <stdexcept>

#include "cpu/isa.h"

namespace spfde::cpu {
namespace {

template <typename Args>
void run(void (*kernel)(const Args&, const Exec&), const Args& args, const Exec& exec) {
  require_float32(args.dtype);
  kernel(args, exec);
}

}  // namespace

void require_float32(DType dtype) {
  if (dtype != DType::float32) throw std::invalid_argument("spfde: expected float32 on a CPU, got another type");
}

void spmm(const SpmmArgs& a, const Exec& exec) { run(kernels().spmm, a, exec); }
void spmm_blocks(const SpmmBlocksArgs& a, const Exec& exec) { run(kernels().spmm_blocks, a, exec); }
void spmm_blocks_input_grad(const SpmmBlocksInputGradArgs& a, const Exec& exec) {
  run(kernels().spmm_blocks_input_grad, a, exec);
}
void sddmm(const SddmmArgs& a, const Exec& exec) { run(kernels().sddmm, a, exec); }
void sddmm_blocks(const SddmmBlocksArgs& a, const Exec& exec) { run(kernels().sddmm_blocks, a, exec); }
void conv_chain(const ConvChainArgs& a, const Exec& exec) { run(kernels().conv_chain, a, exec); }
void norm_act(const NormActArgs& a, const Exec& exec) { run(kernels().norm_act, a, exec); }
void norm_act_grad(const NormActGradArgs& a, const Exec& exec) { run(kernels().norm_act_grad, a, exec); }

}  // namespace spfde::cpu
