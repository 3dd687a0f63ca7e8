// Convolutions by a W in blocks on tensor cores: forward, input gradient and weight gradient. Nothing is unfolded in
// memory: the products of linear layers (block_product.h, block_sample.h) read pixels (block_pixels.h).
#include "cuda/block_launch.h"
#include "cuda/block_pixels.h"
#include "cuda/conv2d_shape.h"
#include "cuda/ops.h"

namespace spfde::cuda {
namespace {

using namespace blocks;

template <typename T, bool kExact, int kOutputs, bool kTransposed>
__global__ void __launch_bounds__(Layout<T, kOutputs, kTransposed>::kThreads,
                                  Layout<T, kOutputs, kTransposed>::kResident)
    block_conv2d_kernel(Weight<T> weight, Pixels<T, kTransposed> pixels, Target target) {
  if constexpr (kHasMma) product<T, kExact, kOutputs, kTransposed>(weight, pixels, target);
}

template <typename T, bool kExact, int kOutputs>
__global__ void __launch_bounds__(SampleLayout<T, kOutputs>::kThreads, SampleLayout<T, kOutputs>::kResident)
    block_conv2d_weight_grad_kernel(const T* dy, const int32_t* entries, int together, Pixels<T, false> pixels,
                                    bool vectors, Gradient<T> to) {
  if constexpr (kHasMma) sample<T, kExact, kOutputs>(dy, entries, together, pixels, pixels.tokens, vectors, to);
}

template <typename T>
__global__ void __launch_bounds__(kFinished) finish_kernel(Gradient<T> to, int parts) {
  finish(to, parts);
}

template <bool kTransposed>
Side<kTransposed> side(int64_t in, int64_t out, int64_t stride, int64_t pad, int64_t dilation) {
  const auto source = static_cast<int>(kTransposed ? out : in), result = static_cast<int>(kTransposed ? in : out);
  return {source, result, static_cast<int>(stride), static_cast<int>(pad), static_cast<int>(dilation), Divisor(stride)};
}

// x and y: of the direction; outputs: channels that a block of threads computes; width: channels of a block that are
// read.
template <typename T, bool kTransposed>
Pixels<T, kTransposed> pixels_of(const std::string& problem, const Conv2dShape& s, const void* x, void* y,
                                 int64_t outputs, int64_t block_outputs, int64_t width) {
  check(s, problem);
  const auto number = [](int64_t value) { return static_cast<int>(value); };
  const int64_t line = kTransposed ? ceil_div(s.in_w, s.stride_w) : s.out_w;
  const int64_t area = line * (kTransposed ? ceil_div(s.in_h, s.stride_h) : s.out_h), taps = s.kernel_h * s.kernel_w;
  const int64_t inner = kTransposed ? s.out_channels : s.in_channels;
  const int64_t outer = kTransposed ? s.in_channels : s.out_channels, of_group = outer / s.groups;
  return {as<const T>(x),
          as<T>(y),
          side<kTransposed>(s.in_h, s.out_h, s.stride_h, s.pad_top, s.dilation_h),
          side<kTransposed>(s.in_w, s.out_w, s.stride_w, s.pad_left, s.dilation_w),
          count(s.batch * area, problem),
          number(area),
          number(line),
          Divisor(std::max<int64_t>(1, area)),
          Divisor(std::max<int64_t>(1, line)),
          number(inner),
          number(outer),
          number(kTransposed ? inner : inner / s.groups),
          number(of_group),
          number(s.groups),
          number(ceil_div(ceil_div(of_group, block_outputs) * block_outputs, outputs)),
          number(width),
          number(taps),
          number(s.kernel_w),
          Divisor(taps),
          Divisor(s.kernel_w)};
}

template <typename T, bool kExact, int kOutputs, bool kTransposed>
void run(const BlockConv2dArgs& args, const Exec& exec) {
  using S = Layout<T, kOutputs, kTransposed>;
  const std::string problem = named(kTransposed ? "block_conv2d_input_grad" : "block_conv2d", args.shape);
  const Weight<T> weight = weight_of<T>(args);
  const auto pixels = pixels_of<T, kTransposed>(problem, args.shape, args.x, args.y, kOutputs,
                                                int64_t{1} << weight.out_bits, int64_t{1} << weight.in_bits);
  if (pixels.tokens == 0 || pixels.outer == 0) return;
  const Target target = {
      nullptr, pixels.tokens, pixels.outer, pixels.group_outer % 2 == 0 && aligned(2 * sizeof(T), args.y),
      pixels.inner % kPiece<T> == 0 && pixels.group_inner % kPiece<T> == 0 && aligned(16, args.x, args.values)};
  launch(problem, exec,
         {dim3(grid(args.tiles.works, ceil_div(pixels.tokens, kTokens), problem)), dim3(S::kThreads),
          kStages * sizeof(typename S::Stage)},
         block_conv2d_kernel<T, kExact, kOutputs, kTransposed>, weight, pixels, target);
}

template <typename T, bool kExact, int kOutputs>
void run(const BlockConv2dWeightGradArgs& args, int parts, float* sums, const Exec& exec) {
  using S = SampleLayout<T, kOutputs>;
  const Conv2dShape& s = args.shape;
  const std::string problem = named("block_conv2d_weight_grad", s);
  const auto pixels = pixels_of<T, false>(problem, s, args.x, nullptr, kOutputs, args.height, args.width);
  const Gradient<T> to = gradient_of<T>(args, s.out_channels, sums);
  const bool vectors = pixels.inner % kPiece<T> == 0 && pixels.group_inner % kPiece<T> == 0 &&
                       pixels.outer % kPiece<T> == 0 && aligned(16, args.dy, args.x);
  launch(problem, exec, {dim3(chunks(args), parts), dim3(S::kThreads), kStages * sizeof(typename S::Stage)},
         block_conv2d_weight_grad_kernel<T, kExact, kOutputs>, as<const T>(args.dy), args.tiles.entry,
         static_cast<int>(args.tiles.together), pixels, vectors, to);
  launch(problem, exec, {dim3(ceil_div(to.size + to.rows, kFinished)), dim3(kFinished)}, finish_kernel<T>, to, parts);
}

int parts_of(const BlockConv2dWeightGradArgs& args, int multiprocessors) {
  return blocks::parts_of(args, args.shape.batch * args.shape.out_h * args.shape.out_w, multiprocessors);
}

}  // namespace

void block_conv2d(const BlockConv2dArgs& args, const Exec& exec) {
  for_product(args, [&](auto zero, auto exact, auto outputs, auto transposed) {
    run<decltype(zero), exact.value, outputs.value, transposed.value>(args, exec);
  });
}

int64_t block_conv2d_weight_grad_scratch(const BlockConv2dWeightGradArgs& args, int multiprocessors) {
  return sums_size(args, args.shape.out_channels, parts_of(args, multiprocessors));
}

void block_conv2d_weight_grad(const BlockConv2dWeightGradArgs& args, int multiprocessors, void* scratch,
                              const Exec& exec) {
  if (args.shape.out_channels == 0) return;
  const int count = parts_of(args, multiprocessors);
  auto* sums = count == 1 ? nullptr : static_cast<float*>(scratch);
  for_precision(args.dtype, args.tf32, [&](auto zero, auto exact) {
    for_outputs(args.tiles.together * args.height,
                [&](auto outputs) { run<decltype(zero), exact.value, outputs.value>(args, count, sums, exec); });
  });
}

}  // namespace spfde::cuda
