"""Is a converted network ever slower than the dense one? Every layer of real networks, "auto" against the best dense.

    python benchmarks/sweep.py [--threads 2] [--rounds 5] [--models resnet32,vit] [--batch 16] [--both]
                               [--json FILE]

A violator is more than 10% slower than the best dense form although there is work to save: batch x positions >= 64 and
half of the weights or more are zero.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from cases import Case, Layer
from record import Cell, Record
from timing import command, interleaved, machine, parts
from torch import nn
from variants import Absent, check, dense_variant, expected, names, sparse_layer, sparse_variant

import spfde

IMAGES = {"resnet32": 32, "resnet50": 64, "vgg19_bn_cifar": 32, "mobilenet_v2_cifar": 32, "vit_small_cifar": 32}
SPARSITIES = (0.2, 0.5, 0.7, 0.8, 0.9, 0.95)
PROMISED = 0.5  # least sparsity; less is timed so that the cost model knows where sparse kernels end
SLACK = 1.1
LANES = 64
BATCH = 16
NATIVE, DENSE = "auto: native", "auto: masked dense"


def layers_of(model: nn.Module, image: int, batch: int) -> list[Layer]:
    """The distinct layers that a forward pass over [batch, 3, image, image] runs, in order; nothing is computed."""
    found: dict[Layer, None] = {}

    def see(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        x = inputs[0]
        if isinstance(module, nn.Linear):
            rows = x.numel() // x.shape[-1]
            found[Layer("linear", rows, (module.in_features, module.out_features), bias=module.bias is not None)] = None
        else:
            found[_convolution(module, x)] = None

    layers = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    hooks = [layer.register_forward_hook(see) for layer in layers]
    model.to("meta")(torch.empty(batch, 3, image, image, device="meta"))
    for hook in hooks:
        hook.remove()
    return list(found)


def _convolution(conv: nn.Conv2d, x: torch.Tensor) -> Layer:
    square = {"kernel": conv.kernel_size, "stride": conv.stride, "padding": conv.padding, "image": x.shape[2:]}
    for name, (height, width) in {**square, "dilation": conv.dilation}.items():
        if height != width or (name == "dilation" and height != 1):
            raise ValueError(f"expected a square, undilated convolution, got {name} {height, width}, try another model")
    sides = {name: sides[0] for name, sides in square.items() if name != "image"}
    channels = conv.in_channels, conv.out_channels
    return Layer("conv", len(x), channels, x.shape[2], groups=conv.groups, bias=conv.bias is not None, **sides)


def measure(layer: Layer, sparsities: Sequence[float], rounds: int, both: bool = False) -> list[Cell]:
    """One cell per sparsity: the dense forms, "auto" by the kernel that it took, and `both`: the other kernel."""
    cells = []
    for sparsity in sparsities:
        case = Case(layer, sparsity=sparsity)
        sparse = sparse_layer(case)
        made = sparse_variant(case, "auto", sparse)
        check(made, "step", expected(case, sparse))
        name = NATIVE if made.module.kernel == "native" else DENSE
        eager = [each for each in names(case, "cpu", compiled=False) if each.startswith("dense")]
        steps = {each: dense_variant(layer, each).parts()["step"] for each in eager}
        steps[name] = made.parts()["step"]
        if both:
            other = "masked" if name == NATIVE else "native"
            steps[other] = sparse_variant(case, other, sparse).parts()["step"]
        seconds = {each: {"step": timing} for each, timing in interleaved(steps, rounds).items()}
        shape = (str(layer), layer.kind, layer.group, layer.lanes, case.pattern)
        cells.append(Cell(*shape, sparsity, 1 - sparse.sparsity, seconds, {}, name=str(case)))
    return cells


def auto(cell: Cell) -> str:
    """Which of the two names "auto" was timed under."""
    return NATIVE if NATIVE in cell.seconds else DENSE


def violates(cell: Cell) -> bool:
    """Whether "auto" is too slow where there is work to save."""
    return cell.lanes >= LANES and cell.sparsity >= PROMISED and cell.speedup(auto(cell)) < 1 / SLACK


def report(title: str, cells: Sequence[Cell]) -> str:
    """The share that ran sparse, and the violators, worst first."""
    lines = [f"{title}: {len({cell.layer for cell in cells})} distinct layers"]
    for sparsity in sorted({cell.sparsity for cell in cells}):
        some = [cell for cell in cells if cell.sparsity == sparsity]
        sparse, bad = sum(NATIVE in cell.seconds for cell in some), sum(map(violates, some))
        dense_time = sum(cell.median(cell.best_dense()) for cell in some)
        speedup = dense_time / sum(cell.median(auto(cell)) for cell in some)
        lines.append(
            f"  {sparsity:4.0%}: {sparse}/{len(some)} ran sparse, {bad} too slow, {speedup:.2f}x over all of them"
        )  # fmt: skip
    for cell in sorted(filter(violates, cells), key=lambda cell: cell.speedup(auto(cell))):
        lines.append(f"  {cell.speedup(auto(cell)):.2f}x {cell.layer} · {cell.sparsity:.0%} · {auto(cell)}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints violators and the share of layers that ran sparse, by network."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", type=parts, default=[], help=f"parts of names, of {', '.join(IMAGES)}")
    parser.add_argument("--layers", type=parts, default=[], help="parts of layer names")
    parser.add_argument("--batch", type=int, default=BATCH, help="images")
    parser.add_argument("--both", action="store_true", help="also time the kernel that was not taken, for fit_cost.py")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    about, timed = machine(), {}
    for model, image in IMAGES.items():
        if given.models and not any(part in model for part in given.models):
            continue
        try:
            layers = layers_of(spfde.models.create(model), image, given.batch)
        except ValueError as error:
            print(f"{model}: absent: {error}")
            continue
        layers = [layer for layer in layers if not given.layers or any(part in str(layer) for part in given.layers)]
        for layer in layers:
            if layer not in timed:
                try:
                    timed[layer] = measure(layer, SPARSITIES, given.rounds, given.both)
                except Absent as reason:
                    print(f"{model}: absent: {layer}: {reason}")
        cells = [cell for layer in layers for cell in timed.get(layer, ())]
        print(report(f"{model} at {image}px, batch {given.batch}", cells), flush=True)
    cells = [cell for some in timed.values() for cell in some]
    print(report("all", cells))
    if given.json:
        Record(about, command(), given.rounds, cells).write(given.json)


if __name__ == "__main__":
    main()
