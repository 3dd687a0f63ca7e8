"""What a layer costs beside its arithmetic: a tiny layer's forward + backward, part by part, in microseconds.

    python benchmarks/overhead.py [--rounds 2000]

dense      the torch layer with the same weights
extra      what ours takes more
native     inside the compiled core
kernels    around it in spfde.kernels: allocation, addresses, the masked route's torch calls
autograd   leaves, engine and an autograd.Function with as many inputs that computes nothing
front      the rest: module, checks, precision and dispatch rules
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from statistics import median

import torch
from cases import Case, Layer, conv
from timing import interleaved
from torch import Tensor
from variants import Variant, dense_variant, sparse_layer, sparse_variant

from spfde._native import native
from spfde.kernels import clock

LAYERS = (Layer("linear", 8, (16, 16)), conv(2, (4, 4), 8, 3))
ROUTES = ("native", "masked")
SPARSITY = 0.9


@dataclass(frozen=True)
class Parts:
    """Microseconds per step."""

    total: float
    dense: float
    extra: float
    native: float
    kernels: float
    autograd: float
    front: float


def measure(layer: Layer, route: str, rounds: int) -> Parts:
    """The parts of `layer` through one of ROUTES."""
    case = Case(layer, sparsity=SPARSITY)
    sparse = sparse_variant(case, route, sparse_layer(case))
    parts, dense = sparse.parts(), dense_variant(layer, "dense").parts()
    steps = {"total": parts["step"], "dense": dense["step"], "autograd": _empty_step(sparse)}
    timings = interleaved(steps, rounds, warmup=rounds // 10 + 1)
    total, dense, autograd = (timings[name].median * 1e6 for name in steps)
    core, kernels = (1e6 * seconds for seconds in _inside(parts["step"], rounds))
    return Parts(total, dense, total - dense, core, kernels - core, autograd, total - kernels - autograd)


class _Nothing(torch.autograd.Function):
    """As many inputs as our ops have, the same shapes out, nothing computed."""

    @staticmethod
    def forward(ctx, x, values, bias, residual, call):
        ctx.save_for_backward(x, values)
        y, dx = call
        ctx.grads = dx, values, bias
        return y.view_as(y)

    @staticmethod
    def backward(ctx, dy):
        assert len(ctx.saved_tensors) == 2  # unpacking them is part of the cost
        return *ctx.grads, None, None


def _empty_step(case: Variant) -> Callable[[], object]:
    y, dx, *_ = (tensor.detach() for tensor in case.step())
    parameters = list(case.module.parameters())

    def step() -> tuple[Tensor, ...]:
        x = case.x.detach().requires_grad_()
        out = _Nothing.apply(x, *parameters, None, (y, dx))
        return torch.autograd.grad(out, [x, *parameters], case.dy)

    return step


def _inside(step: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Median seconds per step inside the core, and inside the kernels around it; clocks slow the rest of the step."""
    samples = []
    with _core_calls() as calls:
        for _ in range(rounds):
            calls.clear()
            with clock.measure() as kernels:
                step()
            samples.append((sum(calls), kernels.seconds))
    core, kernels = zip(*samples, strict=True)
    return median(core), median(kernels)


@contextmanager
def _core_calls() -> Iterator[list[float]]:
    """Seconds of each call into the core made inside the block."""
    core, seconds = native(), []
    originals = {name: call for name, call in vars(core).items() if callable(call) and not name.startswith("_")}

    def timed(call: Callable) -> Callable:
        def run(*args, **named):
            start = time.perf_counter()
            result = call(*args, **named)
            seconds.append(time.perf_counter() - start)
            return result

        return run

    for name, call in originals.items():
        setattr(core, name, timed(call))
    try:
        yield seconds
    finally:
        for name, call in originals.items():
            setattr(core, name, call)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the parts of tiny layers through the native and the masked route, in microseconds."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2000)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    names = list(Parts.__dataclass_fields__)
    print(f"{'microseconds':32}" + "".join(f"{name:>10}" for name in names))
    for layer in LAYERS:
        for route in ROUTES:
            parts = asdict(measure(layer, route, given.rounds))
            print(f"{f'{layer} {route}':32}" + "".join(f"{parts[name]:10.1f}" for name in names))


if __name__ == "__main__":
    main()
