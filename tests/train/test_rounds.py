"""Method imp: rounds, what is rewound, the table, and going on after the last round that was kept."""

import json
from pathlib import Path

import pytest
import torch
from train.runs import Stop, bits, figures, same

from spfde.nn import SparseLayer
from spfde.report.run import read
from spfde.train import CheckpointError, Recipe, run_dir
from spfde.train.checkpoint import load

IMP = {
    "method": "imp",
    "epochs": 3,
    "rounds": 2,
    "sparsity": 0.75,
    "rewind_epoch": 1,
    "batch_size": 16,
    "lr": 0.05,
    "layout": "contiguous",
}
EPOCHS = 3 + 2 * 2


def imp(**fields) -> Recipe:
    return Recipe(**{**IMP, **fields})


def masks(model) -> dict[str, torch.Tensor]:
    return {name: layer.mask() for name, layer in model.named_modules() if isinstance(layer, SparseLayer)}


def stop_after(epoch: int):
    def stop(record):
        if record.epoch == epoch:
            raise Stop

    return stop


@pytest.fixture(scope="module")
def whole(task, tmp_path_factory):
    out = tmp_path_factory.mktemp("imp") / "whole"
    return out, task.fit(imp(out=out))


def test_rounds_get_sparser_and_the_rate_goes_back_to_where_they_start(whole):
    out, result = whole
    assert [row["round"] for row in result.rounds] == [0, 1, 2]
    assert [row["sparsity"] for row in result.rounds] == pytest.approx([0, 0.5, 0.75], abs=0.01)
    assert [record.epoch for record in result.epochs] == list(range(EPOCHS))
    rates = [record.lr for record in result.epochs]
    assert rates[0] > rates[1] > rates[2]
    assert rates[3:] == pytest.approx([*rates[1:3], *rates[1:3]])
    assert result.epochs[2].sparsity == 0 and result.epochs[-1].sparsity == pytest.approx(0.75, abs=0.01)
    parts = [result.epochs[:3], result.epochs[3:5], result.epochs[5:]]
    for row, part in zip(result.rounds, parts, strict=True):
        assert row["test_accuracy"] == part[-1].test_accuracy
        assert row["flops"] == pytest.approx(sum(record.flops for record in part))
        assert row["training_seconds"] == pytest.approx(sum(record.training_seconds for record in part))
    assert json.loads((out / run_dir.ROUNDS).read_text()) == list(result.rounds)


def test_weights_go_back_to_the_epoch_or_stay(task):
    rewound, kept = (task.fit(imp(rewind=rewind, rounds=1)).epochs[3] for rewind in ("weights", "learning-rate"))
    assert kept.train_loss < rewound.train_loss  # it starts from what was trained to the end


def test_the_dense_round_is_the_dense_run(task, whole):
    dense = task.fit(imp().baseline())
    assert figures(whole[1].epochs[0]) == figures(dense.epochs[0])  # the next epoch has a new optimizer


@pytest.mark.parametrize(("epoch", "rounds"), [(2, 0), (3, 1), (4, 1), (6, 2)])
def test_stopped_in_any_round_and_resumed(epoch, rounds, task, whole, tmp_path):
    with pytest.raises(Stop):
        task.fit(imp(out=tmp_path), on_epoch=stop_after(epoch))
    kept = run_dir.checkpoints(tmp_path)
    resumed = task.fit(imp(out=tmp_path), resume=bool(kept))
    assert len(kept) == rounds
    assert same(bits(resumed.model), bits(whole[1].model)) and same(masks(resumed.model), masks(whole[1].model))
    assert [figures(e) for e in resumed.epochs] == [figures(e) for e in whole[1].epochs]
    lines = [json.loads(line) for line in (tmp_path / run_dir.METRICS).read_text().splitlines()]
    assert lines == [e.to_dict() for e in resumed.epochs]
    theirs, ours = (load(run_dir.checkpoints(out)[-1])["session"] for out in (tmp_path, whole[0]))
    assert same({**theirs, "table": 0}, {**ours, "table": 0})  # whose rounds name seconds


def test_resuming_a_finished_run_trains_nothing(task, whole):
    out, result = whole
    seen = []
    again = task.fit(imp(out=out), resume=True, on_epoch=seen.append)
    assert not seen and again.rounds == result.rounds and same(bits(again.model), bits(result.model))


def test_only_the_newest_rounds_are_kept_if_the_recipe_says_so(task, tmp_path):
    task.fit(imp(out=tmp_path, keep_checkpoints=1, epochs=1, rewind_epoch=0))
    assert [path.name for path in run_dir.checkpoints(tmp_path)] == ["epoch-002.pt"]


def test_another_recipe_or_network_is_refused(task, whole):
    out, _ = whole
    with pytest.raises(CheckpointError, match=r"rounds: 2, got 3"):
        task.fit(imp(out=out, rounds=3), resume=True)
    with torch.random.fork_rng(devices=[]):
        other = type(task.model())(8, 4, in_channels=1, width=0.25)
    with pytest.raises(CheckpointError, match="expected the checkpoint of this network"):
        task.fit(imp(out=out), model=other, resume=True)


def test_a_damaged_round_is_set_aside_and_the_one_before_goes_on(task, whole, tmp_path):
    with pytest.raises(Stop):
        task.fit(imp(out=tmp_path), on_epoch=stop_after(5))
    newest = run_dir.checkpoints(tmp_path)[-1]
    newest.write_bytes(newest.read_bytes()[:100])
    with pytest.warns(RuntimeWarning, match="epoch-004.pt.refused"):
        resumed = task.fit(imp(out=tmp_path), resume=True)
    assert same(bits(resumed.model), bits(whole[1].model))


def test_a_report_takes_such_a_run(whole):
    assert read(whole[0]).epochs[-1].epoch == EPOCHS - 1


@pytest.mark.parametrize(
    ("fields", "refused"),
    [
        ({"rewind_epoch": 3}, "rewind_epoch"),
        ({"sparsity": 0}, "sparsity"),
        ({"checkpoint_every_steps": 5}, "checkpoint_every_steps"),
        ({"freeze": 0.1}, "freeze"),
        ({"topology": "rigl"}, "topology"),
        ({"init": "snip"}, "init"),
        ({"method": "spfde", "rounds": 3, "rewind_epoch": 0}, "rounds"),
    ],
)
def test_what_imp_does_not_have_is_refused(fields, refused):
    with pytest.raises(ValueError, match=f"expected {refused}"):
        imp(**fields)


def test_a_recipe_knows_how_long_it_is_and_where_a_round_starts():
    recipe = imp()
    assert recipe.all_epochs == EPOCHS and Recipe(epochs=4).all_epochs == 4
    assert [recipe.passed(epochs) for epochs in (0.5, 2.5, 3.5, 4.5, 5.5)] == pytest.approx(
        [0.5 / 3, 2.5 / 3, 1.5 / 3, 2.5 / 3, 1.5 / 3]
    )
    assert Recipe(epochs=4).passed(3) == 0.75


def test_files_of_rounds_go_with_the_run(task, tmp_path: Path):
    task.fit(imp(out=tmp_path, epochs=1, rewind_epoch=0))
    task.fit(Recipe(method="dense", epochs=1, batch_size=16, layout="contiguous", out=tmp_path), overwrite=True)
    assert not (tmp_path / run_dir.ROUNDS).exists()
