"""torchdata's StatefulDataLoader keeps a place of its own: a sieve's is the one that counts."""

import pytest
import torch
from torch.utils.data import TensorDataset

from spfde.sieving import Circular, Sieve

stateful = pytest.importorskip("torchdata.stateful_dataloader")
pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")

SAMPLES, BATCH = 60, 6


def loader_of(sieve: Sieve, workers: int = 0) -> torch.utils.data.DataLoader:
    data = TensorDataset(torch.arange(SAMPLES))
    return stateful.StatefulDataLoader(data, batch_size=BATCH, sampler=sieve, num_workers=workers)


@pytest.mark.parametrize("workers", [0, 2])  # they fetch ahead of what is trained
def test_a_resumed_loader_goes_on_where_the_sieve_is(workers):
    sieve = Circular(SAMPLES, interval=1)
    sieve.observe(sieve.order(), losses=torch.ones(sieve.volume))
    sieve.end_epoch()
    loader, shown = loader_of(sieve, workers), []
    for step, (samples,) in enumerate(loader):
        sieve.observe(samples, losses=samples.float())
        shown += samples.tolist()
        if step == 2:
            break
    place, state = loader.state_dict(), sieve.state_dict()
    assert "active" not in str(place)  # with every batch that is fetched: not the sieve's megabytes

    resumed = Circular(SAMPLES, interval=1)
    loader = loader_of(resumed, workers)
    loader.load_state_dict(place)
    resumed.load_state_dict(state)
    for (samples,) in loader:
        resumed.observe(samples, losses=samples.float())
        shown += samples.tolist()
    assert shown == sieve.order().tolist()
    resumed.end_epoch()
    assert sum(len(samples) for (samples,) in loader) == resumed.volume

    forgotten = loader_of(Circular(SAMPLES, interval=1), workers)
    forgotten.load_state_dict(place)
    with pytest.raises(ValueError, match="sieve's own state to be loaded .* got one at epoch 0 .*load_state_dict"):
        next(iter(forgotten))
