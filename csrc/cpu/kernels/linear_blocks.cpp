#include "cpu/float32.h"
#include "linear_correlation.h"
#include "table.h"
#include "visits_blocks.h"

namespace spfde::cpu::SPFDE_ISA {
namespace {

// Where row i of a unit is in the values [blocks, height, width].
struct UnitPlace {
  int64_t height, width;

  int64_t operator()(int64_t unit, int64_t i) const { return (unit / width * height + i) * width + unit % width; }
};

// The values in the order of the visits, [unit][height].
const float* ordered(const LinearProblem& a, const BlockIndex& index, const float* values, Scratch& scratch) {
  const UnitPlace place{index.height, index.width};
  float* out = take<float>(scratch, a.stored * a.height);
#pragma omp parallel for schedule(static) num_threads(a.threads)
  for (int64_t k = 0; k < a.stored; ++k)
    for (int64_t i = 0; i < a.height; ++i) out[k * a.height + i] = values[place(a.order.slot[k], i)];
  return out;
}

// Calls body(first row, integral constants N and V) for runs of N rows that cover a block, with strips of V vectors.
template <typename Body>
void for_rows_of(int64_t height, int64_t vectors, Body body) {
  for_rows(height, [&](int64_t row, auto n) {
    if (vectors == 1)
      body(row, n, std::integral_constant<int, 1>{});
    else
      body(row, n, std::integral_constant<int, kBlockVectors>{});
  });
}

}  // namespace

void spmm_blocks(const SpmmBlocksArgs& a, const Exec& exec) {
  Scratch scratch;
  const LinearProblem problem = linear_problem(a, a.index, nullptr, a.order, exec, scratch);
  const int64_t height = problem.height;
  const float *values = ordered(problem, a.index, floats(a.values), scratch), *bias = floats(a.bias);
  linear_product(problem, kBlockStrip, floats(a.x), floats(a.y),
                 [&](int64_t vectors, const Visits& units, const float* source, int64_t pitch, int64_t row, Sum sum) {
                   sum.bias = bias ? bias + row : nullptr;
                   for_rows_of(height, vectors, [&](int64_t first, auto n, auto v) {
                     block_axpy_visits<n(), v()>({units, height, pitch}, values + units.first * height, source, sum,
                                                 first);
                   });
                 });
}

void spmm_blocks_input_grad(const SpmmBlocksInputGradArgs& a, const Exec& exec) {
  Scratch scratch;
  const LinearProblem problem = linear_problem(a, a.index, nullptr, a.order, exec, scratch);
  const int64_t height = problem.height;
  const float* values = ordered(problem, a.index, floats(a.values), scratch);
  linear_transposed_product(problem, kBlockStrip, floats(a.dy), floats(a.dx),
                            [&](int64_t vectors, const Visits& units, int64_t pitch, float* dx, const float* dy) {
                              for_rows_of(height, vectors, [&](int64_t first, auto n, auto v) {
                                block_scatter_visits<n(), v()>({units, height, pitch}, values + units.first * height,
                                                               dx, dy, first);
                              });
                            });
}

void sddmm_blocks(const SddmmBlocksArgs& a, const Exec& exec) {
  Scratch scratch;
  const LinearProblem problem = linear_problem(a, a.index, nullptr, a.order, exec, scratch);
  const int64_t height = problem.height, stored = problem.stored * height;
  const int64_t capacity = a.capacity * height * a.index.width;
  float* out = floats(a.dvalues);
  clear(out + stored, capacity - stored);
  linear_correlation(
      problem, kStrip, floats(a.dy), floats(a.x), {capacity, out, floats(a.dbias)},
      [&](const Visits& units, const float* source, int64_t pitch, const float* target, float* dvalues, bool fresh) {
        for_rows(height, [&](int64_t row, auto n) {
          block_dot_visits<n()>({units, height, pitch}, source, target, pitch, fresh, dvalues + units.first * height,
                                row);
        });
      },
      UnitPlace{height, a.index.width});
}

}  // namespace spfde::cpu::SPFDE_ISA
