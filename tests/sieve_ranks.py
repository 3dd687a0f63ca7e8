"""What each of several processes does in test_ranks.py."""

import math
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, TensorDataset

from spfde.sieving import METHODS, Circular, GraNd, Kakurenbo, Random, Sieve

SAMPLES, EPOCHS, BATCH = 47, 4, 6
CASES = {
    "circular": {"fraction": 0.3, "interval": 1},
    "random": {"fraction": 0.3, "interval": 2},
    "infobatch": {"fraction": 0.5, "epochs": 8},
    "once": {"fraction": 0.24, "at": 2, "epochs": 8},
    "forgetting": {"fraction": 0.3, "at": 3, "epochs": 8},
    "el2n": {"fraction": 0.4, "at": 2, "epochs": 8, "average": 1},
    "kakurenbo": {"fraction": 0.3, "epochs": 8},
    "oscillating": {"fraction": 0.1, "groups": 4, "epochs": 8},
    "grand": {"fraction": 0.4, "at": 2, "epochs": 8},
    "ucb": {"fraction": 0.4, "interval": 1},
    "epsgreedy": {"fraction": 0.4, "interval": 1},
}


def logits_of(samples: torch.Tensor, epoch: int) -> torch.Tensor:
    """[n, 3]: a pure function of sample and epoch, as if one network had computed them."""
    angle = samples[:, None] * torch.tensor([1.0, 2.0, 3.0]) + epoch * torch.tensor([0.7, 0.3, 1.1])
    return 3 * angle.sin()


def train(sieve: Sieve, epoch: int) -> list[int]:
    """One epoch of this rank: the samples that it trained on."""
    seen = []
    data = TensorDataset(torch.arange(SAMPLES))
    for (samples,) in DataLoader(data, batch_size=BATCH, sampler=sieve):
        sieve.observe(samples, logits_of(samples, epoch), samples % 3)
        seen += samples.tolist()
    look(sieve, epoch)
    return seen


def look(sieve: Sieve, epoch: int) -> None:
    """What a sieve looks at by itself, this rank's part of it."""
    if isinstance(sieve, Kakurenbo):
        part = sieve.removed[sieve.rank :: sieve.world]
        sieve.look(part, logits_of(part, epoch), part % 3)
    if isinstance(sieve, GraNd) and epoch == sieve.at - 1:
        part, model = torch.arange(SAMPLES)[sieve.rank :: sieve.world], torch.nn.Linear(1, 3)
        torch.nn.init.zeros_(model.weight), torch.nn.init.zeros_(model.bias)
        sieve.look(model, [(part, part[:, None].float(), part % 3)])


def run(name: str, epochs: int, group: Any = None) -> list[dict]:
    """States after each epoch."""
    return go_on(METHODS[name](SAMPLES, seed=5, group=group, **CASES[name]), epochs)


def go_on(sieve: Sieve, epochs: int) -> list[dict]:
    """States after each epoch that is left, the present one with what is left of it."""
    states = []
    for epoch in range(sieve.epoch, epochs):
        train(sieve, epoch)
        sieve.end_epoch()
        states.append(sieve.state_dict())
    return states


def begun(name: str, group: Any = None) -> dict:
    """A state after one batch of the second epoch."""
    sieve = METHODS[name](SAMPLES, seed=5, group=group, **CASES[name])
    go_on(sieve, 1)
    samples = torch.tensor(list(sieve)[:BATCH])
    sieve.observe(samples, logits_of(samples, 1), samples % 3)
    return sieve.state_dict()


def resumed(name: str, state: dict, group: Any = None) -> dict:
    """The state after the last epoch, from `begun` of any number of ranks."""
    sieve = METHODS[name](SAMPLES, seed=5, group=group, **CASES[name])
    sieve.load_state_dict(state)
    return go_on(sieve, EPOCHS)[-1]


def work(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    early, misfit = Random(SAMPLES), Random(SAMPLES, rank=rank, world=world + 1)  # made before there is a group
    store = dist.FileStore(f"{folder}/store", world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    assert (early.rank, early.world, len(early)) == (rank, world, len(list(Random(SAMPLES))))
    with pytest.raises(ValueError, match=f"expected world 1 or the {world} processes"):
        misfit.observe(torch.tensor(list(misfit)), losses=torch.ones(len(misfit)))
    pair = dist.new_group([0, 1])
    by_all = {name: begun(name) for name in CASES}
    by_two = {name: begun(name, pair) for name in CASES} if rank < 2 else {}
    if rank == 0:
        torch.save(by_two, f"{folder}/by_two.pt")
    dist.barrier()
    by_two = torch.load(f"{folder}/by_two.pt", weights_only=True)
    for group, size, others in ((pair, 2, by_all), (None, world, by_two)):
        if rank < size:
            found = check(rank, size, group)
            found["resumed"] = {name: resumed(name, others[name], group) for name in CASES}
            torch.save(found, f"{folder}/{size}-{rank}.pt")
    dist.destroy_process_group()


def fault_of(rank: int, world: int, group: Any) -> str:
    """An error of any kind in a sieve of one's own, on the last rank."""

    class Failing(Circular):
        def _judge(self, *_: Any) -> Any:
            if rank == world - 1:
                raise RuntimeError("out of memory")
            return super()._judge(*_)

    sieve = Failing(SAMPLES, group=group)
    samples = torch.tensor(list(sieve)[:2])
    with pytest.raises(RuntimeError if rank == world - 1 else ValueError) as caught:
        sieve.observe(samples, torch.zeros(2, 3), samples % 3)
    return str(caught.value)


def check(rank: int, world: int, group: Any) -> dict:
    """What one of `world` ranks found."""
    found = {name: run(name, EPOCHS, group) for name in CASES}
    sieve = Circular(
        SAMPLES, fraction=0.3, interval=1, seed=5, group=group
    )  # half an epoch, for another number of ranks
    assert (sieve.rank, sieve.world) == (rank, world)
    shard = list(sieve)
    assert len(sieve) == len(shard) == math.ceil(sieve.volume / world)
    begun = torch.tensor(shard[:BATCH])
    sieve.observe(begun, logits_of(begun, 0), begun % 3)
    found["half"], found["begun"], found["rest"] = sieve.state_dict(), shard[:BATCH], shard[BATCH:]

    unsharded = Random(SAMPLES, rank=0, world=1, group=group)  # another shares the batches out: observing still gathers
    unsharded.observe(unsharded.order()[rank : rank + 1], losses=torch.ones(1))
    assert unsharded.presentations.sum() == world

    faults = []
    for make, words in (
        (lambda: (begun, torch.full((len(begun), 3), math.nan if rank == world - 1 else 0.0), begun % 3), "NaN"),
        (
            lambda: (
                torch.tensor([shard[0], SAMPLES if rank == 0 else shard[1]]),
                torch.zeros(2, 3),
                torch.zeros(2).long(),
            ),
            "indices",
        ),
    ):
        before = sieve.presentations
        with pytest.raises(ValueError, match=f"{words}|without a fault on all ranks, got one on rank") as caught:
            sieve.observe(*make())
        faults.append(str(caught.value))
        assert sieve.presentations.equal(before)
    faults += [fault_of(rank, world, group)]
    if world > 1:
        with pytest.raises(ValueError, match="another's; try rank=0, world=1|without a fault"):
            other = torch.tensor([next(s for s in sieve.order().tolist() if s not in shard)])
            sieve.observe(other, torch.zeros(1, 3), torch.zeros(1).long())
        with pytest.raises(ValueError, match=f"expected world 1 or the {world} processes"):
            Circular(SAMPLES, rank=0, world=world + 1, group=group)
        gathered = Random(SAMPLES, group=group)
        gathered.observe(gathered.active, losses=torch.ones(gathered.volume), gathered=True)
        assert gathered.presentations.sum() == gathered.volume
    return {**found, "faults": faults}
