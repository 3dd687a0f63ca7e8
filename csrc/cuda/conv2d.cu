// Convolutions by an unstructured W: forward, input gradient and weight gradient. Nothing is unfolded in memory: a
// panel of multiply.h, a tile of sample.h, holds what (channel, tap) columns read of the pixels of a block, zero
// outside of the image.
//
// Input gradient: pixels of one residue modulo the stride meet the same taps, and the transposed index keeps a row for
// each residue of each channel, so each residue is a launch; `back` says which output a pixel meets. Groups are
// launches too, as many rows of the index each.
#include "cuda/conv2d_shape.h"
#include "cuda/launch.h"
#include "cuda/multiply.h"
#include "cuda/ops.h"
#include "cuda/sample.h"

namespace spfde::cuda {
namespace {

using multiply::End;
using multiply::Target;
using multiply::Weight;

template <typename T, bool kAlong>
__global__ void __launch_bounds__(multiply::kThreads, 2)
    conv2d_kernel(Weight<T> weight, Taps<T> source, Target<T> target) {
  multiply::block<T, kAlong>(weight, source, target);
}

template <typename T>
__global__ void __launch_bounds__(sample::kThreads, 1)
    weight_grad_kernel(Features<T> dy, Taps<T> x, int tokens, sample::Gradient<T> to) {
  sample::block<T, true>(dy, x, tokens, to);
}

template <typename T>
__global__ void __launch_bounds__(sample::kThreads) finish_kernel(sample::Gradient<T> to, int parts) {
  sample::finish(to, parts);
}

// Images of [channels, height, width], or with `last` [height, width, channels].
Grid images(int64_t channels, int64_t height, int64_t width, bool last) {
  const int64_t pixels = height * width;
  return {static_cast<int>(height),        static_cast<int>(width), channels * pixels,
          last ? width * channels : width, last ? channels : 1,     last ? 1 : pixels};
}

// The same places, but of the pixels of a grid of another size, `step` apart.
Grid spaced(Grid grid, int64_t height, int64_t width, int64_t step_h, int64_t step_w) {
  grid.height = static_cast<int>(height);
  grid.width = static_cast<int>(width);
  grid.of_row *= step_h;
  grid.of_pixel *= step_w;
  return grid;
}

Axis forth(int64_t size, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation) {
  return {static_cast<int>(size),
          static_cast<int>(kernel),
          static_cast<int>(stride),
          -static_cast<int>(pad),
          0,
          static_cast<int>(dilation),
          1};
}

// Pixel first + t * stride with (first + pad) % stride == residue meets output t + (first + pad - residue) / stride +
// (residue - i * dilation) / stride for each tap i whose i * dilation has that residue.
Axis back(int64_t size, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation, int64_t first, int64_t residue) {
  return {static_cast<int>(size),
          static_cast<int>(kernel),
          1,
          static_cast<int>((first + pad - residue) / stride),
          static_cast<int>(residue),
          -static_cast<int>(dilation),
          static_cast<int>(stride)};
}

// The first pixel of a residue, and how many there are.
struct Residue {
  int64_t number, first, count;

  Residue(int64_t number, int64_t stride, int64_t pad, int64_t size)
      : number(number),
        first(((number - pad) % stride + stride) % stride),
        count(first < size ? (size - first + stride - 1) / stride : 0) {}
};

template <typename T>
void run(const std::string& problem, const Exec& exec, const Weight<T>& weight, const Taps<T>& source, T* y,
         const Grid& grid, int64_t tokens, bool last, const Conv2dShape& shape, const End<T>& end) {
  check(shape, problem);
  if (weight.rows.count == 0 || tokens == 0) return;
  const Target<T> target = {y, grid, count(tokens, problem), false, end};
  launch(problem, exec,
         {dim3(ceil_div(tokens, multiply::kTokens), ceil_div(weight.rows.count, multiply::kRows)),
          dim3(multiply::kThreads), sizeof(multiply::Shared<T>)},
         last ? conv2d_kernel<T, false> : conv2d_kernel<T, true>, weight, source, target);
}

template <typename T>
void forward(const Conv2dArgs& args, const Exec& exec) {
  const Conv2dShape& s = args.shape;
  const int64_t in = s.in_channels / s.groups, out = s.out_channels / s.groups;
  const Grid x = images(s.in_channels, s.in_h, s.in_w, args.x_channels_last);
  const Grid y = images(s.out_channels, s.out_h, s.out_w, args.y_channels_last);
  for (int64_t group = 0; group < s.groups; ++group) {
    const Weight<T> weight = {{args.row_ptr, group * out, 1, out},
                              args.col,
                              nullptr,
                              as<const T>(args.values),
                              args.bias ? as<const T>(args.bias) + group * out : nullptr};
    const Taps<T> source = {as<const T>(args.x) + group * in * x.of_feature, spaced(x, s.out_h, s.out_w, 1, 1),
                            forth(s.in_h, s.kernel_h, s.stride_h, s.pad_top, s.dilation_h),
                            forth(s.in_w, s.kernel_w, s.stride_w, s.pad_left, s.dilation_w),
                            in * s.kernel_h * s.kernel_w};
    run(named("conv2d", s), exec, weight, source, as<T>(args.y) + group * out * y.of_feature, y,
        s.batch * s.out_h * s.out_w, args.y_channels_last, s,
        End<T>(args.epilogue, group * out, group * out * y.of_feature));
  }
}

template <typename T>
void input_grad(const Conv2dInputGradArgs& args, const Exec& exec) {
  const Conv2dShape& s = args.shape;
  const int64_t in = s.in_channels / s.groups, out = s.out_channels / s.groups, residues = s.stride_h * s.stride_w;
  const Grid dx = images(s.in_channels, s.in_h, s.in_w, args.dx_channels_last);
  const Grid dy = images(s.out_channels, s.out_h, s.out_w, args.dy_channels_last);
  for (int64_t group = 0; group < s.groups; ++group)
    for (int64_t residue = 0; residue < residues; ++residue) {
      const Residue h(residue / s.stride_w, s.stride_h, s.pad_top, s.in_h);
      const Residue w(residue % s.stride_w, s.stride_w, s.pad_left, s.in_w);
      const Weight<T> weight = {{args.row_ptr, group * in * residues + residue, residues, in},
                                args.col,
                                args.perm,
                                as<const T>(args.values),
                                nullptr};
      const Taps<T> source = {as<const T>(args.dy) + group * out * dy.of_feature, spaced(dy, h.count, w.count, 1, 1),
                              back(s.out_h, s.kernel_h, s.stride_h, s.pad_top, s.dilation_h, h.first, h.number),
                              back(s.out_w, s.kernel_w, s.stride_w, s.pad_left, s.dilation_w, w.first, w.number),
                              out * s.kernel_h * s.kernel_w};
      run(named("conv2d_input_grad", s), exec, weight, source,
          as<T>(args.dx) + group * in * dx.of_feature + h.first * dx.of_row + w.first * dx.of_pixel,
          spaced(dx, h.count, w.count, s.stride_h, s.stride_w), s.batch * h.count * w.count, args.dx_channels_last, s,
          End<T>({}, 0, 0));
    }
}

int parts(const Conv2dWeightGradArgs& args, int multiprocessors) {
  const Conv2dShape& s = args.shape;
  const int64_t columns = s.in_channels / s.groups * s.kernel_h * s.kernel_w;
  return sample::parts(s.out_channels, columns, s.batch * s.out_h * s.out_w, multiprocessors);
}

template <typename T>
void weight_grad(const Conv2dWeightGradArgs& args, int parts, float* sums, const Exec& exec) {
  const Conv2dShape& s = args.shape;
  const std::string problem = named("conv2d_weight_grad", s);
  check(s, problem);
  const int64_t in = s.in_channels / s.groups, out = s.out_channels / s.groups;
  const int64_t columns = in * s.kernel_h * s.kernel_w, tokens = s.batch * s.out_h * s.out_w;
  const Grid grid = images(s.out_channels, s.out_h, s.out_w, args.dy_channels_last);
  const Grid places = images(s.in_channels, s.in_h, s.in_w, args.x_channels_last);
  const sample::Gradient<T> all = {args.capacity,       s.out_channels,    args.row_ptr, args.col,
                                   as<T>(args.dvalues), as<T>(args.dbias), sums};
  for (int64_t group = 0; group < s.groups && out > 0; ++group) {
    const Features<T> dy = {as<const T>(args.dy) + group * out * grid.of_feature, grid, out};
    const Taps<T> x = {as<const T>(args.x) + group * in * places.of_feature, spaced(places, s.out_h, s.out_w, 1, 1),
                       forth(s.in_h, s.kernel_h, s.stride_h, s.pad_top, s.dilation_h),
                       forth(s.in_w, s.kernel_w, s.stride_w, s.pad_left, s.dilation_w), columns};
    sample::Gradient<T> to = all;
    to.row_ptr += group * out;
    if (to.dbias) to.dbias += group * out;
    to.first_row = group * out;
    launch(problem, exec,
           {dim3(std::max<int64_t>(1, ceil_div(columns, sample::kTile)), ceil_div(out, sample::kTile), parts),
            dim3(sample::kThreads), sizeof(sample::Shared<T>)},
           weight_grad_kernel<T>, dy, x, count(tokens, problem), to);
  }
  if (args.capacity + s.out_channels > 0)
    launch(problem, exec, {dim3(ceil_div(args.capacity + s.out_channels, sample::kThreads)), dim3(sample::kThreads)},
           finish_kernel<T>, all, parts);
}

}  // namespace

void conv2d(const Conv2dArgs& args, const Exec& exec) {
  for_dtype(args.dtype, [&](auto zero) { forward<decltype(zero)>(args, exec); });
}

void conv2d_input_grad(const Conv2dInputGradArgs& args, const Exec& exec) {
  for_dtype(args.dtype, [&](auto zero) { input_grad<decltype(zero)>(args, exec); });
}

int64_t conv2d_weight_grad_scratch(const Conv2dWeightGradArgs& args, int multiprocessors) {
  const int64_t count = parts(args, multiprocessors);
  return count == 1 ? 0 : count * (args.capacity + args.shape.out_channels) * static_cast<int64_t>(sizeof(float));
}

void conv2d_weight_grad(const Conv2dWeightGradArgs& args, int multiprocessors, void* scratch, const Exec& exec) {
  const int count = parts(args, multiprocessors);
  auto* sums = count == 1 ? nullptr : static_cast<float*>(scratch);
  for_dtype(args.dtype, [&](auto zero) { weight_grad<decltype(zero)>(args, count, sums, exec); });
}

}  // namespace spfde::cuda
