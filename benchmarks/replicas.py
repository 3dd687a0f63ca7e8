"""P-GaP in several processes, as study.py's other methods train in one: a replica and a dense partition in each.

Each process draws batches of its own from all the training images, as many as a training alone. `fit` makes one model
of its ranks by averaging gradients, which P-GaP refuses, so this is a loop of its own with the recipe's optimizer,
learning rates and loss. Processes find one another by gloo.
"""

from __future__ import annotations

import copy
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.functional import cross_entropy

from spfde.data import Images
from spfde.topology import PGaP
from spfde.train import Recipe
from spfde.train.build import sparsified
from spfde.train.data import TensorSource, epoch_seed
from spfde.train.flops import training_flops
from spfde.train.optimizer import make, parameter_groups, recipe_optimizer, set_learning_rate, steps_per_epoch
from spfde.train.record import sparsity


@dataclass(frozen=True)
class Trained:
    """What the replicas came to: accuracies as fractions, seconds of processor time and training FLOPs of all."""

    test_accuracy: float
    train_accuracy: float
    sparsity: float
    cpu_seconds: float
    flops: float


def train(recipe: Recipe, model: nn.Module, train_set: Images, test_set: Images, processes: int) -> Trained:
    """Train a replica of the dense model in each of the processes by P-GaP, and combine them."""
    with TemporaryDirectory() as folder:
        mp.spawn(_replica, (processes, folder, recipe, model, train_set, test_set), processes)
        return Trained(**json.loads((Path(folder) / "trained.json").read_text()))


def _replica(
    rank: int, processes: int, folder: str, recipe: Recipe, model: nn.Module, train_set: Images, test_set: Images
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/met", rank=rank, world_size=processes)
    train, test = (TensorSource(one.images, one.targets) for one in (train_set, test_set))
    model = sparsified(copy.deepcopy(model), recipe, train)  # what a process is given lies in memory that all share
    _warm(model, train, recipe)
    optimizer = make(recipe_optimizer(recipe), parameter_groups(model, (), {}))
    each = steps_per_epoch(len(train), recipe.batch_size)
    start, flops, hits = time.process_time(), 0.0, []
    topology = PGaP(model, optimizer, total_steps=each * recipe.epochs, every_epochs=recipe.interval)
    for epoch in range(recipe.epochs):
        topology.begin_epoch(epoch, each, recipe.epochs)
        cost, hits = training_flops(model, train.images[:1]), []
        own = torch.Generator().manual_seed(processes * epoch_seed(recipe.seed, epoch) + rank)
        batches = train.batches(torch.randperm(len(train), generator=own), recipe.batch_size)
        model.train()
        for step, (images, targets, _) in enumerate(batches):
            set_learning_rate(optimizer, recipe, recipe.passed(epoch + (step + 0.5) / each))
            optimizer.zero_grad(set_to_none=True)
            logits = model(images)
            cross_entropy(logits, targets).backward()
            optimizer.step()
            topology.step()
            flops += cost * len(targets)
            hits.append((logits.argmax(1) == targets).float().mean().item())
        tested = _accuracy(model, test) if rank == 0 else 0.0
    spent = torch.tensor([time.process_time() - start, flops, sum(hits) / len(hits) / processes], dtype=torch.float64)
    dist.all_reduce(spent)
    if rank == 0:
        seconds, flops, seen = spent.tolist()
        trained = Trained(tested, seen, sparsity(model), seconds, flops)
        (Path(folder) / "trained.json").write_text(json.dumps(asdict(trained)))
    dist.destroy_process_group()


def _warm(model: nn.Module, train: TensorSource, recipe: Recipe) -> None:
    """Take two steps with a copy: what is loaded or built once in a process is no part of a run."""
    model = copy.deepcopy(model)
    optimizer = make(recipe_optimizer(recipe), parameter_groups(model, (), {}))
    for images, targets, _ in train.batches(torch.arange(2 * recipe.batch_size), recipe.batch_size):
        cross_entropy(model(images), targets).backward()
        optimizer.step()


@torch.no_grad()
def _accuracy(model: nn.Module, test: TensorSource) -> float:
    """The share of right answers."""
    model.eval()
    batches = test.batches(torch.arange(len(test)), 256)
    return sum(int((model(images).argmax(1) == targets).sum()) for images, targets, _ in batches) / len(test)
