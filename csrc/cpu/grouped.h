// Convolutions in many narrow groups (depthwise), where copies cost more than products.
#pragma once

#include "spfde/conv2d_geometry.h"

namespace spfde::SPFDE_ISA {

// Whether groups are so narrow that a group's planes stay in L1 from their copy in to their copy out.
bool takes_groups(const Conv2dGeometry& g, bool source_channels_last, bool target_channels_last);

void grouped_product(const ShiftedProductArgs& args);
void grouped_correlation(const ShiftedCorrelationArgs& args);

}  // namespace spfde::SPFDE_ISA
