// dW = dY^T X at the stored positions of an unstructured W, with the bias gradient in the same pass. See sample.h.
#include "cuda/launch.h"
#include "cuda/ops.h"
#include "cuda/sample.h"

namespace spfde::cuda {
namespace {

template <typename T, bool kAlong>
__global__ void __launch_bounds__(sample::kThreads, 1)
    sddmm_kernel(Features<T> dy, Features<T> x, int tokens, sample::Gradient<T> to) {
  sample::block<T, kAlong>(dy, x, tokens, to);
}

template <typename T>
__global__ void __launch_bounds__(sample::kThreads) finish_kernel(sample::Gradient<T> to, int parts) {
  sample::finish(to, parts);
}

int parts(const SddmmArgs& args, int multiprocessors) {
  return sample::parts(args.rows, args.cols, args.batch, multiprocessors);
}

template <typename T, bool kAlong>
void run(const SddmmArgs& args, int parts, float* sums, const Exec& exec) {
  const std::string problem = "sddmm " + sizes(args.rows, args.cols, args.batch);
  const Features<T> dy = {as<const T>(args.dy), tokens_of(args.positions, args.rows), args.rows};
  const Features<T> x = {as<const T>(args.x), tokens_of(args.positions, args.cols), args.cols};
  const sample::Gradient<T> to = {args.capacity,       args.rows,         args.row_ptr, args.col,
                                  as<T>(args.dvalues), as<T>(args.dbias), sums};
  if (args.rows > 0)
    launch(problem, exec,
           {dim3(std::max<int64_t>(1, ceil_div(args.cols, sample::kTile)), ceil_div(args.rows, sample::kTile), parts),
            dim3(sample::kThreads), sizeof(sample::Shared<T>)},
           sddmm_kernel<T, kAlong>, dy, x, count(args.batch, problem), to);
  if (args.capacity + args.rows > 0)
    launch(problem, exec, {dim3(ceil_div(args.capacity + args.rows, sample::kThreads)), dim3(sample::kThreads)},
           finish_kernel<T>, to, parts);
}

}  // namespace

int64_t sddmm_scratch(const SddmmArgs& args, int multiprocessors) {
  const int64_t count = parts(args, multiprocessors);
  return count == 1 ? 0 : count * (args.capacity + args.rows) * static_cast<int64_t>(sizeof(float));
}

void sddmm(const SddmmArgs& args, int multiprocessors, void* scratch, const Exec& exec) {
  const int count = parts(args, multiprocessors);
  auto* sums = count == 1 ? nullptr : static_cast<float*>(scratch);
  for_dtype(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    args.positions == 1 ? run<T, false>(args, count, sums, exec) : run<T, true>(args, count, sums, exec);
  });
}

}  // namespace spfde::cuda
