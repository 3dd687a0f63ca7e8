#include "spfde/conv2d.h"

#include "spfde/blocks.h"
#include "spfde/conv2d_geometry.h"
#include "spfde/sddmm.h"
#include "spfde/spmm.h"
#include "spfde/workspace.h"

namespace spfde {
namespace {

// A 1x1 convolution is a linear layer over pixels, if both activations lie in memory alike.
bool is_linear(const Conv2dShape& s, bool source_last, bool target_last) {
  return s.kernel_h == 1 && s.kernel_w == 1 && s.stride_h == 1 && s.stride_w == 1 && s.groups == 1 &&
         s.out_h == s.in_h && s.out_w == s.in_w && s.pad_top == 0 && s.pad_left == 0 && source_last == target_last;
}
// Multiply-adds with `stored` weights, and the copies.
int useful(const Conv2dShape& s, int64_t stored, int threads) {
  const double out = static_cast<double>(s.batch) * s.out_h * s.out_w;
  const double in = static_cast<double>(s.batch) * s.in_h * s.in_w;
  return worth_threads(threads, out * (stored + s.out_channels) + in * s.in_channels);
}
int useful(const Conv2dShape& s, const BlockIndex& index, int threads) {
  const int64_t block_rows = (s.out_channels + index.height - 1) / index.height;
  return useful(s, index.unit_ptr[block_rows] * index.height, threads);
}
int64_t pixels(const Conv2dShape& s) { return s.batch * s.in_h * s.in_w; }
int64_t positions(const Conv2dShape& s, bool channels_last) { return channels_last ? 1 : s.in_h * s.in_w; }

}  // namespace

void conv2d(const Conv2dArgs& a) {
  const Conv2dShape& s = a.shape;
  if (is_linear(s, a.x_channels_last, a.y_channels_last))
    return spmm({s.out_channels, s.in_channels, pixels(s), positions(s, a.x_channels_last), a.row_ptr, a.col, a.values,
                 nullptr, a.bias, a.x, a.y, a.threads});
  const auto geometry = forward_geometry(s);
  shifted_product({geometry.get(), a.row_ptr, a.col, a.values, a.bias, a.x, a.y, a.x_channels_last, a.y_channels_last,
                   useful(s, a.row_ptr[s.out_channels], a.threads)});
}

void conv2d_input_grad(const Conv2dInputGradArgs& a) {
  const Conv2dShape& s = a.shape;
  if (is_linear(s, a.dx_channels_last, a.dy_channels_last))
    return spmm({s.in_channels, s.out_channels, pixels(s), positions(s, a.dx_channels_last), a.row_ptr, a.col, a.values,
                 a.perm, nullptr, a.dy, a.dx, a.threads});
  const auto geometry = input_grad_geometry(s);
  const int64_t nnz = a.row_ptr[s.in_channels * s.stride_h * s.stride_w];
  const int threads = useful(s, nnz, a.threads);
  const float* values = permuted(a.values, a.perm, nnz, threads);
  shifted_product(
      {geometry.get(), a.row_ptr, a.col, values, nullptr, a.dy, a.dx, a.dy_channels_last, a.dx_channels_last, threads});
}

void conv2d_weight_grad(const Conv2dWeightGradArgs& a) {
  const Conv2dShape& s = a.shape;
  if (is_linear(s, a.x_channels_last, a.dy_channels_last))
    return sddmm({s.out_channels, s.in_channels, pixels(s), positions(s, a.x_channels_last), a.capacity, a.row_ptr,
                  a.col, a.dy, a.x, a.dvalues, a.dbias, a.threads});
  const auto geometry = forward_geometry(s);
  shifted_correlation({geometry.get(), a.row_ptr, a.col, a.x, a.dy, a.x_channels_last, a.dy_channels_last, a.capacity,
                       a.dvalues, a.dbias, useful(s, a.row_ptr[s.out_channels], a.threads)});
}

void conv2d_blocks(const Conv2dBlocksArgs& a) {
  const Conv2dShape& s = a.shape;
  if (is_linear(s, a.x_channels_last, a.y_channels_last))
    return spmm_blocks({s.out_channels, s.in_channels, pixels(s), positions(s, a.x_channels_last), a.index, a.values,
                        a.bias, a.x, a.y, a.threads});
  const auto geometry = forward_geometry(s);
  auto args = a;
  args.threads = useful(s, a.index, a.threads);
  shifted_blocks({args, geometry.get()});
}

void conv2d_blocks_input_grad(const Conv2dBlocksInputGradArgs& a) {
  const Conv2dShape& s = a.shape;
  if (is_linear(s, a.dx_channels_last, a.dy_channels_last))
    return spmm_blocks_input_grad({s.out_channels, s.in_channels, pixels(s), positions(s, a.dx_channels_last), a.index,
                                   a.values, a.dy, a.dx, a.threads});
  const auto geometry = forward_geometry(s);
  auto args = a;
  args.threads = useful(s, a.index, a.threads);
  shifted_blocks_input_grad({args, geometry.get()});
}

void conv2d_blocks_weight_grad(const Conv2dBlocksWeightGradArgs& a) {
  const Conv2dShape& s = a.shape;
  if (is_linear(s, a.x_channels_last, a.dy_channels_last))
    return sddmm_blocks({s.out_channels, s.in_channels, pixels(s), positions(s, a.x_channels_last), a.index, a.capacity,
                         a.dy, a.x, a.dvalues, a.dbias, a.threads});
  const auto geometry = forward_geometry(s);
  auto args = a;
  args.threads = useful(s, a.index, a.threads);
  shifted_blocks_weight_grad({args, geometry.get()});
}

}  // namespace spfde
