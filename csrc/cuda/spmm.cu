// Y = X W^T + bias, or what an epilogue makes of X W^T, for an unstructured W; the input gradient is the same with the
// transposed index. See multiply.h.
#include "cuda/launch.h"
#include "cuda/multiply.h"
#include "cuda/ops.h"

namespace spfde::cuda {
namespace {

template <typename T, bool kAlong>
__global__ void __launch_bounds__(multiply::kThreads, 2)
    spmm_kernel(multiply::Weight<T> weight, Features<T> source, multiply::Target<T> target) {
  multiply::block<T, kAlong>(weight, source, target);
}

template <typename T, bool kAlong>
void run(const SpmmArgs& args, const Exec& exec) {
  if (args.rows == 0 || args.batch == 0) return;
  const std::string problem = "spmm " + sizes(args.rows, args.cols, args.batch);
  const auto address = reinterpret_cast<uintptr_t>(args.x) | reinterpret_cast<uintptr_t>(args.y) |
                       reinterpret_cast<uintptr_t>(args.epilogue.residual);
  const bool vectors = args.positions % 4 == 0 && address % (4 * sizeof(T)) == 0;
  const multiply::Weight<T> weight = {
      {args.row_ptr, 0, 1, args.rows}, args.col, args.perm, as<const T>(args.values), as<const T>(args.bias)};
  const Features<T> source = {as<const T>(args.x), tokens_of(args.positions, args.cols), args.cols};
  const multiply::Target<T> target = {as<T>(args.y), tokens_of(args.positions, args.rows), count(args.batch, problem),
                                      vectors, multiply::End<T>(args.epilogue, 0, 0)};
  launch(problem, exec,
         {dim3(ceil_div(args.batch, multiply::kTokens), ceil_div(args.rows, multiply::kRows)), dim3(multiply::kThreads),
          sizeof(multiply::Shared<T>)},
         spmm_kernel<T, kAlong>, weight, source, target);
}

}  // namespace

void spmm(const SpmmArgs& args, const Exec& exec) {
  for_dtype(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    args.positions == 1 ? run<T, false>(args, exec) : run<T, true>(args, exec);
  });
}

}  // namespace spfde::cuda
