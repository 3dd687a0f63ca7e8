// The ops on a CUDA device, by the contracts in include/spfde: queued on exec.stream of exec.device, never waited for.
//
// Arrays are on that device. They have the type of args.dtype, sums are float32; index and perm are those of the CPU.
// Every sum has a fixed order. What a kernel needs beyond its arguments is `scratch`, as many bytes as the function
// beside it says. Throws std::runtime_error where CUDA refuses a launch.
#pragma once

#include "spfde/block_conv2d.h"
#include "spfde/block_sddmm.h"
#include "spfde/block_spmm.h"
#include "spfde/conv2d.h"
#include "spfde/exec.h"
#include "spfde/norm_act.h"
#include "spfde/scatter.h"
#include "spfde/sddmm.h"
#include "spfde/spmm.h"

namespace spfde::cuda {

void spmm(const SpmmArgs& args, const Exec& exec);

// 0 where the rows and columns alone fill a device of that many multiprocessors, else parts of the batch are summed
// apart: at most 16 times 4 bytes for each slot of dvalues and each row.
int64_t sddmm_scratch(const SddmmArgs& args, int multiprocessors);
void sddmm(const SddmmArgs& args, int multiprocessors, void* scratch, const Exec& exec);

// Where tiles cut groups of rows, the parts' sums: 8 bytes for each cut group, token and row of a group.
int64_t block_spmm_scratch(const BlockSpmmArgs& args);
void block_spmm(const BlockSpmmArgs& args, void* scratch, const Exec& exec);

// 0 where the chunks alone fill a device of that many multiprocessors twice, else parts of the batch are summed apart:
// 4 bytes for each part, slot of dvalues and row, at most about 128 KB for each multiprocessor in all.
int64_t block_sddmm_scratch(const BlockSddmmArgs& args, int multiprocessors);
void block_sddmm(const BlockSddmmArgs& args, int multiprocessors, void* scratch, const Exec& exec);

// The forward product and, by transposed tiles, the input gradient need no scratch memory; the weight gradient as
// block_sddmm does.
void block_conv2d(const BlockConv2dArgs& args, const Exec& exec);
int64_t block_conv2d_weight_grad_scratch(const BlockConv2dWeightGradArgs& args, int multiprocessors);
void block_conv2d_weight_grad(const BlockConv2dWeightGradArgs& args, int multiprocessors, void* scratch,
                              const Exec& exec);

void conv2d(const Conv2dArgs& args, const Exec& exec);
void conv2d_input_grad(const Conv2dInputGradArgs& args, const Exec& exec);
int64_t conv2d_weight_grad_scratch(const Conv2dWeightGradArgs& args, int multiprocessors);
void conv2d_weight_grad(const Conv2dWeightGradArgs& args, int multiprocessors, void* scratch, const Exec& exec);

// At most 24 bytes for each channel and each of up to 1024 parts, whose number depends on the multiprocessors, and 8
// more for each channel. What belongs to a channel is float32.
int64_t norm_act_scratch(const NormShape& shape, int multiprocessors);
void norm_act(const NormActArgs& args, int multiprocessors, void* scratch, const Exec& exec);
void norm_act_grad(const NormActGradArgs& args, int multiprocessors, void* scratch, const Exec& exec);

void scatter(const ScatterArgs& args, const Exec& exec);
void gather(const GatherArgs& args, const Exec& exec);

}  // namespace spfde::cuda
