"""What a training step takes with the first 0, 1, ... blocks frozen: measured, for plans in seconds."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import nn

from spfde._modules import random_state_restored
from spfde.freezing.block import FreezeBlock
from spfde.freezing.schemes import to_freeze


def step_seconds(
    model: nn.Module,
    blocks: Sequence[FreezeBlock],
    step: Callable[[nn.Module], object],
    *,
    fraction: float = 2 / 3,
    rounds: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[float, ...]:
    """Seconds of a training step with the first 0, 1, ... blocks frozen, as far as `fraction` of them.

    Runs on a copy: the model, its blocks and the random state stay as they are. With several processes
    (torch.distributed) it is their mean, the same in all.

    Args:
        model: the network in training.
        blocks: its blocks.
        step: trains a model for one step, the copy here: forward, backward and whatever else a step has.
        fraction: that of the freezer.
        rounds: how often each stage is measured, once on the way from nothing frozen to most and once on the way back.
        clock: by which; `time.process_time` where other programs share the processor.
    """
    copied, parts = copy.deepcopy((model, tuple(blocks)))
    frozen: list[FreezeBlock] = []

    def freeze(count: int) -> None:
        while len(frozen) < count:
            parts[len(frozen)].freeze()
            frozen.append(parts[len(frozen)])
        while len(frozen) > count:
            frozen.pop().unfreeze()

    where = next(model.parameters()).device
    count = to_freeze(len(parts), fraction)
    with random_state_restored(model):
        seconds = stage_seconds(lambda: step(copied), freeze, count, where, rounds=rounds, clock=clock)
    if dist.is_available() and dist.is_initialized():
        mean = torch.tensor(seconds, dtype=torch.float64, device=where)
        dist.all_reduce(mean)
        seconds = tuple((mean / dist.get_world_size()).tolist())
    return seconds


def stage_seconds(
    step: Callable[[], object],
    freeze: Callable[[int], None],
    count: int,
    where: torch.device,
    *,
    rounds: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[float, ...]:
    """Medians of a step's seconds once `freeze` was told to have the first 0 to `count` blocks frozen.

    Twice `rounds` steps of each stage, half of them upwards and half downwards, so that a machine that grows slower
    favours no stage; the first step after a freeze is not counted.
    """
    seconds: list[list[float]] = [[] for _ in range(count + 1)]
    for stage in (*range(count + 1), *reversed(range(count + 1))):
        freeze(stage)
        for number in range(rounds + 1):
            start = clock()
            step()
            if where.type == "cuda":
                torch.cuda.synchronize(where)
            if number:
                seconds[stage].append(clock() - start)
    return tuple(map(statistics.median, seconds))


def non_increasing(values: Sequence[float]) -> tuple[float, ...]:
    """The non-increasing numbers nearest to `values`: a frozen block costs no time, whatever the noise says.

    Least squares, by pooling neighbours that are out of order.
    """
    pools: list[tuple[float, int]] = []  # mean and size
    for value in values:
        pools.append((value, 1))
        while len(pools) > 1 and pools[-2][0] < pools[-1][0]:
            (first, n), (second, m) = pools[-2:]
            pools[-2:] = [((first * n + second * m) / (n + m), n + m)]
    return tuple(mean for mean, size in pools for _ in range(size))
