// The ops on a CPU, by the contracts in include/spfde. All throw std::bad_alloc where memory runs out and
// std::invalid_argument for a type other than float32; arguments are otherwise as the contracts say.
#pragma once

#include "cpu/geometry.h"
#include "spfde/conv2d.h"
#include "spfde/conv_chain.h"
#include "spfde/exec.h"
#include "spfde/norm_act.h"
#include "spfde/scatter.h"
#include "spfde/sddmm.h"
#include "spfde/spmm.h"

namespace spfde::cpu {

void spmm(const SpmmArgs& args, const Exec& exec);
void spmm_blocks(const SpmmBlocksArgs& args, const Exec& exec);
void spmm_blocks_input_grad(const SpmmBlocksInputGradArgs& args, const Exec& exec);

void sddmm(const SddmmArgs& args, const Exec& exec);
void sddmm_blocks(const SddmmBlocksArgs& args, const Exec& exec);

// plan: made of args.shape; may be kept for later calls with that shape, and be read by several threads at once.
void conv2d(const Conv2dArgs& args, const Conv2dPlan& plan, const Exec& exec);
void conv2d_input_grad(const Conv2dInputGradArgs& args, const Conv2dPlan& plan, const Exec& exec);
void conv2d_weight_grad(const Conv2dWeightGradArgs& args, const Conv2dPlan& plan, const Exec& exec);
// Both gradients of one dy, to the bit those of the two ops above.
void conv2d_gradients(const Conv2dInputGradArgs& input, const Conv2dWeightGradArgs& weight, const Conv2dPlan& plan,
                      const Exec& exec);
void conv2d_blocks(const Conv2dBlocksArgs& args, const Conv2dPlan& plan, const Exec& exec);
void conv2d_blocks_input_grad(const Conv2dBlocksInputGradArgs& args, const Conv2dPlan& plan, const Exec& exec);
void conv2d_blocks_weight_grad(const Conv2dBlocksWeightGradArgs& args, const Conv2dPlan& plan, const Exec& exec);

void conv_chain(const ConvChainArgs& args, const Exec& exec);

void norm_act(const NormActArgs& args, const Exec& exec);
void norm_act_grad(const NormActGradArgs& args, const Exec& exec);

// norm_act of what a convolution returns (norm.x is conv.y), whose statistics are taken while it is near.
void conv2d_norm_act(const Conv2dArgs& conv, const NormActArgs& norm, const Conv2dPlan& plan, const Exec& exec);
// The gradients of both, to the bit those of norm_act_grad and conv2d_gradients, but the gradient between the two is
// neither written nor read: norm.dx and dy of input and weight are ignored. False, and nothing is written, where the
// convolution does not read dy once.
bool conv2d_norm_act_grad(const NormActGradArgs& norm, const Conv2dInputGradArgs& input,
                          const Conv2dWeightGradArgs& weight, const Conv2dPlan& plan, const Exec& exec);

void scatter(const ScatterArgs& args, const Exec& exec);
void gather(const GatherArgs& args, const Exec& exec);

// Throws std::invalid_argument unless the type is float32.
void require_float32(DType dtype);

}  // namespace spfde::cpu
