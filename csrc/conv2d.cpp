#include "spfde/conv2d.h"

#include "spfde/conv2d_geometry.h"

namespace spfde {

void conv2d(const Conv2dArgs& a) {
  const auto geometry = forward_geometry(a.shape);
  shifted_product({geometry.get(), a.row_ptr, a.col, a.values, a.bias, a.x, a.y, a.x_channels_last,
                   a.y_channels_last, a.threads});
}

void conv2d_input_grad(const Conv2dInputGradArgs& a) {
  const auto geometry = input_grad_geometry(a.shape);
  shifted_product({geometry.get(), a.row_ptr, a.col, a.values, nullptr, a.dy, a.dx,
                   a.dy_channels_last, a.dx_channels_last, a.threads});
}

void conv2d_weight_grad(const Conv2dWeightGradArgs& a) {
  const auto geometry = forward_geometry(a.shape);
  shifted_correlation({geometry.get(), a.row_ptr, a.col, a.x, a.dy, a.x_channels_last,
                       a.dy_channels_last, a.capacity, a.dvalues, a.dbias, a.threads});
}

}  // namespace spfde
