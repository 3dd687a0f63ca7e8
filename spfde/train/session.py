"""One training: what it is given, what it is made of, how far it is, and the state that a checkpoint keeps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from torch.utils.hooks import RemovableHandle

from spfde._modules import tensors
from spfde._ranks import ALONE, Ranks
from spfde.data import CropFlip
from spfde.freezing import Compiled, FreezeBlock, blocks
from spfde.freezing.block import check_freezable
from spfde.levers import Forward, Lever, LeverFactory, Levers
from spfde.sieving.shuffle import shuffled
from spfde.train import samples
from spfde.train.checkpoint import CheckpointError, belongs_to
from spfde.train.data import Batch, Source, epoch_seed, random_state, restore_random, seed
from spfde.train.device import Device, Layout
from spfde.train.distributed import averaging, fingerprints
from spfde.train.front import FrozenFront
from spfde.train.optimizer import Factory, moments, set_learning_rate, steps_per_epoch
from spfde.train.recipe import Recipe


@dataclass(frozen=True)
class Inputs:
    """What `fit` is given: a recipe, and what takes the place of the recipe's own model, data sets and optimizer.

    seconds: of a step with the first 0, 1, ... blocks frozen, where a run that is resumed had measured them. ranks:
    the processes that train together.
    """

    recipe: Recipe
    model: nn.Module | None = None
    train_set: Dataset | None = None
    test_set: Dataset | None = None
    optimizer: Factory | None = None
    levers: Sequence[Lever | LeverFactory] = ()
    seconds: Sequence[float] | None = None
    ranks: Ranks = ALONE

    @property
    def out(self) -> Path | None:
        """Return the run directory."""
        return None if self.recipe.out is None else Path(self.recipe.out)


class Session:
    """The parts of one training and how far it is; what levers see as their `spfde.levers.Run`.

    `example` [1, ...] is an input of the network, where the network is. `forward` calls the network as training does.
    With many `ranks`, each has a session: all are told the same events, of batches each of its own part.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        train: Source,
        test: Source,
        *,
        layout: Layout,
        device: Device,
        example: Tensor,
        blocks: tuple[FreezeBlock, ...] | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.ranks = ranks
        self.recipe, self.model, self.optimizer = recipe, model, optimizer
        self.train, self.test = train, test
        self.layout, self.device, self.example = layout, device, example
        self.levers = Levers()
        self.scaler = device.scaler()
        self.epoch = self.step = self.samples = 0
        self._active = len(train)  # samples of the present epoch
        self._blocks = blocks
        self._frozen: list[str] = []
        self._later: list[Callable[[], None]] | None = None  # while a graph is open
        self._compiled = Compiled(model) if recipe.compile else None
        self._averaging = averaging(model, self._route, ranks) if ranks.count > 1 else None
        self._outputs: dict[str, Tensor] = {}
        self._recording = False
        self._hooks: list[RemovableHandle] = []
        self.front = FrozenFront(recipe, len(train))

    def use(self, levers: Iterable[Lever]) -> None:
        """Take the levers that are told of this training, in this order."""
        self.close()
        self.levers = Levers(levers)
        if self.levers.needing(Forward):
            for block in self.blocks:
                module = self.model.get_submodule(block.name)
                self._hooks.append(module.register_forward_hook(partial(self._record, block.name)))

    def close(self) -> None:
        """Leave the model without what the session hung into it."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    # ---- what levers see -------------------------------------------------------------------------------------------

    @property
    def epochs(self) -> int:
        """Return the planned epochs."""
        return self.recipe.epochs

    @property
    def blocks(self) -> tuple[FreezeBlock, ...]:
        """Return the freezable blocks, front to back; ValueError where `spfde.freezing.blocks` finds none."""
        if self._blocks is None:
            self._blocks = tuple(blocks(self.model, self.example))
        return self._blocks

    @property
    def frozen(self) -> tuple[str, ...]:
        """Return the blocks that are frozen now, in freezing order."""
        return tuple(self._frozen)

    @property
    def num_samples(self) -> int:
        """Return how many samples the training set has."""
        return len(self.train)

    @property
    def total_steps(self) -> int:
        """Return the optimizer steps planned, as the epochs are long now."""
        sampler = self.levers.sampler
        active = self._active if sampler is None else len(sampler.order())
        return steps_per_epoch(active, self.recipe.batch_size, self.ranks.count) * self.epochs

    @property
    def total_samples(self) -> int:
        """Return the presentations planned: those of the epochs behind, then epochs as long as the present one."""
        return self.samples + self._active * (self.epochs - self.epoch)

    def freeze(self, names: Iterable[str]) -> None:
        """Freeze blocks by name: levers settle what they move in them first; compiled code is dropped.

        Raises:
            ValueError: a name is no block's, a block shares state with what stays active, or nothing would train.
        """
        names = list(names)
        fresh = [block for block in self._named(names) if block.name not in self._frozen]
        if self._later is not None:
            self._later.append(partial(self.freeze, names))
            return
        if not fresh:
            return
        check_freezable([*self._named(self._frozen), *fresh], self.model)
        self.levers.settle(module for block in fresh for _, module in block.modules)
        for block in fresh:
            block.freeze()
            self._frozen.append(block.name)
        self._drop_compiled()

    def unfreeze(self, names: Iterable[str]) -> None:
        """Give blocks back to the training, under the learning rate of what never freezes.

        Raises:
            ValueError: a name is no block's.
        """
        names = list(names)
        back = [block for block in self._named(names) if block.name in self._frozen]
        if self._later is not None:
            self._later.append(partial(self.unfreeze, names))
            return
        for block in back:
            block.unfreeze()
            for _, module in block.modules:
                module.train(self.model.training)  # it may have frozen between epochs, in eval mode
            self._frozen.remove(block.name)
            for group in self.optimizer.param_groups:
                if group.get("block") == block.name:
                    group["horizon"] = group["factor"] = 1.0
        if back:
            self._drop_compiled()

    def batches(self, indices: Tensor) -> Iterator[Batch]:
        """Yield training samples without augmentation: indices [n], inputs [n, ...] and targets [n]."""
        return samples.batches(self, indices)

    def predictions(self, indices: Tensor) -> Iterator[Batch]:
        """Yield indices [n], the outputs [n, ...] of the network in evaluation, and targets [n], without a graph."""
        return samples.predictions(self, indices)

    @contextmanager
    def graph(self) -> Iterator[None]:
        """Put off what levers freeze and give back until the passes inside are over: masks must not move under them."""
        self._later = []
        try:
            yield
        finally:
            waiting, self._later = self._later, None
        for change in waiting:
            change()

    def _named(self, names: Iterable[str]) -> list[FreezeBlock]:
        names = list(dict.fromkeys(names))
        known = {block.name: block for block in self.blocks} if names else {}
        for name in names:
            if name not in known:
                raise ValueError(f"expected a block of {sorted(known)}, got {name!r}, try a name of run.blocks")
        return [known[name] for name in names]

    def _drop_compiled(self) -> None:
        if self._compiled is not None:
            self._compiled.drop()

    # ---- what the loop does with it --------------------------------------------------------------------------------

    def forward(self, inputs: Tensor, indices: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Run the network in training on samples `indices`; its output, and those of the blocks that a lever needs."""
        self._outputs, self._recording = {}, True
        network = self._route() if self._averaging is None else self._averaging
        try:
            with self.device.autocast(), self._front(indices):
                return network(inputs), self._outputs
        finally:
            self._recording = False

    def _route(self) -> Callable[..., Tensor]:
        return self.model if self._compiled is None or self.levers.armed else self._compiled

    def summing(self) -> AbstractContextManager[Any]:
        """Return the context of passes whose gradients only add up: the ranks are averaged by one that follows."""
        return nullcontext() if self._averaging is None else self._averaging.no_sync()

    def meet(self) -> None:
        """Have all ranks hold one network: the first one's running statistics, and what must be equal anyway.

        Raises:
            RuntimeError: weights or masks differ.
        """
        self.ranks.follow_first(b for b in self.model.buffers() if b.is_floating_point())
        if self.ranks.count > 1:
            self.ranks.check_same(fingerprints(self.model), "levers that decide alike on all ranks")

    def _front(self, indices: Tensor) -> AbstractContextManager[Any]:
        if not self._frozen and self.front.prefix is None:
            return nullcontext()
        return self.front.passing(self.model, lambda: self.blocks, self._augment, indices, self.epoch)

    def _record(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if self._recording:
            self._outputs[name] = next(tensors(output)).detach()

    def start_epoch(self, epoch: int) -> Tensor:
        """Take note of the epoch that begins, or goes on; the indices [n] of its samples, in order."""
        self.epoch = epoch
        if self.levers.sampler is not None:
            order = self.levers.sampler.order()
        else:
            order = shuffled(torch.arange(len(self.train)), epoch_seed(self.recipe.seed, epoch))
        self._active = len(order)
        self.front.start_epoch(order)
        return order

    def inputs(self, images: Tensor, indices: Tensor, epoch: int) -> Tensor:
        """Return a training batch as the network gets it: augmented, a pure function of epoch and index."""
        return self.device.put(self.layout.images(self._augment(images, indices, epoch)))

    @property
    def _augment(self) -> CropFlip:
        return CropFlip(self.recipe.crop, self.recipe.flip, self.recipe.seed, self.recipe.variants)

    def set_learning_rate(self, progress: float) -> float:
        """Set every group's rate for a point of the training in [0, 1]; return that of what never freezes."""
        return set_learning_rate(self.optimizer, self.recipe, progress)

    # ---- what a checkpoint keeps -----------------------------------------------------------------------------------

    def description(self) -> dict[str, Any]:
        """Return what a checkpoint says of the run that it belongs to, in plain values."""
        return {
            "recipe": self.recipe.to_dict(),
            "samples": len(self.train),
            "layout": dataclasses.asdict(self.layout),
            "machine": self.machine,
        }

    @property
    def machine(self) -> dict[str, Any]:
        """Return what else the numbers depend on to the bit: versions, device, kernels that were forced or tuned."""
        from spfde._native import native
        from spfde._version import __version__
        from spfde.kernels.dispatch import in_use
        from spfde.nn import SparseLayer

        layers = {name: layer for name, layer in self.model.named_modules() if isinstance(layer, SparseLayer)}
        return {
            "spfde": __version__,
            "torch": str(torch.__version__),
            "device": self.device.name,
            "ranks": self.ranks.count,
            "compile": self.recipe.compile,
            "isa": native().isa() if layers and self.device.is_cpu else None,
            "tables": (in_use.process_tables() or None) if layers else None,
            "kernels": {name: layer.dispatch_key for name, layer in layers.items() if layer.dispatch_key != "auto"},
        }

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: tensors and plain values; with many ranks a collective."""
        random = self.ranks.gather(random_state(self.device.where))
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "optimizer_name": type(self.optimizer).__name__,
            "scaler": self.scaler.state_dict(),
            "levers": self.levers.state_dict(),
            "frozen": list(self._frozen),
            "place": {"epoch": self.epoch, "step": self.step, "samples": self.samples, "active": self._active},
            "random": random[0],
            "random_of_others": random[1:],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`'s values; what was frozen is frozen again.

        Raises:
            CheckpointError: they are those of another network, optimizer or levers.
        """
        name = type(self.optimizer).__name__
        if state["optimizer_name"] != name:
            raise CheckpointError(
                f"expected the checkpoint's optimizer, {state['optimizer_name']}, got {name},"
                " try the one it was made with"
            )
        with belongs_to("network", "the model it was made with"):
            self.model.load_state_dict(state["model"])
        with belongs_to("run's levers", "the levers it was made with, on the same model"):
            self._frozen = list(state["frozen"])
            before = {block.name for block in self._blocks or () if block.is_frozen}
            self.levers.load_state_dict(state["levers"])
            for block in self._named(self._frozen):
                block.freeze()
            for block in self._blocks or ():  # that a freezer had frozen and another lever had given back
                if block.is_frozen and block.name not in (*before, *self._frozen):
                    block.unfreeze()
        with belongs_to("optimizer", "the optimizer it was made with, on the same parameters"):
            self.optimizer.load_state_dict(state["optimizer"])
            if state["scaler"] and self.scaler.is_enabled():
                self.scaler.load_state_dict(state["scaler"])
        with belongs_to("run", "one that was made here"):
            place = state["place"]
            self.epoch, self.step, self.samples = place["epoch"], place["step"], place["samples"]
            self._active = place["active"]
            random = [state["random"], *state.get("random_of_others", ())]
            if self.ranks.rank == 0 or len(random) == self.ranks.count:
                restore_random(random[self.ranks.rank], self.device.where)
            else:  # what other ranks drew from is nobody's here
                seed(self.recipe.seed, self.step, self.ranks.rank)
        self._drop_compiled()

    @property
    def checkpoint_size(self) -> int:
        """Return at least the bytes of a checkpoint: weights, optimizer, levers, the file's own, some of history."""
        state = self.state_dict()
        held = [*tensors(state)]
        if next(tensors(state["optimizer"]), None) is None:  # before its first step
            held += [*self.model.parameters()] * moments(self.optimizer)
        return sum(tensor.nbytes + 512 for tensor in held) + 2**18
