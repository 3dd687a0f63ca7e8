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

void scatter(const ScatterArgs& args, const Exec& exec);
void gather(const GatherArgs& args, const Exec& exec);

// Throws std::invalid_argument unless the type is float32.
void require_float32(DType dtype);

}  // namespace spfde::cpu
