"""A sieve under Lightning, two processes of it: left as it is, every sample once, resumed in mid-epoch."""

import pytest
import torch
from launched import launch

pytest.importorskip("lightning")


def test_lightning_leaves_a_sieve_s_samples_as_they_are(tmp_path):
    from lightning_ranks import BATCH, EPOCHS, work

    launch(work, 2, str(tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    straight, state = first["straight"]["shown"], first["straight"]["state"]
    volumes = state["volumes"][:EPOCHS]
    assert volumes[-1] == 47 > volumes[1] and len(set(volumes)) > 2  # the last epochs are whole, and longer
    for epoch, volume in enumerate(volumes):
        shown = [each["straight"]["shown"][epoch] for each in (first, second)]
        assert len(shown[0]) == len(shown[1]) == -(-volume // 2) and len(set(shown[0] + shown[1])) == volume
    for each in (first, second):
        resumed = each["resumed"]["shown"]
        assert sorted(resumed) == [1, 2, 3, 4] and len(resumed[1]) == len(straight[1]) - BATCH
        assert resumed[1] == each["straight"]["shown"][1][BATCH:]
        assert all(resumed[epoch] == each["straight"]["shown"][epoch] for epoch in (2, 3, 4))
        for name, value in each["resumed"]["state"].items():
            assert value.equal(state[name]) if isinstance(value, torch.Tensor) else value == state[name], name
