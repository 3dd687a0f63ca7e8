"""The sweep can fail: mistakes of the size that models have made are further off than the yardstick allows."""

from __future__ import annotations

import pytest
import torch
from models_sweep import stages, zoo_torch
from models_sweep.dense_copy import DenseCopy, results, sparse_layers, worst
from models_sweep.stages import check_growth

MLP = zoo_torch.ZOO["torch: MLP"]


@pytest.fixture
def pair():
    dense, sparse = stages.sparse_of(MLP)
    return sparse, DenseCopy.of(dense, sparse), MLP.inputs()


@pytest.mark.parametrize("stage", stages.STAGES)
def test_a_right_model_passes(stage: str) -> None:
    assert stages.STAGES[stage](MLP)


def test_a_weight_that_is_off_is_noticed(pair) -> None:
    sparse, reference, batch = pair
    layer = next(iter(sparse_layers(sparse).values()))
    with torch.no_grad():
        layer.values[0] += 0.01
    with pytest.raises(AssertionError, match="too far off"):
        worst(results(sparse, batch), *reference.run(batch))


def test_a_gradient_that_is_off_or_missing_is_noticed(pair) -> None:
    sparse, reference, batch = pair
    found, exact = results(sparse, batch), reference.run(batch)
    name = next(n for n in found if n.endswith("weight"))
    with pytest.raises(AssertionError, match="too far off"):
        worst(found | {name: found[name] * 1.01}, *exact)
    with pytest.raises(AssertionError, match="not finite"):
        worst(found | {name: found[name] * float("nan")}, *exact)
    del found[name]
    with pytest.raises(AssertionError, match="only one has"):
        worst(found, *exact)


def test_growth_at_another_place_than_the_largest_gradient_is_noticed() -> None:
    gradient, old = torch.tensor([0.0, 3.0, 1.0]), torch.tensor([True, False, False])
    check_growth("layer", [gradient.double(), gradient], old, torch.tensor([False, True, False]))
    with pytest.raises(AssertionError, match="grew at"):
        check_growth("layer", [gradient.double(), gradient], old, torch.tensor([False, False, True]))
