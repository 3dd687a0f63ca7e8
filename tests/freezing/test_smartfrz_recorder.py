"""Records of reference trainings, and the command that makes them, fits and judges."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from spfde import cli
from spfde.analysis import cka
from spfde.cli import smartfrz as command
from spfde.data import Images
from spfde.freezing.smartfrz.history import SAMPLES, SNAPSHOTS
from spfde.freezing.smartfrz.predictor import load_predictor
from spfde.freezing.smartfrz.recorder import Record, Recorder
from spfde.levers import EpochEnd, EpochStart
from spfde.train import Recipe, fit, references


class Outputs:
    """Keeps what a layer returns for the probe after every epoch."""

    needs = (EpochEnd,)

    def __init__(self, probe):
        self.probe, self.seen = probe, []

    def on(self, event, run):
        model = run.model.eval()
        with torch.no_grad():
            self.seen.append(model[1](model[0](self.probe)))

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def images(count: int) -> Images:
    return Images(torch.randn(count, 1, 4, 4), torch.arange(count) % 2)


@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_records_windows_and_the_alignment_with_the_end(sparsity, tmp_path):
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Flatten(), nn.Linear(128, 2))
    probe = torch.randn(130, 1, 4, 4)
    recorder, outputs = Recorder(probe), Outputs(probe[:128])
    levers = {"sparsity": sparsity, "freeze": 0.0, "sieve": 0.0} if sparsity else {}
    method = "spfde" if sparsity else "dense"
    recipe = Recipe(method=method, epochs=3, batch_size=2, lr=0.01, layout="contiguous", **levers)
    result = fit(recipe, model=model, train_set=images(64), test_set=images(8), levers=[recorder, outputs])
    made = recorder.record(family="chain")
    assert made.layers == ("0", "1") and made.about == {"family": "chain"}
    assert made.windows.shape == (2, 3, SNAPSHOTS, SAMPLES) and np.isfinite(made.windows).all()
    expected = [cka(each, outputs.seen[-1], batch_size=64) for each in outputs.seen]
    np.testing.assert_allclose(made.alignment[1], expected, rtol=1e-4)
    assert made.alignment[:, -1] == pytest.approx(1)
    stored = result.model[1].values if sparsity else result.model[1].weight
    final = {round(value, 3) for value in stored.flatten().tolist()}
    newest = {round(value, 3) for value in made.windows[1, -1, -1].tolist()}
    assert len(newest & final) > len(newest) / 4  # one step apart, and in sparse layers the move of the mask
    path = tmp_path / "record.npz"
    with path.open("wb") as file:
        made.write(file)
    read = Record.load(path)
    assert read.about == made.about and read.layers == made.layers
    assert np.array_equal(read.windows, made.windows) and np.array_equal(read.alignment, made.alignment)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="expected the record of a reference training in .*; try deleting it"):
        Record.load(path)


def test_what_a_recorder_refuses():
    with pytest.raises(ValueError, match="expected at least 64 samples to probe with, got 8; try more"):
        Recorder(torch.zeros(8, 3))
    with pytest.raises(ValueError, match="expected at least 30 steps in an epoch, got 29; try smaller batches"):
        Recorder(torch.zeros(64, 3)).on(EpochStart(0, 29), None)


def test_references_are_of_every_family_first():
    first = references.references(8, ("scans", "fashion"))
    assert [each.family for each in first] == [*references.FAMILIES] * 2
    assert {(each.sparsity, each.seed) for each in first} == {(0.0, 0)}
    every = references.references(32, ("scans", "fashion"))
    assert len({each.name for each in every}) == 32
    for family in references.FAMILIES.values():
        assert family.make()(torch.zeros(2, 1, family.side, family.side)).shape == (2, 10)
    with pytest.raises(ValueError, match=r"expected runs in \[1, 16\], got 17, try 16"):
        references.references(17, ("scans",))
    with pytest.raises(ValueError, match="expected a data set to be one of fashion, scans, got 'mnist'"):
        references.record(dataclasses.replace(first[0], dataset="mnist"), None, images=960, epochs=3)


def made_up(reference, data_dir, *, images, epochs):
    """A record whose layers stand still once they are settled."""
    generator = torch.Generator().manual_seed(reference.seed)
    settled = torch.rand(3, 1, generator=generator) < torch.linspace(0, 1, epochs)
    speed = torch.where(settled, 0.02, 0.2)[..., None, None]
    windows = torch.randn(3, epochs, SNAPSHOTS, SAMPLES, generator=generator).cumsum(2) * speed + 1
    about = {**dataclasses.asdict(reference), "epochs": epochs, "test_accuracy": 0.5}
    return Record(about, ("a", "b", "c"), windows.numpy(), np.where(settled, 1.0, 0.5))


def test_the_command_goes_on_where_it_stopped_and_logs_what_it_found(tmp_path, monkeypatch):
    made = []

    def stopping(reference, *args, **kwargs):
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(reference.name)
        return made_up(reference, *args, **kwargs)

    def run():
        arguments = f"smartfrz train --out {tmp_path} --runs 8 --epochs 4 --fit-epochs 1 --level 0.9"
        return CliRunner().invoke(cli.build("smartfrz"), arguments.split(), env={"COLUMNS": "200"})

    monkeypatch.setattr(command, "record", stopping)
    assert run().exit_code == 130 and len(list((tmp_path / "runs").iterdir())) == 3
    monkeypatch.setattr(
        command, "record", lambda each, *args, **how: made.append(each.name) or made_up(each, *args, **how)
    )
    result = run()
    assert result.exit_code == 0, result.output
    assert len(made) == len(set(made)) == 8
    log = json.loads((tmp_path / "predictor.json").read_text())
    splits = {"other runs", *(f"family {family}" for family in references.FAMILIES)}
    assert set(log["scores"]) == splits and all(f"{split}:" in result.output for split in splits)
    for rules in log["scores"].values():
        assert set(rules) == {"predictor", "never", "slope", "schedule"}
    assert log["scores"]["other runs"]["never"]["precision"] is None
    held = [each for each in log["references"] if each["held_out"]]
    assert len(log["references"]) == 8 and 0 < len(held) < 8 and log["level"] == 0.9
    assert load_predictor(tmp_path / "predictor.npz").form == "quantiles"
    monkeypatch.setattr(command, "fit_predictor", None)  # everything is kept
    assert run().exit_code == 0
    other = CliRunner().invoke(cli.build("smartfrz"), f"smartfrz train --out {tmp_path} --epochs 5".split())
    assert isinstance(other.exception, ValueError) and "expected 5 epochs in" in str(other.exception)
    alone = CliRunner().invoke(cli.build("smartfrz"), f"smartfrz train --out {tmp_path} --images 1000".split())
    assert isinstance(alone.exception, ValueError) and "--images only with --data-dir" in str(alone.exception)
