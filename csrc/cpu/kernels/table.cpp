#include "table.h"

#include "simd.h"

namespace spfde::cpu::SPFDE_ISA {

Kernels table() {
  Kernels kernels = {
      .lanes = kWidth,
      .spmm = spmm,
      .spmm_blocks = spmm_blocks,
      .spmm_blocks_input_grad = spmm_blocks_input_grad,
      .sddmm = sddmm,
      .sddmm_blocks = sddmm_blocks,
      .shifted_product = shifted_product,
      .shifted_correlation = shifted_correlation,
      .shifted_gradients = shifted_gradients,
      .takes_moments = takes_moments,
      .gradients_take_norm = gradients_take_norm,
      .conv2d_blocks = conv2d_blocks,
      .conv2d_blocks_input_grad = conv2d_blocks_input_grad,
      .conv2d_blocks_weight_grad = conv2d_blocks_weight_grad,
      .conv_chain = conv_chain,
      .norm_act = norm_act,
      .norm_act_grad = norm_act_grad,
  };
#ifdef SPFDE_OVERRIDES
  override_kernels(kernels);
#endif
  return kernels;
}

}  // namespace spfde::cpu::SPFDE_ISA
