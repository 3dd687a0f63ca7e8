"""Every sieve in the trainer, by its name in a recipe."""

from pathlib import Path

import pytest
from train.runs import bits, last_state, recipe, same, stop_within

from spfde.sieving import METHODS, Circular

OPTIONS = {"once": {"at": 1}, "forgetting": {"at": 1}, "el2n": {"at": 1}, "grand": {"at": 1}}


@pytest.mark.parametrize("name", sorted(METHODS))
def test_trains_and_resumes_within_an_epoch_to_the_same_bits(name, task, tmp_path):
    fields = {"epochs": 3, "batch_size": 16, "lr": 0.05, "freeze": 0, "sieve": 0.3, "interval": 1}
    fields |= {"sieve_by": name, "sieve_options": OPTIONS.get(name, {})}
    whole = task.fit(recipe(out=tmp_path / "whole", **fields))
    assert any(record.sieved > 0 for record in whole.epochs)
    assert any(event.kind == "sieve" and event.reason for record in whole.epochs for event in record.events)
    if name in ("kakurenbo", "grand", "infobatch"):  # passes of its own, and weighted losses
        stop_within(2, 2, tmp_path / "parts", fit=task.fit, fields=fields)
        parts = task.fit(recipe(out=tmp_path / "parts", **fields), resume=True)
        assert same(bits(parts.model), bits(whole.model))
        assert same(state(tmp_path / "parts"), state(tmp_path / "whole"))


def test_a_sieve_of_another_data_set_or_training_is_refused(task):
    fields = {"epochs": 1, "batch_size": 16, "freeze": 0, "sieve": 0}
    samples = len(task.train)
    for other in (samples - 1, samples + 1):
        with pytest.raises(ValueError, match=f"over the {samples} training samples, got one over {other}"):
            task.fit(recipe(**fields), levers=[Circular(other)])
    used = Circular(samples)
    used.end_epoch()
    with pytest.raises(ValueError, match="at epoch 0 or before, got one at epoch 1; try a new one"):
        task.fit(recipe(**fields), levers=[used])


def state(path: Path) -> dict:
    """The last checkpoint; samples without a score, NaN, have -1."""
    found = last_state(path)
    for lever in found["levers"]:
        lever["state"] |= {k: v.nan_to_num(-1.0) for k, v in lever["state"].items() if k in ("scores", "norms")}
    return found
