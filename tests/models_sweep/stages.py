"""What a user does with a model, each step against the masked dense copy. A stage returns what the table shows."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from models_sweep.definition import Definition
from models_sweep.dense_copy import (
    ROUNDING,
    STEPS,
    TIMES,
    DenseCopy,
    TooFar,
    dense_of,
    dense_state,
    distance,
    in_precision_of,
    results,
    sparse_layers,
    worst,
)
from torch import Tensor, nn

import spfde
from spfde.nn import SparseLayer
from spfde.nn.packed import unpack

SPARSITY = 0.8


def sparse_of(definition: Definition, **options: Any) -> tuple[nn.Module, nn.Module]:
    """The dense model and a sparse copy of it. options: those of spfde.sparsify."""
    dense = unpack(definition.model()).model  # attention's projections by the names that sparse ones have
    sparse = spfde.sparsify(copy.deepcopy(dense), SPARSITY, **options)
    assert sparse_layers(sparse)
    return dense, sparse


def sparsify(definition: Definition) -> str:
    """Outputs and all gradients, in training and evaluation; densify gives the dense copy."""
    dense, sparse = sparse_of(definition)
    batch = definition.inputs()
    reference = DenseCopy.of(dense, sparse)
    share = worst(results(sparse, batch), *reference.run(batch))
    with evaluation(sparse, *reference.models):
        share = max(share, worst(results(sparse, batch), *reference.run(batch)))
    layers = sparse_layers(sparse)
    taken = sum(layer.weight_taken for layer in layers.values())
    back = unpack(spfde.densify(copy.deepcopy(sparse))).model
    assert not sparse_layers(back)
    for name, value in dense_state(sparse).items():
        assert torch.equal(back.state_dict()[name], value), f"densify changed {name}"
    return f"{len(layers)} layers{f', {taken} read by their parent' if taken else ''}; {share:.2f}"


def fuse(definition: Definition) -> str:
    """The same after fuse, and after unfuse."""
    dense, sparse = sparse_of(definition)
    batch = definition.inputs()
    reference = DenseCopy.of(dense, sparse)
    forwards = {name: m.__dict__.get("forward") for name, m in sparse.named_modules()}
    classes = {name: type(m) for name, m in sparse.named_modules()}
    spfde.fuse(sparse)
    changed = sum("forward" in m.__dict__ or type(m) is not classes[name] for name, m in sparse.named_modules())
    share = worst(results(sparse, batch), *reference.run(batch))
    with evaluation(sparse, *reference.models):
        share = max(share, worst(results(sparse, batch), *reference.run(batch)))
    spfde.unfuse(sparse)
    assert {name: type(m) for name, m in sparse.named_modules()} == classes
    assert {name: m.__dict__.get("forward") for name, m in sparse.named_modules()} == forwards
    worst(results(sparse, batch), *reference.run(batch))
    return f"{changed} modules; {share:.2f}"


OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, weight_decay=1e-3),
    # eps above the gradients' rounding: by default a gradient that is 0 but for it makes a whole step.
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=1e-2, eps=1e-4),
}


def train(definition: Definition) -> str:
    """What three steps change in every parameter and buffer; the dense copies' gradients are masked before each."""
    dense, start = sparse_of(definition)
    batch = definition.inputs()
    share = 0.0
    for make in OPTIMIZERS.values():
        sparse, reference = copy.deepcopy(start), DenseCopy.of(dense, start)
        models = [sparse, *reference.models]
        before = {model: dense_state(model) for model in models}
        for model in models:
            optimizer = make(list(model.parameters()))
            for _ in range(3):
                results(model, in_precision_of(model, batch))
                if model is not sparse:
                    mask_gradients(model, reference.masks)
                optimizer.step()
        changes = [{k: t - before[m][k] for k, t in dense_state(m).items()} for m in models]
        share = max(share, worst(*changes, granted=STEPS))
    return f"{share:.2f}"


def move(definition: Definition) -> str:
    """An update by SET and one by RigL: what is kept, what is born and where, and the model that is left."""
    dense, start = sparse_of(definition)
    batch = definition.inputs()
    share, moved = 0.0, 0
    for method in (spfde.topology.SET, spfde.topology.RigL):
        sparse, reference = copy.deepcopy(start), DenseCopy.of(dense, start)
        optimizer = OPTIMIZERS["SGD"](list(sparse.parameters()))
        topology = method(sparse, optimizer, total_steps=100, every=1)
        layers = sparse_layers(sparse)
        results(sparse, batch)
        reference.run(batch)
        optimizer.step()
        before = {n: (layer.dense_weight(), layer.mask(), *momentum(optimizer, layer)) for n, layer in layers.items()}
        assert topology.step(), topology.reason
        for name, layer in layers.items():
            weight, old, *buffers = before[name]
            new = layer.mask()
            assert new.sum() == old.sum(), f"{name}: {old.sum()} weights became {new.sum()}"
            assert torch.equal(layer.dense_weight(), weight * (old & new)), f"{name}: kept weights changed"
            for is_now, was in zip(momentum(optimizer, layer), buffers, strict=True):
                assert torch.equal(is_now, was * (old & new)), f"{name}: its momentum did not follow"
            moved += int((new & ~old).sum())
            if method is spfde.topology.RigL and not layer.weight_taken:
                check_growth(name, [m.get_submodule(name).weight.grad for m in reference.models], old, new)
        reference = DenseCopy.at(dense, sparse)
        share = max(share, worst(results(sparse, batch), *reference.run(batch)))
    assert moved
    return f"{moved} weights; {share:.2f}"


def freeze(definition: Definition) -> str:
    """The front half of the blocks: constant through training steps, the rest as in the dense copy; then unfrozen."""
    dense, sparse = sparse_of(definition)
    batch = definition.inputs()
    blocks = spfde.freezing.blocks(sparse, batch if isinstance(batch, dict) or len(batch) > 1 else batch[0])
    front = blocks[: max(1, len(blocks) // 2)]
    everything = results(sparse, batch)
    reference = DenseCopy.at(dense, sparse)
    for block in front:
        block.freeze()
    sparse.train()
    fixed = {n for n, p in sparse.named_parameters() if not p.requires_grad}
    sizes = {n: p.numel() for n, p in sparse.named_parameters()}
    left = 1 - sum(sizes[n] for n in fixed) / sum(sizes.values())
    assert 0 < left < 1, f"{left:.0%} of the parameters stay trainable"
    inside = {n for block in front for name, m in block.modules for n in names_inside(name, m, block.active)}
    dense_names = {f"{layer}.values": f"{layer}.weight" for layer in sparse_layers(sparse)}
    for copied in reference.models:
        for name in inside:
            copied.get_submodule(name).training = False
        for name in fixed:
            copied.get_parameter(dense_names.get(name, name)).requires_grad_(False)
    share = worst(results(sparse, batch), *reference.run(batch))
    before = {k: v.clone() for k, v in sparse.state_dict().items() if k in fixed or k.rpartition(".")[0] in inside}
    optimizer = OPTIMIZERS["AdamW"](list(sparse.parameters()))
    for _ in range(2):
        results(sparse, batch)
        optimizer.step()
    now = sparse.state_dict()
    assert before, "nothing is frozen"
    for name, value in before.items():
        assert torch.equal(now[name], value), f"{name} is frozen and moved"
    for block in front:
        block.unfreeze()
    assert results(sparse, batch).keys() == everything.keys()
    assert all(m.training for m in sparse.modules())
    return f"{len(front)} of {len(blocks)} blocks, {left:.0%} trainable; {share:.2f}"


STAGES = {"sparsify": sparsify, "fuse": fuse, "train": train, "move": move, "freeze": freeze}


@contextmanager
def evaluation(*models: nn.Module) -> Iterator[None]:
    for model in models:
        model.eval()
    yield
    for model in models:
        model.train()


def mask_gradients(model: nn.Module, masks: dict[str, Tensor]) -> None:
    for name, mask in masks.items():
        grad = model.get_submodule(name).weight.grad
        if grad is not None:
            grad.mul_(mask)


def momentum(optimizer: torch.optim.Optimizer, layer: SparseLayer) -> list[Tensor]:
    """The optimizer's state tensors of a layer, as dense weights."""
    found = optimizer.state.get(layer.values, {}).values()
    return [dense_of(layer, t) for t in found if isinstance(t, Tensor) and t.shape == layer.values.shape]


def check_growth(name: str, gradients: list[Tensor | None], old: Tensor, new: Tensor) -> None:
    """RigL's rule by torch's gradients (float64 first): what is born has a larger one than what stays out."""
    exact, *singles = gradients
    out = ~old & ~new
    if exact is None or not (new & ~old).any() or not out.any():
        return
    rounding = TIMES * max(distance(single, exact) for single in singles) + ROUNDING * exact.abs().max().item()
    lowest, highest = exact.abs()[new & ~old].min().item(), exact.abs()[out].max().item()
    if lowest < highest - 2 * rounding:
        raise TooFar(f"{name}: grew at {lowest}, left {highest}")


def names_inside(name: str, module: nn.Module, active: Collection[nn.Module]) -> list[str]:
    """Names of what a block freezes in a module: all but what is tied to another place and stays active."""
    return [inner for inner, part in module.named_modules(prefix=name) if part not in active]
