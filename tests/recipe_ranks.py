"""What each of two processes under Accelerate does in integrations/test_recipes.py: docs/distributed.md's loop."""

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import spfde

SAMPLES, EPOCHS = 40, 4
GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(SAMPLES, 12, generator=GENERATOR)
DATA = TensorDataset(torch.arange(SAMPLES), INPUTS, (INPUTS[:, 0] > 0).long())


def trained(folder: Path, cut: int | None = None, resume: bool = False) -> dict[str, Any]:
    """The weights of a run, saved after `cut` epochs, or resumed from there."""
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True, kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)])
    layers = [part for _ in range(3) for part in (nn.Linear(12, 12), nn.ReLU())]
    plain = spfde.sparsify(nn.Sequential(*layers, nn.Linear(12, 2)), 0.6)
    freezer = spfde.freezing.Static(plain, spfde.freezing.blocks(plain, INPUTS[:1]), epochs=EPOCHS, count=1, start=2)
    optimizer = torch.optim.SGD(plain.parameters(), 0.1, momentum=0.9)
    sieve = spfde.sieving.Circular(SAMPLES, fraction=0.25, interval=1, rank=0, world=1)
    loader = DataLoader(DATA, batch_size=5, sampler=sieve)
    model, optimizer, loader = accelerator.prepare(plain, optimizer, loader)
    topology = spfde.topology.RigL(model, optimizer, total_steps=3 * EPOCHS, every=2)
    accelerator.register_for_checkpointing(topology, sieve, freezer)
    if resume:
        accelerator.load_state(str(folder))
    for epoch in range(sieve.epoch, EPOCHS):
        freezer.begin_epoch(epoch)
        for indices, inputs, targets in loader:
            logits = model(inputs)
            sieve.observe(indices, logits, targets)
            accelerator.backward(cross_entropy(logits, targets))
            optimizer.step()
            topology.step()
            optimizer.zero_grad()
        sieve.end_epoch()
        if epoch + 1 == cut:
            accelerator.save_state(str(folder))
    assert topology.steps_done == 3 * EPOCHS and freezer.frozen and sieve.presentations.sum() == 30 * EPOCHS
    return {name: value.clone() for name, value in plain.state_dict().items()}


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    for cut in (1, 3):  # before the freeze and after it
        where = Path(folder) / str(cut)
        whole, resumed = trained(where, cut), trained(where, resume=True)
        assert all(whole[name].equal(resumed[name]) for name in whole), cut
    torch.save(whole, Path(folder) / f"{rank}.pt")
