"""A small network with unusual layers, a training step, and a sparse tensor in the dense shape."""

import copy

import torch
from torch import nn

from spfde import sparsify

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
}
PATTERNS = ["unstructured", "block:4x1", "block:2x3", "2:4", "fan-in", "channel"]


def net(pattern="unstructured", seed=0):
    """A plain and a grouped convolution, a linear layer, a fully dense one, and one with a single output."""
    torch.manual_seed(seed)
    groups = 1 if pattern.startswith("block") else 2
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 6, 3, stride=2, groups=groups), nn.Flatten(),
        nn.Linear(54, 11), nn.Tanh(), nn.Linear(11, 5), nn.Tanh(), nn.Linear(5, 1),
    )  # fmt: skip
    if pattern == "2:4":
        return sparsify(model, pattern=pattern)
    shares = {"0": 0.5, "2": 0.7, "4": 0.8, "6": 0.0, "8": 0.4}
    return sparsify(model, 0.5, pattern=pattern, distribution=shares)


def train_step(model, optimizer, seed):
    x = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    (model(x) - 1).square().mean().backward()
    optimizer.step()


def dense(layer, stored):
    """[grid size, R, C]: the live slots of a tensor shaped like values at their positions, 0 elsewhere."""
    out = torch.zeros(layer.grid.size, *layer.grid.block)
    out[layer.positions()] = stored.detach()[: layer.nnz]
    return out


def states(layer, optimizer):
    return {
        key: dense(layer, state)
        for key, state in optimizer.state[layer.values].items()
        if isinstance(state, torch.Tensor) and state.shape == layer.values.shape
    }


def trained(method, options, pattern="unstructured", kind="sgd", steps=12, stop=None, copied=False):
    """The model's state after `steps`; at `stop` the run is saved and resumed, or goes on in a deepcopy."""
    model = net(pattern)
    optimizer = OPTIMIZERS[kind](model.parameters())
    topology = method(model, optimizer, total_steps=steps, every=3, seed=5, **options)
    for step in range(steps):
        train_step(model, optimizer, step)
        topology.step()
        if step == stop and copied:
            model, optimizer, topology = copy.deepcopy((model, optimizer, topology))
        elif step == stop:
            saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), topology.state_dict()))
            model = net(pattern, seed=9)
            optimizer = OPTIMIZERS[kind](model.parameters())
            topology = method(model, optimizer, total_steps=steps, every=3, seed=123, **options)
            for part, state in zip((model, optimizer, topology), saved, strict=True):
                part.load_state_dict(state)
    return {**model.state_dict(), "rs": torch.tensor(topology.explored)}
