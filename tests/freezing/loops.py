"""A loop of one's own with everything in it: AdamW, GradScaler, accumulation, clipping, EM&S, a way of freezing."""

import inspect
import itertools
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from freezing.models import IMAGES, ResNet
from torch import nn
from torch.nn.functional import cross_entropy

from spfde import sparsify
from spfde.freezing import METHODS, FreezeBlock, Progressive, blocks, step_seconds
from spfde.freezing.schemes import SCHEMES
from spfde.integrations import Rebucketed
from spfde.topology import MEST

EPOCHS, STEPS = 8, 2
LOOKING = {"every": 1, "bootstrap": 0, "samples": 4}
WAYS = {
    **{scheme: {"flops_reduction": 0.15, "scheme": scheme} for scheme in SCHEMES},
    "static": {"start": 2},
    "linear": {"start": 0},
    "freezeout": {"first": 0.5},
    "egeria": {**LOOKING, "window": 2, "tolerance": 5.0},
    "autofreeze": {"window": 1, "percentile": 0.9},
    "simfreeze": {**LOOKING, "window": 1, "threshold": 0.9},
    "smartfrz": {"threshold": 0.001},
}
PER_EPOCH = {"egeria": 4, "simfreeze": 4, "smartfrz": 31}  # steps, where windows need more
RANKS = ("single-shot-resume", "periodic", "delayed-periodic", "egeria", "autofreeze", "simfreeze")  # of two processes


def network() -> nn.Module:
    torch.manual_seed(0)
    return sparsify(ResNet(8), sparsity=0.5)


def state(block, optimizer, alone: bool) -> list[torch.Tensor]:
    """All that a block and the optimizer's memory of it consist of; of ranks, each of which has statistics, without."""
    values = [(name, t) for _, module in block.modules for name, t in module.state_dict().items()]
    tensors = [t for name, t in values if alone or "running" not in name]  # DDP sends out those of the first rank
    tensors += [t for p in block.trainable for t in optimizer.state[p].values() if isinstance(t, torch.Tensor)]
    return [t.clone() for t in tensors]


def freezer_of(way: str, model: nn.Module, parts: Sequence[FreezeBlock]) -> Any:
    """The freezer of `WAYS` for one of its names."""
    method = METHODS["progressive" if way in SCHEMES else way]
    common = {"interval": 1, "epochs": EPOCHS}
    taken = {name: common[name] for name in inspect.signature(method).parameters if name in common}
    return method(model, parts, **taken, **WAYS[way])


def train(way: str, model: nn.Module, wrap: Callable = lambda model: model, rank: int = 0) -> list[tuple[str, ...]]:
    """Trains `model` through what `wrap` makes of it; what was frozen in each epoch.

    Asserts that what is frozen does not change by a bit, has its target count, and gives no gradient.
    """
    parts, steps = blocks(model, torch.randn(1, *IMAGES[1:])), PER_EPOCH.get(way, STEPS)
    freezer = freezer_of(way, model, parts)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    topology = MEST(model, optimizer, total_steps=EPOCHS * steps, every=steps, drop_fraction=0.3, soft=True)
    network = wrap(model)  # once EM&S has made room
    generator = torch.Generator().manual_seed(rank)
    history = []
    for epoch in range(EPOCHS):
        for block in freezer.due(epoch):
            for _, module in block.modules:
                topology.settle(module)
        freezer.begin_epoch(epoch)
        history.append(freezer.frozen)
        frozen = [block for block in parts if block.name in freezer.frozen]
        before = [state(block, optimizer, network is model) for block in frozen]
        network.train()
        for _ in range(steps):
            optimizer.zero_grad()
            for part in range(2):
                images, labels = torch.randn(IMAGES, generator=generator), torch.arange(IMAGES[0])
                with getattr(network, "no_sync", nullcontext)() if part == 0 else nullcontext():
                    scaler.scale(cross_entropy(network(images), labels) / 2).backward()
            scaler.unscale_(optimizer)
            freezer.observe(images, lr=1e-2)
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            assert all((p.grad is None) != p.requires_grad for p in model.parameters())
            scaler.step(optimizer)
            scaler.update()
            topology.step()
        after = [state(block, optimizer, network is model) for block in frozen]
        assert all(
            torch.equal(a, b) for one, two in zip(before, after, strict=True) for a, b in zip(one, two, strict=True)
        )
        inside = {m for block in frozen for m in block.members}
        for name, layer in topology.layers.items():
            assert layer not in inside or layer.nnz == topology.target[name]
    return history


def plain() -> nn.Module:
    """Without statistics: the mean gradient over ranks is that of the whole batch."""
    torch.manual_seed(1)
    layers = [m for _ in range(4) for m in (nn.Linear(6, 6), nn.Tanh())]
    return nn.Sequential(*layers, nn.Linear(6, 3)).double()


def train_plain(model: nn.Module, network: nn.Module, rank: int | None) -> dict[str, torch.Tensor]:
    """Trains by halves of a batch (rank 0 or 1) or the whole (None), front blocks in turns; the weights."""
    parts = blocks(model, torch.randn(1, 6, dtype=torch.float64))
    freezer = Progressive(model, parts, epochs=EPOCHS, interval=1, flops_reduction=0.2, scheme="periodic")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    generator = torch.Generator().manual_seed(5)
    for epoch in range(EPOCHS):
        freezer.begin_epoch(epoch)
        for _ in range(STEPS):
            inputs, labels = torch.randn(8, 6, generator=generator, dtype=torch.float64), torch.arange(8) % 3
            half = slice(None) if rank is None else slice(4 * rank, 4 * rank + 4)
            optimizer.zero_grad()
            cross_entropy(network(inputs[half]), labels[half]).backward()
            optimizer.step()
    return model.state_dict()


def measured(rank: int) -> tuple[float, ...]:
    """Seconds of a machine that is slower the higher its rank."""
    now = itertools.count(step=1 + 2 * rank)
    return step_seconds(
        model := plain(), blocks(model, torch.zeros(1, 6).double()), lambda model: None, clock=lambda: next(now)
    )


def work(rank: int, folder: str) -> None:
    """What each of two ranks does."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", 2), rank=rank, world_size=2)
    found = {"plain": train_plain(model := plain(), Rebucketed(model), rank)}
    for way in RANKS:
        model = network()
        train(way, model, Rebucketed, rank)
        found[way] = {name: p.detach() for name, p in model.named_parameters()}
    found["seconds"] = {"mean": torch.tensor(measured(rank))}
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def on_two_ranks(folder) -> list[dict]:
    mp.spawn(work, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]
