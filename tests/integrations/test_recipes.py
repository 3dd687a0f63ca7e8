"""The loop that docs/distributed.md gives for Accelerate, on two processes: alike on both, and resumed to the bit."""

import pytest
import torch
from launched import launch

pytest.importorskip("accelerate")


def test_three_levers_in_accelerate_s_loop(tmp_path):
    from recipe_ranks import work

    launch(work, 2, str(tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert all(first[name].equal(second[name]) for name in first)
