// Which kernel computes a convolution.
#include "cpu/float32.h"
#include "cpu/isa.h"
#include "cpu/ops.h"
#include "cpu/threads.h"
#include "cpu/workspace.h"

namespace spfde::cpu {
namespace {

// Threads worth waking for the multiply-adds with `stored` weights, and the copies.
Exec useful(const Conv2dShape& s, int64_t stored, Exec exec) {
  const double out = static_cast<double>(s.batch) * s.out_h * s.out_w;
  const double in = static_cast<double>(s.batch) * s.in_h * s.in_w;
  exec.threads = worth_threads(exec.threads, out * (stored + s.out_channels) + in * s.in_channels);
  return exec;
}
Exec useful(const Conv2dShape& s, const BlockIndex& index, const Exec& exec) {
  const int64_t block_rows = (s.out_channels + index.height - 1) / index.height;
  return useful(s, index.unit_ptr[block_rows] * index.height, exec);
}

int64_t stored(const Conv2dInputGradArgs& a) {
  return a.row_ptr[a.shape.in_channels * a.shape.stride_h * a.shape.stride_w];
}

ShiftedProductArgs product_of(const Conv2dArgs& a, const Conv2dPlan& plan) {
  return {.geometry = plan.forward(),
          .row_ptr = a.row_ptr,
          .col = a.col,
          .values = floats(a.values),
          .bias = floats(a.bias),
          .source = floats(a.x),
          .target = floats(a.y),
          .source_channels_last = a.x_channels_last,
          .target_channels_last = a.y_channels_last};
}

ShiftedProductArgs product_of(const Conv2dInputGradArgs& a, const Conv2dPlan& plan, const Exec& exec,
                              Scratch& scratch) {
  return {.geometry = plan.input_grad(),
          .row_ptr = a.row_ptr,
          .col = a.col,
          .values = permuted(floats(a.values), a.perm, stored(a), exec.threads, scratch),
          .bias = nullptr,
          .source = floats(a.dy),
          .target = floats(a.dx),
          .source_channels_last = a.dy_channels_last,
          .target_channels_last = a.dx_channels_last};
}

ShiftedCorrelationArgs correlation_of(const Conv2dWeightGradArgs& a, const Conv2dPlan& plan) {
  return {.geometry = plan.forward(),
          .row_ptr = a.row_ptr,
          .col = a.col,
          .source = floats(a.x),
          .target = floats(a.dy),
          .source_channels_last = a.x_channels_last,
          .target_channels_last = a.dy_channels_last,
          .capacity = a.capacity,
          .dvalues = floats(a.dvalues),
          .dbias = floats(a.dbias)};
}

}  // namespace

void conv2d(const Conv2dArgs& a, const Conv2dPlan& plan, const Exec& exec) {
  require_float32(a.dtype);
  kernels().shifted_product(product_of(a, plan), useful(a.shape, a.row_ptr[a.shape.out_channels], exec));
}

void conv2d_norm_act(const Conv2dArgs& conv, const NormActArgs& norm, const Conv2dPlan& plan, const Exec& exec) {
  require_float32(conv.dtype);
  require_float32(norm.dtype);
  ShiftedProductArgs product = product_of(conv, plan);
  NormActArgs behind = norm;
  Scratch scratch;
  if (norm.batch_statistics && kernels().takes_moments(product))
    behind.moments = product.moments = take<double>(scratch, 2 * norm.shape.channels);
  kernels().shifted_product(product, useful(conv.shape, conv.row_ptr[conv.shape.out_channels], exec));
  kernels().norm_act(behind, exec);
}

void conv2d_input_grad(const Conv2dInputGradArgs& a, const Conv2dPlan& plan, const Exec& exec) {
  require_float32(a.dtype);
  const Conv2dShape& s = a.shape;
  const Exec worth = useful(s, stored(a), exec);
  Scratch scratch;
  kernels().shifted_product(product_of(a, plan, worth, scratch), worth);
}

void conv2d_weight_grad(const Conv2dWeightGradArgs& a, const Conv2dPlan& plan, const Exec& exec) {
  require_float32(a.dtype);
  const Conv2dShape& s = a.shape;
  kernels().shifted_correlation(correlation_of(a, plan), useful(s, a.row_ptr[s.out_channels], exec));
}

void conv2d_gradients(const Conv2dInputGradArgs& input, const Conv2dWeightGradArgs& weight, const Conv2dPlan& plan,
                      const Exec& exec) {
  require_float32(input.dtype);
  require_float32(weight.dtype);
  const Conv2dShape& s = input.shape;
  const Exec worth = useful(s, stored(input), exec);
  Scratch scratch;
  kernels().shifted_gradients({product_of(input, plan, worth, scratch), correlation_of(weight, plan)}, worth);
}

bool conv2d_norm_act_grad(const NormActGradArgs& norm, const Conv2dInputGradArgs& input,
                          const Conv2dWeightGradArgs& weight, const Conv2dPlan& plan, const Exec& exec) {
  require_float32(norm.dtype);
  require_float32(input.dtype);
  require_float32(weight.dtype);
  const Exec worth = useful(input.shape, stored(input), exec);
  const ShiftedCorrelationArgs correlation = correlation_of(weight, plan);
  if (!kernels().gradients_take_norm(plan.input_grad(), correlation, worth.threads)) return false;
  Scratch scratch;
  NormActGradArgs sums = norm;
  sums.numbers = take<float>(scratch, 5 * norm.shape.channels);
  const ShiftedProductArgs product = product_of(input, plan, worth, scratch);
  kernels().norm_act_grad(sums, exec);
  kernels().shifted_gradients({product, correlation, &sums}, worth);
  return true;
}

void conv2d_blocks(const Conv2dBlocksArgs& a, const Conv2dPlan& plan, const Exec& exec) {
  require_float32(a.dtype);
  const Conv2dShape& s = a.shape;
  kernels().conv2d_blocks(a, plan.forward(), useful(s, a.index, exec));
}

void conv2d_blocks_input_grad(const Conv2dBlocksInputGradArgs& a, const Conv2dPlan& plan, const Exec& exec) {
  require_float32(a.dtype);
  const Conv2dShape& s = a.shape;
  kernels().conv2d_blocks_input_grad(a, plan.forward(), useful(s, a.index, exec));
}

void conv2d_blocks_weight_grad(const Conv2dBlocksWeightGradArgs& a, const Conv2dPlan& plan, const Exec& exec) {
  require_float32(a.dtype);
  const Conv2dShape& s = a.shape;
  kernels().conv2d_blocks_weight_grad(a, plan.forward(), useful(s, a.index, exec));
}

}  // namespace spfde::cpu
