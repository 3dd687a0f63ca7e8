// dW = dY^T X at the stored blocks of W, with the bias gradient in the same pass, on tensor cores. See block_sample.h.
#include "cuda/block_launch.h"
#include "cuda/block_sample.h"
#include "cuda/ops.h"

namespace spfde::cuda {
namespace {

using namespace blocks;

template <typename T, bool kExact, int kOutputs>
__global__ void __launch_bounds__(SampleLayout<T, kOutputs>::kThreads, SampleLayout<T, kOutputs>::kResident)
    block_sddmm_kernel(const T* dy, const int32_t* entries, int together, Rows<T> rows, int tokens, bool vectors,
                       Gradient<T> to) {
  if constexpr (kHasMma) sample<T, kExact, kOutputs>(dy, entries, together, rows, tokens, vectors, to);
}

template <typename T>
__global__ void __launch_bounds__(kFinished) finish_kernel(Gradient<T> to, int parts) {
  finish(to, parts);
}

template <typename T, bool kExact, int kOutputs>
void run(const BlockSddmmArgs& args, int parts, float* sums, const Exec& exec) {
  using S = SampleLayout<T, kOutputs>;
  const std::string problem = "block_sddmm " + sizes(args.rows, args.cols, args.batch);
  const int tokens = count(args.batch, problem), rows = static_cast<int>(args.rows), cols = static_cast<int>(args.cols);
  const Rows<T> source = {as<const T>(args.x), nullptr, tokens, cols, rows, static_cast<int>(args.width)};
  const Gradient<T> to = gradient_of<T>(args, args.rows, sums);
  const bool vectors = args.cols % kPiece<T> == 0 && args.rows % kPiece<T> == 0 && aligned(16, args.dy, args.x);
  launch(problem, exec, {dim3(chunks(args), parts), dim3(S::kThreads), kStages * sizeof(typename S::Stage)},
         block_sddmm_kernel<T, kExact, kOutputs>, as<const T>(args.dy), args.tiles.entry,
         static_cast<int>(args.tiles.together), source, tokens, vectors, to);
  launch(problem, exec, {dim3(ceil_div(to.size + to.rows, kFinished)), dim3(kFinished)}, finish_kernel<T>, to, parts);
}

}  // namespace

int64_t block_sddmm_scratch(const BlockSddmmArgs& args, int multiprocessors) {
  return sums_size(args, args.rows, parts_of(args, args.batch, multiprocessors));
}

void block_sddmm(const BlockSddmmArgs& args, int multiprocessors, void* scratch, const Exec& exec) {
  if (args.rows == 0) return;
  const int count = parts_of(args, args.batch, multiprocessors);
  auto* sums = count == 1 ? nullptr : static_cast<float*>(scratch);
  for_precision(args.dtype, args.tf32, [&](auto zero, auto exact) {
    for_outputs(args.tiles.together * args.height,
                [&](auto outputs) { run<decltype(zero), exact.value, outputs.value>(args, count, sums, exec); });
  });
}

}  // namespace spfde::cuda
