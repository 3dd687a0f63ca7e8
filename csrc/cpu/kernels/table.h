// The kernels of one instruction set. Every file in this folder is compiled once for each set, inside its namespace.
#pragma once

#include "cpu/kernels.h"

namespace spfde::cpu::SPFDE_ISA {

void spmm(const SpmmArgs& args, const Exec& exec);
void spmm_blocks(const SpmmBlocksArgs& args, const Exec& exec);
void spmm_blocks_input_grad(const SpmmBlocksInputGradArgs& args, const Exec& exec);
void sddmm(const SddmmArgs& args, const Exec& exec);
void sddmm_blocks(const SddmmBlocksArgs& args, const Exec& exec);
void shifted_product(const ShiftedProductArgs& args, const Exec& exec);
void shifted_correlation(const ShiftedCorrelationArgs& args, const Exec& exec);
void shifted_gradients(const ShiftedGradientsArgs& args, const Exec& exec);
bool takes_moments(const ShiftedProductArgs& args);
bool gradients_take_norm(const Conv2dGeometry& input, const ShiftedCorrelationArgs& weight, int threads);
void conv2d_blocks(const Conv2dBlocksArgs& args, const Conv2dGeometry& geometry, const Exec& exec);
void conv2d_blocks_input_grad(const Conv2dBlocksInputGradArgs& args, const Conv2dGeometry& geometry, const Exec& exec);
void conv2d_blocks_weight_grad(const Conv2dBlocksWeightGradArgs& args, const Conv2dGeometry& geometry,
                               const Exec& exec);
void conv_chain(const ConvChainArgs& args, const Exec& exec);
void norm_act(const NormActArgs& args, const Exec& exec);
void norm_act_grad(const NormActGradArgs& args, const Exec& exec);

#ifdef SPFDE_OVERRIDES
// Replaces entries of the table; defined in the set's own folder, csrc/cpu/<isa>/.
void override_kernels(Kernels& kernels);
#endif

Kernels table();

}  // namespace spfde::cpu::SPFDE_ISA
