// One entry point per op, forwarding to the copy compiled for the instruction set in use.
#include <stdexcept>

#include "spfde/blocks.h"
#include "spfde/conv2d_geometry.h"
#include "spfde/norm.h"
#include "spfde/sddmm.h"
#include "spfde/spmm.h"

namespace spfde {

#define SPFDE_CASE(name) \
  case Isa::name:        \
    return name::SPFDE_OP(args);
#define SPFDE_DISPATCH(op, Args)                                             \
  void op(const Args& args) {                                                \
    switch (isa()) {                                                         \
      SPFDE_FOR_EACH_ISA(SPFDE_CASE)                                         \
      default:                                                               \
        throw std::logic_error("spfde: " #op " has no kernel for this CPU"); \
    }                                                                        \
  }

#define SPFDE_OP spmm
SPFDE_DISPATCH(spmm, SpmmArgs)
#undef SPFDE_OP

#define SPFDE_OP sddmm
SPFDE_DISPATCH(sddmm, SddmmArgs)
#undef SPFDE_OP

#define SPFDE_OP shifted_product
SPFDE_DISPATCH(shifted_product, ShiftedProductArgs)
#undef SPFDE_OP

#define SPFDE_OP shifted_correlation
SPFDE_DISPATCH(shifted_correlation, ShiftedCorrelationArgs)
#undef SPFDE_OP

#define SPFDE_OP spmm_blocks
SPFDE_DISPATCH(spmm_blocks, SpmmBlocksArgs)
#undef SPFDE_OP

#define SPFDE_OP spmm_blocks_input_grad
SPFDE_DISPATCH(spmm_blocks_input_grad, SpmmBlocksInputGradArgs)
#undef SPFDE_OP

#define SPFDE_OP sddmm_blocks
SPFDE_DISPATCH(sddmm_blocks, SddmmBlocksArgs)
#undef SPFDE_OP

#define SPFDE_OP shifted_blocks
SPFDE_DISPATCH(shifted_blocks, Shifted<Conv2dBlocksArgs>)
#undef SPFDE_OP

#define SPFDE_OP shifted_blocks_input_grad
SPFDE_DISPATCH(shifted_blocks_input_grad, Shifted<Conv2dBlocksInputGradArgs>)
#undef SPFDE_OP

#define SPFDE_OP shifted_blocks_weight_grad
SPFDE_DISPATCH(shifted_blocks_weight_grad, Shifted<Conv2dBlocksWeightGradArgs>)
#undef SPFDE_OP

#define SPFDE_OP norm_act
SPFDE_DISPATCH(norm_act, NormActArgs)
#undef SPFDE_OP

#define SPFDE_OP norm_act_grad
SPFDE_DISPATCH(norm_act_grad, NormActGradArgs)
#undef SPFDE_OP

}  // namespace spfde
