// Statistics and gradients of a normalisation are sums over a channel; norm_passes.h takes both passes over the memory,
// norm_terms.h says what they compute.
#include "norm_terms.h"
#include "table.h"

namespace spfde::cpu::SPFDE_ISA {
namespace {

template <class Op, class Args>
void pass(const Args& a, int threads) {
  const int64_t values = a.shape.batch * a.shape.channels * a.shape.pixels;
  if (values < 32768) threads = 1;  // waking a thread costs more than it would save
  const Op op = {a, static_cast<double>(a.shape.batch * a.shape.pixels)};
  a.shape.channels_last ? over_channels_last(a.shape, threads, op) : over_planes(a.shape, threads, op);
}

template <template <Activation, bool> class Op, bool kResidual, class Args>
void passes(const Args& a, int threads) {
  switch (a.act) {
    case Activation::none:
      return pass<Op<Activation::none, kResidual>>(a, threads);
    case Activation::relu:
      return pass<Op<Activation::relu, kResidual>>(a, threads);
    case Activation::relu6:
      return pass<Op<Activation::relu6, kResidual>>(a, threads);
  }
}

}  // namespace

void norm_act(const NormActArgs& a, const Exec& exec) {
  a.residual ? passes<Forward, true>(a, exec.threads) : passes<Forward, false>(a, exec.threads);
}

void norm_act_grad(const NormActGradArgs& a, const Exec& exec) {
  a.y ? passes<Backward, true>(a, exec.threads) : passes<Backward, false>(a, exec.threads);
}

}  // namespace spfde::cpu::SPFDE_ISA
