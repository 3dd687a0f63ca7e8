// Convolutions in many narrow groups (depthwise), where copies cost more than products.
#pragma once

#include "cpu/geometry.h"
#include "spfde/exec.h"

namespace spfde::cpu::SPFDE_ISA {

// Whether groups are so narrow that a group's planes stay in L1 from their copy in to their copy out.
bool takes_groups(const Conv2dGeometry& g, bool source_channels_last, bool target_channels_last);

void grouped_product(const ShiftedProductArgs& args, const Exec& exec);
void grouped_correlation(const ShiftedCorrelationArgs& args, const Exec& exec);

}  // namespace spfde::cpu::SPFDE_ISA
