"""What a network makes of a few samples that stay the same: to compare it with itself at another time."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from spfde._modules import batch_size, eval_mode, map_tensors, random_state_restored, run, tensors, unwrapped
from spfde.freezing.block import FreezeBlock
from spfde.levers import Run

FEWEST = 4  # samples that can be compared


class Probe:
    """The samples on which a network is looked at: the first `samples` of the first batch, or of the training set.

    They do not change, so that what is seen changes with the network alone. Its state holds them.
    """

    def __init__(self, model: nn.Module, samples: int) -> None:
        self.model, self.samples = unwrapped(model), samples
        self.inputs: Any = None

    def take(self, inputs: Any) -> None:
        """Keeps the first samples of `inputs`, a batch of the network's, unless there are some already.

        Raises:
            ValueError: there are none yet and `inputs` are none, or too few.
        """
        if self.inputs is not None:
            return
        count = 0 if inputs is None else batch_size(inputs)
        if count < FEWEST:
            got = "none" if inputs is None else f"{count} samples"
            raise ValueError(f"expected inputs of {FEWEST} samples or more, got {got}; try freezer.observe(inputs)")
        self.inputs = map_tensors(lambda each: each.detach()[: self.samples].clone() if each.dim() else each, inputs)

    def draw(self, of: Run) -> None:
        """Takes samples from all over the training set of a run, not augmented, unless there are some already."""
        if self.inputs is None:
            count = min(self.samples, of.num_samples)
            indices = torch.arange(count) * of.num_samples // count
            batches = [inputs for _, inputs, _ in of.batches(indices)]
            self.take(torch.cat(batches))

    def outputs(self, blocks: Sequence[FreezeBlock], model: nn.Module | None = None) -> dict[str, Tensor]:
        """What comes out of `blocks` [n, ...], in evaluation and without a graph; nothing behind the last one runs.

        model: a copy of the network to look at instead.
        """
        found: dict[str, Tensor] = {}
        ends = {block: block.modules[-1][1] for block in blocks}
        if model is not None:
            names = {module: name for name, module in self.model.named_modules()}
            ends = {block: model.get_submodule(names[end]) for block, end in ends.items()}
        model = self.model if model is None else model
        hooks = [end.register_forward_hook(_Record(found, block, blocks[-1])) for block, end in ends.items()]
        try:
            with suppress(_Reached), eval_mode(model), random_state_restored(self.inputs), torch.no_grad():
                run(model, self.inputs)
        finally:
            for hook in hooks:
                hook.remove()
        return found

    def copied(self) -> nn.Module:
        """The network as it is now, without hooks, which may hold on to anything, and without gradients."""
        memo: dict[int, Any] = {}
        for module in self.model.modules():
            memo.update({id(hooks): OrderedDict() for name, hooks in vars(module).items() if name.endswith("_hooks")})
        return copy.deepcopy(self.model, memo).requires_grad_(False)

    def state_dict(self) -> dict[str, Any]:
        """The samples."""
        return {"inputs": self.inputs}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on with the samples of a state."""
        self.inputs = self.here(state["inputs"])

    def here(self, value: Any) -> Any:
        """A tensor or a nest of tensors, where the network is."""
        where = next(self.model.parameters()).device
        return map_tensors(lambda each: each.to(where), value)


class _Reached(Exception):
    """The last block to look at has run."""


class _Record:
    """A forward hook that keeps what a block makes, and ends the pass behind the last one."""

    def __init__(self, found: dict[str, Tensor], block: FreezeBlock, last: FreezeBlock) -> None:
        self.found, self.block, self.last = found, block, last

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.found[self.block.name] = next(tensors(output)).detach()
        if self.block is self.last:
            raise _Reached
