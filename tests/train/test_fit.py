import dataclasses
import json
import math
import re

import pytest
import torch
from torch.utils.data import TensorDataset

import spfde
from spfde.freezing import is_frozen
from spfde.nn import SparseLayer
from spfde.train import Recipe, fit, run_dir
from spfde.train import device as devices
from spfde.train.progress import NullProgress
from spfde.train.stats import CATEGORIES


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def runs(task, tmp_path_factory):
    """One run of each method, with run_dir."""
    recipes = (task.recipe(), task.recipe(method="dense"))
    outs = [tmp_path_factory.mktemp(recipe.method) for recipe in recipes]
    return {
        recipe.method: task.fit(dataclasses.replace(recipe, out=str(out)))
        for recipe, out in zip(recipes, outs, strict=True)
    }


@pytest.mark.parametrize("method", ["dense", "spfde"])
def test_a_run_learns(runs, method):
    assert runs[method].test_accuracy > 0.9
    assert runs[method].epochs[-1].train_loss < runs[method].epochs[0].train_loss / 3
    told = rf"{method}, \d+ epochs: test accuracy [\d.]+%, weights [\d.]+% sparse, [\d.]+ s of training, .* FLOPs"
    assert re.fullmatch(told, str(runs[method]))


@pytest.mark.parametrize("fields", [{"method": "dense"}, {}, {"layout": "channels_last"}])
def test_the_same_recipe_gives_the_same_bits(task, fields):
    recipe = task.recipe(epochs=3, **fields)
    first, second = (task.fit(recipe) for _ in range(2))
    assert equal(weights(first.model), weights(second.model))
    assert [e.train_loss for e in first.epochs] == [e.train_loss for e in second.epochs]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("stop", range(3))
def test_a_dense_run_goes_on_to_the_same_bits(task, tmp_path, layout, stop):
    recipe = task.recipe(method="dense", layout=layout, epochs=4)

    def interrupt(record):
        if record.epoch == stop:
            raise KeyboardInterrupt

    kept = dataclasses.replace(recipe, out=str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        task.fit(kept, on_epoch=interrupt)
    resumed, whole = task.fit(kept, resume=True), task.fit(recipe)
    assert equal(weights(resumed.model), weights(whole.model))
    assert [e.train_loss for e in resumed.epochs] == [e.train_loss for e in whole.epochs]


def test_a_measured_layout_is_kept_on_resume(task, tmp_path, monkeypatch):
    recipe = task.recipe(method="dense", layout="auto", epochs=2, out=tmp_path)
    monkeypatch.setattr(devices, "step_seconds", lambda *_: {"contiguous": 2.0, "channels_last": 1.0})

    def interrupt(record):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        task.fit(recipe, on_epoch=interrupt)
    monkeypatch.setattr(devices, "step_seconds", lambda *_: {"contiguous": 1.0, "channels_last": 2.0})
    assert task.fit(recipe, resume=True).layout.name == "channels_last"


def test_another_seed_gives_another_run(task):
    losses = {task.fit(task.recipe(epochs=2, seed=seed)).epochs[0].train_loss for seed in (0, 1)}
    assert len(losses) == 2


def test_the_levers_leave_what_the_recipe_says(runs, task):
    result = runs["spfde"]
    layers = [m for m in result.model.modules() if isinstance(m, SparseLayer)]
    assert [layer.nnz for layer in layers] == [round(0.4 * layer.shape.numel()) for layer in layers]
    assert len(layers) == 6
    last = result.epochs[-1]
    assert last.frozen == ("layer1.0", "layer2.0")
    assert is_frozen(result.model.layer1[0]) and not is_frozen(result.model.layer3)
    out = math.floor(0.25 * len(task.train))
    assert [(e.samples, e.sieved) for e in result.epochs] == [(len(task.train) - out, out)] * 4
    assert all(e.sparsity == pytest.approx(0.6, abs=1e-3) for e in result.epochs)
    assert {event.kind for e in result.epochs for event in e.events} == {"topology", "freeze", "sieve"}


def test_a_dense_run_has_no_lever(runs, task):
    result = runs["dense"]
    assert not any(isinstance(m, SparseLayer) for m in result.model.modules())
    for e in result.epochs:
        assert (e.samples, e.sieved, e.sparsity, e.frozen, e.events) == (len(task.train), 0, 0.0, (), ())
        assert e.seconds["kernels"] == 0


def test_work_shrinks_with_every_lever(runs, task):
    sparse, dense = runs["spfde"].epochs, runs["dense"].epochs
    assert len({e.flops for e in dense}) == 1
    frozen = [len(e.frozen) for e in sparse]
    assert [e.flops for e in sparse] == sorted((e.flops for e in sparse), reverse=True)
    assert all(
        (a.flops > b.flops) == (m < n) for a, b, m, n in zip(sparse, sparse[1:], frozen, frozen[1:], strict=False)
    )
    assert sparse[0].flops < 0.75 * dense[0].flops * sparse[0].samples / dense[0].samples


@pytest.mark.parametrize("method", ["dense", "spfde"])
def test_all_time_is_attributed(runs, method):
    for e in runs[method].epochs:
        assert set(e.seconds) == set(CATEGORIES)
        assert e.total_seconds == pytest.approx(math.fsum(e.seconds.values()), abs=1e-9)
        assert all(value >= 0 for value in e.seconds.values())
        for part in ("step", "data", "evaluation", "checkpoint"):
            assert e.seconds[part] > 0
    if method == "spfde":
        assert all(e.seconds["kernels"] > 0 and e.seconds["levers"] > 0 for e in runs[method].epochs)


@pytest.mark.parametrize("method", ["dense", "spfde"])
def test_the_run_directory_says_what_happened(runs, method):
    result = runs[method]
    out = run_dir.Path(result.recipe.out)
    read = {name: json.loads((out / name).read_text()) for name in (run_dir.RUN, run_dir.RESULT, run_dir.LAYERS)}
    run = read[run_dir.RUN]
    assert Recipe.from_dict(run["recipe"]) == result.recipe
    assert run["samples"] == {"train": 90, "test": 64}
    assert run["version"] == spfde.__version__
    assert (run["freezing"] is None) == (method == "dense")
    lines = [json.loads(line) for line in (out / run_dir.METRICS).read_text().splitlines()]
    assert lines == [e.to_dict() for e in result.epochs]
    assert read[run_dir.RESULT] == json.loads(json.dumps(result.to_dict()))
    assert read[run_dir.RESULT]["total_seconds"] == pytest.approx(sum(line["total_seconds"] for line in lines))
    assert [row["name"] for row in read[run_dir.LAYERS]] == [row.name for row in spfde.summary(result.model).rows]
    assert len(run_dir.checkpoints(out)) == 4


@pytest.mark.parametrize("method", ["dense", "spfde"])
def test_an_epoch_knows_each_layers_sparsity_and_the_memory(runs, method):
    rows = spfde.summary(runs[method].model).rows
    last = runs[method].epochs[-1]
    assert list(last.layers) == [row.name for row in rows]
    assert list(last.layers.values()) == pytest.approx([row.sparsity for row in rows])
    model = sum(p.numel() * p.element_size() for p in runs[method].model.parameters())
    assert all(e.memory > model for e in runs[method].epochs)


def test_layers_tell_the_kernel_of_a_training_batch(runs):
    layers = [m for m in runs["spfde"].model.modules() if isinstance(m, SparseLayer)]
    assert {layer._last()[2][0] for layer in layers} == {16}


def test_any_lever_may_be_off(task):
    for off in ({"sparsity": 0}, {"freeze": 0}, {"sieve": 0}, {"drop_fraction": 0.0}):
        kinds = {event.kind for e in task.fit(task.recipe(epochs=3, **off)).epochs for event in e.events}
        gone = {"sparsity": "topology", "drop_fraction": "topology"}.get(next(iter(off)), next(iter(off)))
        assert kinds == {"topology", "freeze", "sieve"} - {gone}


def test_a_model_that_is_sparse_already_stays_as_it_is(task):
    model = spfde.sparsify(task.model(), 0.8)
    assert task.fit(task.recipe(epochs=2, freeze=0), model).epochs[-1].sparsity == pytest.approx(0.8, abs=1e-3)


def test_the_callers_random_state_and_threads_come_back(task):
    torch.manual_seed(5)
    random, threads = torch.get_rng_state(), torch.get_num_threads()
    result = task.fit(task.recipe(epochs=2, freeze=0, threads=2))
    assert result.recipe.threads == 2
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.get_num_threads() == threads


def test_the_library_is_silent_and_the_watcher_is_told(task, capfd):
    calls = []

    class Watcher(NullProgress):
        def start(self, recipe, first_epoch, note):
            calls.append(("start", first_epoch, note))

        def step(self, epoch, step, steps, samples, loss):
            calls.append(("step", epoch, step, steps, samples))

        def event(self, epoch, event):
            calls.append(("event", epoch, event.kind))

        def epoch(self, record):
            calls.append(("epoch", record.epoch))

        def close(self):
            calls.append(("close",))

    seen = []
    result = task.fit(task.recipe(epochs=2, freeze=0), progress=Watcher(), on_epoch=seen.append)
    assert capfd.readouterr() == ("", "")
    assert tuple(seen) == result.epochs
    assert calls[0] == ("start", 0, "memory format contiguous: as the recipe says")
    assert calls[-1] == ("close",) and ("event", 0, "topology") in calls
    steps = [call for call in calls if call[0] == "step"]
    assert sum(call[4] for call in steps) == sum(e.samples for e in result.epochs)
    assert all(call[3] == 5 for call in steps) and ("epoch", 1) in calls


def test_any_data_set_of_pairs_will_do(task):
    pairs = [(image, int(target)) for image, target in zip(task.train.images, task.train.targets, strict=True)]
    recipe = task.recipe(epochs=2, freeze=0)
    by_item = fit(recipe, model=task.model(), train_set=pairs, test_set=task.test)
    whole = TensorDataset(task.train.images, task.train.targets)
    at_once = fit(recipe, model=task.model(), train_set=whole, test_set=task.test)
    assert equal(weights(by_item.model), weights(at_once.model))


def test_data_without_model_or_test_data_is_refused(task):
    with pytest.raises(ValueError, match="expected a model for your data set, got none, try model="):
        fit(task.recipe(), train_set=task.train, test_set=task.test)
    with pytest.raises(ValueError, match="expected both train_set and test_set, got one of them, try"):
        fit(task.recipe(), model=task.model(), train_set=task.train)


def test_a_freezing_target_out_of_reach_is_told_in_the_recipes_words(task):
    with pytest.raises(ValueError, match=r"expected flops_reduction <= .*\(in a recipe flops_reduction is freeze"):
        task.fit(task.recipe(freeze=0.9))


def test_an_unusable_directory_fails_before_anything_is_loaded(task, tmp_path):
    (tmp_path / "file").touch()

    class Untouchable:
        def __len__(self):
            raise AssertionError("the data set was read")

    with pytest.raises(ValueError, match="expected a run directory that can be written"):
        fit(task.recipe(out=tmp_path / "file" / "x"), model=task.model(), train_set=Untouchable(), test_set=task.test)


def test_a_run_is_replaced_only_when_asked_and_only_by_one_that_starts(task, tmp_path):
    recipe = task.recipe(epochs=2, freeze=0, out=tmp_path)
    task.fit(recipe)
    before = (tmp_path / run_dir.RESULT).read_bytes()
    with pytest.raises(ValueError, match="expected a run directory without a run"):
        task.fit(recipe)
    with pytest.raises(ValueError, match="expected flops_reduction"):
        task.fit(task.recipe(epochs=2, freeze=0.9, out=tmp_path), overwrite=True)
    assert (tmp_path / run_dir.RESULT).read_bytes() == before
    task.fit(task.recipe(epochs=1, freeze=0, out=tmp_path), overwrite=True)
    assert json.loads((tmp_path / run_dir.RESULT).read_text())["epochs"] == len(run_dir.checkpoints(tmp_path)) == 1


def test_several_processes_are_refused_before_anything_is_written(task, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"expected RANK for each of WORLD_SIZE=2 processes, got none, try torchrun"):
        task.fit(dataclasses.replace(task.recipe(), out=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()
