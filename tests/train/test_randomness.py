import random

import numpy as np
import pytest
import torch

from spfde.train import data


def drawn():
    return torch.randn(3).tolist(), np.random.randn(3).tolist(), [random.gauss(0, 1) for _ in range(3)]


def test_generators_go_on_from_where_they_were_with_a_half_used_pair(tmp_path):
    np.random.randn(), random.gauss(0, 1)  # both keep the second of a pair for later
    torch.save(data.random_state(), tmp_path / "state")
    expected = drawn()
    data.restore_random(torch.load(tmp_path / "state", weights_only=True))
    assert drawn() == expected


@pytest.mark.parametrize("other", [(4, 0), (3, 1), (3,), (0, 3)])
def test_a_key_gives_the_same_numbers_and_another_one_others(other):
    with data.isolated():
        data.seed(3, 0)
        first = drawn()
        data.seed(3, 0)
        assert drawn() == first
        data.seed(*other)
        second = drawn()
    assert all(a != b for a, b in zip(first, second, strict=True))


def test_isolated_generators_are_as_they_were_even_after_an_error():
    before = data.random_state()
    with pytest.raises(KeyError), data.isolated():
        data.seed(1)
        drawn()
        raise KeyError
    after = data.random_state()
    assert torch.equal(before["torch"], after["torch"])
    assert torch.equal(before["numpy"][1], after["numpy"][1]) and before["numpy"][2:] == after["numpy"][2:]
    assert before["python"] == after["python"]
