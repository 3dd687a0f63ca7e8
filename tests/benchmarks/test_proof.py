"""The proof: arms that differ in what they say, no look at the test half, runs that go on, times put together."""

import json
import math
from dataclasses import asdict, replace

import numpy as np
import proof
import proof_arms
import proof_plot
import proof_table
import pytest
import run_file
import torch
from proof import Case
from proof_arms import ARMS, DENSE, FINAL, Setting
from proof_timing import Phase, phases, seconds

from spfde.train.build import build
from spfde.train.session import Inputs


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny(tmp_path):
    """A setting of 8x8 images in three classes."""
    random = np.random.default_rng(0)
    root = tmp_path / "images"
    root.mkdir()
    for half, count in (("train", 60), ("test", 9)):
        np.save(root / f"{half}_images.npy", random.integers(0, 256, (count, 1, 8, 8), dtype=np.uint8))
        np.save(root / f"{half}_labels.npy", np.arange(count) % 3)
    small = {"train": 32, "held_out": 12, "epochs": 2, "batch_size": 8, "crop": 1}
    return Setting(dataset="arrays", data_dir=str(root), **small)


def test_arms_share_all_but_what_they_say():
    setting = Setting(epochs=12, lr=0.2, sparse_lr=0.3)
    dense = proof_arms.recipe(DENSE, setting, 4)
    for name, arm in ARMS.items():
        own = proof_arms.recipe(name, setting, 4)
        assert own.epochs == round(12 * arm.share) and (own.seed, own.threads) == (4, 1)
        assert own.lr == pytest.approx(arm.rate * (0.3 if own.sparsity else 0.2))
        differ = {field for field, value in own.to_dict().items() if value != dense.to_dict()[field]}
        assert differ - {"epochs", "lr"} <= {*arm.fields, "init", "drop_fraction", "soft"}, name
        assert arm.same_as is None or {"freeze", "sieve", "sparsity"}.isdisjoint(arm.fields)
    assert set(FINAL) <= set(ARMS)


@pytest.mark.full
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, where it compiles
@pytest.mark.parametrize("stage", proof.STAGES)
def test_every_arm_of_a_stage_can_be_built(stage, tiny):
    setting, names = proof.STAGES[stage]
    data = tiny if setting.data_dir else replace(setting, train=64, held_out=8)
    sets = proof_arms.halves(data)
    for name in names:
        own = proof_arms.recipe(name, replace(setting, dataset=data.dataset, data_dir=data.data_dir), 0)
        assert build(Inputs(own, proof_arms.fresh(own, sets), sets.train, sets.test)).epochs == own.epochs


def test_samples_that_judge_are_held_out_of_the_training_half(tiny):
    sets = proof_arms.halves(tiny)
    whole = proof_arms.datasets(proof_arms.recipe(DENSE, tiny, 0))

    def among(part, images):
        return [bool((image == images).flatten(1).all(1).any()) for image in part.images]

    assert (len(sets.train), len(sets.test)) == (32, 12)
    assert all(among(sets.train, whole.train.images)) and all(among(sets.test, whole.train.images))
    assert not any(among(sets.test, sets.train.images)) and not any(among(sets.test, whole.test.images))
    final = proof_arms.halves(replace(tiny, train=0, held_out=0))
    assert torch.equal(final.test.images, whole.test.images) and len(final.train) == 60
    assert len(proof_arms.halves(replace(tiny, train=0)).train) == 48
    for wrong in ({"train": 50}, {"train": 0, "held_out": 60}):
        with pytest.raises(ValueError, match="expected train .* held_out of 60 samples at most, got"):
            proof_arms.halves(replace(tiny, **wrong))


def test_a_run_that_was_out_of_time_goes_on_to_the_same_figures(tiny, tmp_path):
    case = Case("DST-EE 90%, sieve 20%", 1)
    tiny = replace(tiny, epochs=3)
    with pytest.raises(proof.OutOfTime, match="after epoch 0"):
        proof.train(case, tiny, tmp_path / "parts", deadline=0)
    parts, whole = (proof.train(case, tiny, tmp_path / name, deadline=math.inf) for name in ("parts", "whole"))
    for one in (parts, whole):
        for epoch in one["epochs"]:
            assert math.fsum(epoch.pop("seconds").values()) > 0
    assert parts == whole and whole["metric"] == "test accuracy" and len(whole["epochs"]) == 3
    assert whole["epochs"][-1]["sieved"] == 6 and whole["epochs"][-1]["sparsity"] > 0.89


def test_the_program_trains_times_goes_on_and_tells(tiny, tmp_path, capsys):
    path = tmp_path / "new" / "proof.jsonl"
    options = [
        f"--{name.replace('_', '-')}={str(value).lower() if value in (True, False) else value}"
        for name, value in asdict(tiny).items()
    ]
    arms = ["--arms", f"{DENSE};dense, fused;dense, 50% of the epochs"]
    proof.main([str(path), *arms, *options, "--minutes", "0"])
    assert "out of time (before Case" in capsys.readouterr().out
    proof.main([str(path), *arms, *options])
    proof.main([str(path), *arms, *options, "--timing", "1", "--steps", "2"])
    head, *runs, timing = run_file.lines(path)
    assert {"machine", "command", "setting"} == set(head) and not list(path.with_suffix(".runs").iterdir())
    assert [line["run"]["arm"] for line in runs] == [DENSE, "dense, 50% of the epochs"]
    assert timing["timing"]["arm"] == "dense, fused" and len(timing["timing"]["phases"]) == 2
    told = capsys.readouterr().out
    assert "| arm | held-out accuracy |" in told and "dense, fused | 0." in told and "| 0.500 |" in told
    proof.main([str(path), "--arms", DENSE, *options, "--whole"])
    took = run_file.lines(path)[-1]["whole"]["seconds"]
    assert took > 0 and f"dense: {took:.1f} s in one piece, " in capsys.readouterr().out.splitlines()[-1]
    before = path.read_bytes()
    proof.main([str(path), *arms, *options])
    assert path.read_bytes() == before
    with pytest.raises(ValueError, match="expected runs of .* got .*'epochs': 2.*, try another file"):
        proof.main([str(path), *arms, *options, "--epochs", "3"])
    with pytest.raises(SystemExit):
        proof.main([str(path), "--arms", "dense;RigLet"])
    assert path.read_bytes() == before and "got RigLet" in capsys.readouterr().err


@pytest.mark.full
def test_phases_follow_the_arms_schedule(tiny):
    timed = phases("SpFDE 10% + 10%, 150% of the epochs", replace(tiny, epochs=8), steps=2)
    assert [phase.epoch for phase in timed] == list(range(12)) and all(phase.step > 0 for phase in timed)
    assert timed[0].frozen == 0 < timed[-1].frozen and len({phase.state for phase in timed}) > 2


def phase(epoch, frozen, step, dense, once=0.0):
    return Phase(epoch, frozen, 0.9, step, once, dense, 0.5)


def test_seconds_are_phase_times_against_the_dense_ones_beside_them():
    one = [phase(0, 0, 2.0, 4.0, once=1.0), phase(1, 0, 2.0, 4.0), phase(2, 3, 1.0, 4.0)]
    slow = [replace(each, step=3 * each.step, dense_step=3 * each.dense_step) for each in one]  # a busy machine
    odd = [replace(one[0], step=9.0), *one[1:]]
    assert seconds([one], [10, 10, 5], dense_step=4.0) == [10 * 2 + 1, 10 * 2, 5 * 1]
    assert seconds([one, slow, odd], [10, 10, 5], dense_step=4.0) == seconds([one], [10, 10, 5], dense_step=4.0)


def run(arm, figure, epochs, seed=0, samples=80, flops=1.0):
    """A run whose figure rises by a tenth an epoch."""
    done = [
        {"samples": samples, "flops": flops, "test_accuracy": figure - 0.1 * (epochs - 1 - i), "test_loss": None}
        for i in range(epochs)
    ]
    return {"arm": arm, "seed": seed, "metric": "test accuracy", "figure": figure, "epochs": done}


@pytest.fixture
def found():
    """Dense: 4 epochs of 10 steps of 1 s and 0.5 s; fused: 0.5 s a step; DST-EE: 4 of 5 steps of 0.6 s and 0.5 s."""
    runs = [
        *(run(DENSE, 0.9 + seed / 100, 4, seed) for seed in (0, 1)),
        *(run("dense, 50% of the epochs", 0.8 + seed / 100, 2, seed) for seed in (0, 1)),
        *(run("DST-EE 90%", 0.95 + seed / 100, 4, seed, samples=40, flops=0.25) for seed in (0, 1)),
        run("InfoBatch", 0.7, 4),
    ]
    timed = {
        "DST-EE 90%": [[phase(epoch, 0, 0.6, 1.0, once=0.5) for epoch in range(4)]],
        "dense, fused": [[phase(epoch, 0, 0.5, 1.0) for epoch in range(4)]],
    }
    return proof_table.rows(runs, timed, batch_size=8)


def test_the_table_puts_arms_beside_dense_training_in_the_same_time(found):
    lines = [line.strip("| ").split(" | ") for line in proof_table.table(found, "test accuracy").split("\n")]
    told = {arm: dict(zip(lines[0][1:], cells, strict=True)) for arm, *cells in lines[2:]}
    dense, fused, sparse, infobatch = (told[n] for n in (DENSE, "dense, fused", "DST-EE 90%", "InfoBatch"))
    assert [dense[c] for c in ("seconds", "speed-up", "over best dense")] == ["42", "1.00x", "0.48x"]
    assert [fused[c] for c in ("seconds", "speed-up", "over best dense")] == ["20", "2.10x", "1.00x"]
    assert [sparse[c] for c in ("seconds", "speed-up", "over best dense")] == ["14", "3.00x", "1.43x"]
    assert sparse["test accuracy"] == "0.9550 ± 0.0071" and sparse["FLOPs"] == "0.250"
    assert sparse["against dense"] == "+0.0500 ± 0.0000" and infobatch["against dense"] == "-0.2000"
    # 14 s are 2.8 epochs of the fastest dense variant, which reached 0.8 in 2 epochs and 0.9 in 4.
    assert sparse["dense in that time"] == f"{0.15 - 0.1 * math.log(1.4, 2):+.4f} ± 0.0000"
    # It has 0.95 after 4 epochs, 0.85 after 3; dense 0.9 after 4.
    assert [row["to 0.3% of dense"] for row in (dense, fused, sparse, infobatch)] == ["42", "20", "14", "-"]
    assert [infobatch[c] for c in ("seconds", "speed-up", "dense in that time")] == ["-"] * 3


def test_of_a_perplexity_less_is_better():
    def told(figure, losses):
        done = [{"test_accuracy": 0.0, "test_loss": loss, "samples": 8, "flops": 1.0} for loss in losses]
        return {"seed": 0, "metric": "test perplexity", "figure": figure, "epochs": done}

    clocks = [[1.0, 2.0, 4.0]]
    assert proof_table.near([told(math.e, [3.0, 1.002, 1.0])], clocks, {0: math.e}) == 3.0
    assert proof_table.near([told(9.0, [3.0, 2.0, 1.1])], clocks, {0: math.e}) is None


def test_differences_have_their_confidence_interval():
    assert proof_table.interval({0: 0.1, 1: 0.2, 2: 0.3}) == "+0.2000 ± 0.2483"
    assert (proof_table.interval({0: -0.25}), proof_table.interval({})) == ("-0.2500", "-")


def test_the_plot_has_a_point_for_every_arm_that_was_timed(found, tmp_path):
    pytest.importorskip("matplotlib")
    (axes,) = proof_plot.draw(found, "test accuracy").axes
    assert {text.get_text() for text in axes.texts} == {row.arm for row in found if row.seconds}
    with pytest.raises(SystemExit, match="expected arms that were trained and timed, got none"):
        proof_plot.draw([replace(row, seconds=None) for row in found], "test accuracy")


def test_processes_share_the_runs_out_and_rewrite_nothing(tiny, tmp_path, monkeypatch):
    path, trained = tmp_path / "proof.jsonl", []
    options = [f"--{name.replace('_', '-')}={str(value).lower()}" for name, value in asdict(tiny).items()]
    monkeypatch.setattr(proof, "train", lambda case, *rest: trained.append(case) or run(case.arm, 0.5, 1, case.seed))
    monkeypatch.setattr(proof.shutil, "rmtree", lambda out: None)
    for part in ("2/2", "1/2"):
        proof.main([str(path), "--arms", "dense;DST-EE 90%;InfoBatch", "--seeds", "2", "--part", part, *options])
    names = [(case.arm, case.seed) for case in trained]
    assert names[:3] == [("DST-EE 90%", 0), ("dense", 1), ("InfoBatch", 1)] and len(set(names)) == 6
    inode = path.stat().st_ino, path.stat().st_mtime_ns
    run_file.begin(path, tiny)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == inode


def test_a_line_that_was_cut_short_is_left_out(tiny, tmp_path):
    path = tmp_path / "proof.jsonl"
    run_file.begin(path, tiny)
    run_file.add(path, {"run": run(DENSE, 0.5, 1)})
    with path.open("a") as file:
        file.write('{"run": {"arm": "den')
    assert len(run_file.begin(path, tiny)) == 1
    assert [json.loads(line) for line in path.read_text().splitlines()] == run_file.lines(path)
