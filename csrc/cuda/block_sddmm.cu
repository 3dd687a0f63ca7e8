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

int64_t chunks(const BlockSddmmArgs& args) { return args.tiles.entries * args.width / kInputs; }

int parts(const BlockSddmmArgs& args, int multiprocessors) {
  const int depth = args.dtype == DType::float32 ? kDepth<float> : kDepth<__half>;
  return blocks::parts(chunks(args), args.batch, depth, multiprocessors);
}

template <typename T, bool kExact, int kOutputs>
void run(const BlockSddmmArgs& args, int parts, float* sums, const Exec& exec) {
  using S = SampleLayout<T, kOutputs>;
  const std::string problem = "block_sddmm " + sizes(args.rows, args.cols, args.batch);
  const int tokens = count(args.batch, problem), rows = static_cast<int>(args.rows), cols = static_cast<int>(args.cols);
  const Rows<T> source = {as<const T>(args.x), nullptr, tokens, cols, rows, static_cast<int>(args.width)};
  const Gradient<T> to = {
      as<T>(args.dvalues), as<T>(args.dbias), sums, args.unit_count, args.capacity * args.height * args.width, rows,
      bits(args.height),   bits(args.width)};
  const bool vectors = args.cols % kPiece<T> == 0 && args.rows % kPiece<T> == 0 && aligned(16, args.dy, args.x);
  launch(problem, exec, {dim3(chunks(args), parts), dim3(S::kThreads), kStages * sizeof(typename S::Stage)},
         block_sddmm_kernel<T, kExact, kOutputs>, as<const T>(args.dy), args.tiles.entry,
         static_cast<int>(args.tiles.together), source, tokens, vectors, to);
  launch(problem, exec, {dim3(ceil_div(to.size + to.rows, kFinished)), dim3(kFinished)}, finish_kernel<T>, to, parts);
}

}  // namespace

int64_t block_sddmm_scratch(const BlockSddmmArgs& args, int multiprocessors) {
  const int64_t count = parts(args, multiprocessors), size = args.capacity * args.height * args.width + args.rows;
  return count == 1 ? 0 : count * size * static_cast<int64_t>(sizeof(float));
}

void block_sddmm(const BlockSddmmArgs& args, int multiprocessors, void* scratch, const Exec& exec) {
  if (args.rows == 0) return;
  const int count = parts(args, multiprocessors);
  auto* sums = count == 1 ? nullptr : static_cast<float*>(scratch);
  for_precision(args.dtype, args.tf32, [&](auto zero, auto exact) {
    for_outputs(args.tiles.together * args.height,
                [&](auto outputs) { run<decltype(zero), exact.value, outputs.value>(args, count, sums, exec); });
  });
}

}  // namespace spfde::cuda
