// What every instruction set has: one kernel for each entry. kernels/table.cpp fills the table from the shared sources,
// a set's own folder may replace entries.
#pragma once

#include "cpu/geometry.h"
#include "spfde/conv2d.h"
#include "spfde/conv_chain.h"
#include "spfde/exec.h"
#include "spfde/norm_act.h"
#include "spfde/sddmm.h"
#include "spfde/spmm.h"

namespace spfde::cpu {

struct Kernels {
  int lanes;  // floats of a vector: so many images go through a chain together
  void (*spmm)(const SpmmArgs&, const Exec&);
  void (*spmm_blocks)(const SpmmBlocksArgs&, const Exec&);
  void (*spmm_blocks_input_grad)(const SpmmBlocksInputGradArgs&, const Exec&);
  void (*sddmm)(const SddmmArgs&, const Exec&);
  void (*sddmm_blocks)(const SddmmBlocksArgs&, const Exec&);
  void (*shifted_product)(const ShiftedProductArgs&, const Exec&);
  void (*shifted_correlation)(const ShiftedCorrelationArgs&, const Exec&);
  void (*shifted_gradients)(const ShiftedGradientsArgs&, const Exec&);
  bool (*takes_moments)(const ShiftedProductArgs&);
  bool (*gradients_take_norm)(const Conv2dGeometry& input, const ShiftedCorrelationArgs& weight, int threads);
  // By shifted streams as well, whatever the window; the geometry is the forward's.
  void (*conv2d_blocks)(const Conv2dBlocksArgs&, const Conv2dGeometry&, const Exec&);
  void (*conv2d_blocks_input_grad)(const Conv2dBlocksInputGradArgs&, const Conv2dGeometry&, const Exec&);
  void (*conv2d_blocks_weight_grad)(const Conv2dBlocksWeightGradArgs&, const Conv2dGeometry&, const Exec&);
  void (*conv_chain)(const ConvChainArgs&, const Exec&);
  void (*norm_act)(const NormActArgs&, const Exec&);
  void (*norm_act_grad)(const NormActGradArgs&, const Exec&);
};

}  // namespace spfde::cpu
