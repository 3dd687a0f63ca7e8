"""Permutations of a layer's inputs or outputs, which give blocks and n:m other masks: drawn, or learned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from spfde._ranks import Ranks
from spfde.levers import Answer, Decision, Run, Step
from spfde.nn import SparseConv2d, SparseLayer, SparseLinear
from spfde.nn.permutation import Permutation, side_of
from spfde.nn.refusals import Rule
from spfde.nn.select import excluded
from spfde.topology.doubly_stochastic import descend, mixed, nearest_permutation, sharpening, softness
from spfde.topology.layers import sparse_layers
from spfde.topology.sharded import is_sharded
from spfde.topology.wrappers import bare


def permute(model: nn.Module, *, seed: int = 0, exclude: Rule | Iterable[Rule] = ()) -> nn.Module:
    """Draws a permutation for every sparse layer whose pattern it gives other masks, in place; returns the model.

    W = S P for "block:RxC" with C > 1 and n:m (P permutes the inputs), W = P^T S for "block:Rx1" (the outputs), with S
    what is stored. The weights are other ones afterwards: do it where the training begins.

    Args:
        seed: of the permutations.
        exclude: module names, fnmatch patterns or module classes that stay as they are, with everything inside them.

    Raises:
        ValueError: no layer has such a pattern, or one has a permutation, groups, or no form with one (named).
    """
    generator = torch.Generator().manual_seed(seed)
    for layer in _permutable(model, exclude).values():
        layer.permute(_drawn(layer, generator))
    return model


class Permutations:
    """Learns the permutations of `permute` beside the weights, then makes each an index: a lever (`spfde.levers`).

    While a permutation is learned a doubly stochastic M stands in its place, in a product of n x n a sample. After each
    step M descends the loss, and a penalty that grows from 0, along exp and Sinkhorn's scaling: no optimizer and no
    learning rate has to do with it. A layer whose M is a permutation but for `tolerance` gets the nearest one, all
    others at `end` of the training. In a loop of your own call `step()` after each optimizer step, after that of a
    topology. Source: PA-DST (2510.14812); the penalty is that of AutoShuffleNet (1901.08624), the descent our own.

    Args:
        model: has spfde sparse layers. Made soft here; a model that goes on from a state_dict is made so first.
        total_steps: optimizer steps of the whole training.
        end: share of the training after which every permutation is an index, in (0, 1].
        tolerance: softness (0 of a permutation, nearly 1 of an even M) at which a layer's is made an index.
        pressure: weight of the penalty at `end`, in units of the root mean square of dL/dM; it grows from 0 as a cube.
        rate: step size of log M for a gradient of that size; None: 100 / (steps until `end`).
        start: share of a drawn permutation in the first M; the rest is even.
        seed: of the drawn ones.
        exclude: as in `permute`.
        process_group: the ranks that train together; None: the default group.

    Raises:
        ValueError: an argument is out of range, or as `permute`.
    """

    needs = (Step,)

    def __init__(
        self,
        model: nn.Module,
        *,
        total_steps: int,
        end: float = 0.5,
        tolerance: float = 0.05,
        pressure: float = 1.0,
        rate: float | None = None,
        start: float = 0.2,
        seed: int = 0,
        exclude: Rule | Iterable[Rule] = (),
        process_group: Any = None,
    ) -> None:
        if total_steps < 1:
            raise ValueError(f"expected total_steps of 1 or more, got {total_steps}")
        _check(end=end, tolerance=tolerance, start=start)
        if pressure < 0 or (rate is not None and rate < 0):
            raise ValueError(f"expected pressure and rate of 0 or more, got {pressure} and {rate}")
        self.total_steps, self.end, self.tolerance, self.pressure = total_steps, end, tolerance, pressure
        self.rate = 100 / max(1, round(end * total_steps)) if rate is None else rate
        self.steps_done, self.reason = 0, "no step yet"
        self._ranks = Ranks(process_group)
        generator = torch.Generator().manual_seed(seed)
        self.layers = {bare(name): layer for name, layer in _permutable(model, exclude).items()}
        for layer in self.layers.values():
            layer.permute(_drawn(layer, generator, start))
        self._squares = {name: layer.values.new_zeros(()) for name, layer in self.layers.items()}

    def on(self, event: Step, run: Run) -> Answer:
        """Follows a step of a training; a decision for each permutation that became an index."""
        if not event.taken:
            self.skip()
            return None
        return [Decision("permutation", f"{name}: an index", self.reason) for name in self.step()]

    def step(self) -> list[str]:
        """Follows one optimizer step; the names of the layers whose permutation became an index.

        Raises:
            ValueError: Top-KAST watches a layer, with an index of its own.
        """
        self.steps_done += 1
        last, made = self.steps_done >= round(self.end * self.total_steps), []
        for name, layer in self.soft().items():
            probe = layer._grad_probe
            if probe is not None and not hasattr(probe, "seen"):
                raise ValueError(
                    f"expected a topology that looks at gradients now and then, got Top-KAST in {name!r}, try RigL"
                )
            self._train(name, layer)
            now = float(softness(layer.permutation.soft))
            # What a topology has just seen through M it must use first.
            if (last or now <= self.tolerance) and not (probe is not None and probe.seen):
                self._harden(layer)
                self.reason = f"softness {now:.3f} at step {self.steps_done}"
                made.append(name)
        return made

    def skip(self) -> None:
        """Follows an optimizer step that did not move the weights."""
        for layer in self.soft().values():
            layer.permutation.soft.grad = None

    def settle(self, module: nn.Module) -> list[str]:
        """Makes the permutations inside `module` indices, now, for what is about to freeze; the layers' names."""
        inside = set(module.modules())
        names = [name for name, layer in self.soft().items() if layer in inside]
        for name in names:
            self._harden(self.layers[name])
        return names

    def soft(self) -> dict[str, SparseLayer]:
        """The layers whose permutation is learned now, by name: not yet an index, not frozen."""
        return {
            name: layer
            for name, layer in self.layers.items()
            if not layer.permutation.hard and layer.values.requires_grad
        }

    def softness(self) -> dict[str, float]:
        """How far each layer's permutation is from one, by name: 0 of an index."""
        permutations = {name: layer.permutation for name, layer in self.layers.items()}
        return {name: 0.0 if one.hard else float(softness(one.soft)) for name, one in permutations.items()}

    @torch.no_grad()
    def _train(self, name: str, layer: SparseLayer) -> None:
        soft, square = layer.permutation.soft, self._squares[name]
        gradient = self._ranks.average(torch.zeros_like(soft) if soft.grad is None else soft.grad)
        gradient = torch.where(gradient.isfinite().all(), gradient, 0)
        now = gradient.square().mean()
        square.copy_(torch.where(square > 0, torch.lerp(square, now, 0.1), now))
        pressure = self.pressure * min(1.0, self.steps_done / (self.end * self.total_steps)) ** 3
        slope = gradient / square.sqrt().clamp(min=1e-20) + pressure * sharpening(soft)
        soft.copy_(descend(soft, slope, self.rate))
        soft.grad = None

    def _harden(self, layer: SparseLayer) -> None:
        layer.harden(nearest_permutation(layer.permutation.soft))

    def state_dict(self) -> dict[str, Any]:
        """What the model's state_dict does not have: steps, and running mean squares of dL/dM."""
        squares = {name: square.clone() for name, square in self._squares.items()}
        return {"step": self.steps_done, "squares": squares}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from `state_dict`'s values; the permutations are in the model's.

        Raises:
            ValueError: they are of other layers.
        """
        if set(state["squares"]) != set(self.layers):
            other = sorted(set(state["squares"]) ^ set(self.layers))
            raise ValueError(f"expected the state of a model with the same permutations, got a difference in {other}")
        self.steps_done = state["step"]
        for name, square in state["squares"].items():
            self._squares[name].copy_(square)


def _permutable(model: nn.Module, exclude: Rule | Iterable[Rule]) -> dict[str, SparseLayer]:
    """The layers that a permutation gives other masks, by name."""
    out = excluded(model, exclude)
    layers = {name: layer for name, layer in sparse_layers(model).items() if layer not in out}
    layers = {name: layer for name, layer in layers.items() if side_of(layer.pattern) is not None}
    if not layers:
        raise ValueError(
            "expected a layer in blocks or n:m, got none: other patterns have the same masks in every order, try "
            "spfde.sparsify(model, pattern='block:16x16')"
        )
    for name, layer in layers.items():
        problem = _problem(layer)
        if problem:
            raise ValueError(f"expected a layer that can be permuted, got {problem} in {name!r}, try excluding it")
    return layers


def _problem(layer: SparseLayer) -> str | None:
    if not (isinstance(layer, SparseLinear) or type(layer) is SparseConv2d):
        return type(layer).__name__
    if layer.window.groups > 1:
        return f"{layer.window.groups} groups"
    if layer._modules.get("permutation") is not None:
        return "a permutation"
    if is_sharded(layer):
        return "weights that fully_shard shares out"
    if layer._grad_probe is not None:
        return "a topology that watches it already (to be made afterwards)"
    return None if layer.values.dtype in (torch.float32, torch.float64) else f"values in {layer.values.dtype}"


def _drawn(layer: SparseLayer, generator: torch.Generator, start: float | None = None) -> Permutation:
    """A permutation drawn for a layer, soft with a share `start` of it, an index if None."""
    side = side_of(layer.pattern)
    places = layer.shape[1] if side == "inputs" else layer.shape[0]
    order = torch.randperm(places, generator=generator).to(layer.values.device)
    soft: Tensor | None = None if start is None else mixed(order, start).to(layer.values.dtype)
    return Permutation(side, order, soft, images=len(layer.shape) > 2)


def _check(**shares: float) -> None:
    for name, share in shares.items():
        if not 0 < share <= 1:
            raise ValueError(f"expected {name} in (0, 1], got {share}")
