"""Sieves under Accelerate, two processes of it: shared out once, repeats not counted, resumed in mid-epoch."""

import pytest
import torch
from launched import launch

pytest.importorskip("accelerate")


def test_accelerate_shares_a_sieve_s_samples_out(tmp_path):
    from accelerate_ranks import losses_of, new, work

    launch(work, 2, str(tmp_path))
    sieve = new()  # another number of ranks
    sieve.load_state_dict(torch.load(tmp_path / "custom_checkpoint_0.pkl", weights_only=True))
    left = list(sieve)
    assert 0 < len(left) < sieve.volume
    sieve.observe(torch.tensor(left), losses=losses_of(torch.tensor(left), 1))
    assert sieve.presentations[sieve.active].eq(2).all()
