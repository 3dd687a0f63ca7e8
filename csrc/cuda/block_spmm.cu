// Y = X W^T + bias and DX = DY W for a W in blocks, on tensor cores. See block_product.h.
#include "cuda/block_launch.h"
#include "cuda/block_product.h"
#include "cuda/ops.h"

namespace spfde::cuda {
namespace {

using namespace blocks;

template <typename T, bool kExact, int kOutputs, bool kTransposed>
__global__ void __launch_bounds__(Layout<T, kOutputs, kTransposed>::kThreads,
                                  Layout<T, kOutputs, kTransposed>::kResident)
    block_spmm_kernel(Weight<T> weight, Rows<T> features, Target target) {
  if constexpr (kHasMma) product<T, kExact, kOutputs, kTransposed>(weight, features, target);
}

constexpr int kJoined = 256;  // outputs that a block of threads adds up

// Adds the parts of a group that was cut, in order. Blocks: tokens x outputs, cuts.
template <typename T>
__global__ void __launch_bounds__(kJoined)
    join_kernel(const float* scratch, const int32_t* split, const T* bias, T* y, int tokens, int outputs, int outer) {
  const int32_t* cut = split + blockIdx.y * 3;
  const int64_t at = int64_t{blockIdx.x} * kJoined + threadIdx.x, token = at / outputs;
  const int64_t output = int64_t{cut[0]} * outputs + at % outputs;
  if (cut[0] < 0 || token >= tokens || output >= outer) return;
  float total = 0.0f;
  for (int part = cut[1]; part < cut[2]; ++part) total += scratch[int64_t{part} * tokens * outputs + at];
  y[token * outer + output] = from_float<T>(total + (bias ? to_float(bias[output]) : 0.0f));
}

template <typename T, bool kExact, int kOutputs, bool kTransposed>
void run(const BlockSpmmArgs& args, float* scratch, const Exec& exec) {
  using S = Layout<T, kOutputs, kTransposed>;
  const std::string problem = "block_spmm " + sizes(args.outer, args.inner, args.batch);
  const int tokens = count(args.batch, problem), outer = static_cast<int>(args.outer);
  const Weight<T> weight = weight_of<T>(args);
  const Rows<T> features = {as<const T>(args.x),          as<T>(args.y), tokens,
                            static_cast<int>(args.inner), outer,         1 << weight.in_bits};
  const Target target = {scratch, tokens, outer, args.outer % 2 == 0 && aligned(2 * sizeof(T), args.y),
                         args.inner % kPiece<T> == 0 && aligned(16, args.x, args.values)};
  launch(problem, exec,
         {dim3(grid(args.tiles.works, ceil_div(args.batch, kTokens), problem)), dim3(S::kThreads),
          kStages * sizeof(typename S::Stage)},
         block_spmm_kernel<T, kExact, kOutputs, kTransposed>, weight, features, target);
  if (args.tiles.splits > 0)
    launch(problem, exec, {dim3(ceil_div(args.batch * kOutputs, kJoined), args.tiles.splits), dim3(kJoined)},
           join_kernel<T>, scratch, args.tiles.split, as<const T>(args.bias), as<T>(args.y), tokens, kOutputs, outer);
}

}  // namespace

int64_t block_spmm_scratch(const BlockSpmmArgs& args) {
  return 2 * args.tiles.splits * args.batch * outputs_of(args) * static_cast<int64_t>(sizeof(float));
}

void block_spmm(const BlockSpmmArgs& args, void* scratch, const Exec& exec) {
  if (args.outer == 0 || args.batch == 0) return;
  for_product(args, [&](auto zero, auto exact, auto outputs, auto transposed) {
    run<decltype(zero), exact.value, outputs.value, transposed.value>(args, static_cast<float*>(scratch), exec);
  });
}

}  // namespace spfde::cuda
