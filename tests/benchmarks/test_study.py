"""The study of mask methods: its runs, what it skips, what it refuses, and its table."""

import json
from dataclasses import asdict, replace

import pytest
import study
from study import ALL, DENSE, Case, Run, Setting

TINY = Setting(train_images=32, test_images=16, side=8, epochs=1, batch_size=16)


def run(method: str, sparsity: float, seed: int, accuracy: float, seconds: float = 1.0, flops: float = 1.0) -> Run:
    return Run(Case(method, sparsity, seed), accuracy, 1.0, sparsity, seconds, flops)


def trained(monkeypatch) -> list[Case]:
    """Replaces training by a note of the case."""
    seen = []

    def train(case, setting):
        seen.append(case)
        return run(case.method, case.sparsity, case.seed, 0.5)

    monkeypatch.setattr(study, "train", train)
    return seen


@pytest.mark.parametrize("method", ALL)
def test_runs_differ_in_nothing_but_masks(method):
    setting = Setting(epochs=7, lr=0.2)
    recipe = study.recipe(Case(method, 0.9, 4), setting)
    dense = study.recipe(Case(DENSE, 0.0, 4), setting)
    assert (recipe.epochs, recipe.lr, recipe.seed, recipe.threads) == (7, 0.2, 4, 1)
    assert recipe.freeze == recipe.sieve == 0
    assert replace(recipe.baseline(), distribution="uniform") == dense


def test_a_finished_run_is_not_run_again(monkeypatch, tmp_path):
    seen, path = trained(monkeypatch), tmp_path / "new" / "study.jsonl"
    wanted = study.cases(2, [0.9], ["SET", DENSE])
    assert [r.case for r in study.study(path, wanted[:3], TINY)] == wanted[:3] == seen
    with path.open("a") as file:
        file.write('{"case": {"method": "SE')  # a run that was killed while it wrote
    head = path.read_text().split("\n")[0]
    assert [r.case for r in study.study(path, wanted, TINY)] == wanted[3:]
    assert seen == wanted and [r.case for r in study.read(path, TINY)] == wanted
    assert path.read_text().split("\n")[0] == head
    assert {"machine", "command", "setting"} == set(json.loads(head))


def test_a_file_of_another_setting_is_refused_and_left_alone(monkeypatch, tmp_path):
    seen, path = trained(monkeypatch), tmp_path / "study.jsonl"
    list(study.study(path, [Case("SET", 0.9, 0)], TINY))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"expected runs of .*'epochs': 2.*, got .*'epochs': 1.*, try another file"):
        list(study.study(path, [Case("SET", 0.9, 0)], replace(TINY, epochs=2)))
    assert path.read_bytes() == before and len(seen) == 1


def test_the_table_has_means_deviations_and_shares_of_the_dense_flops():
    runs = [
        run("RigL", 0.9, 0, 0.5, seconds=1.0, flops=1.0),
        run("RigL", 0.9, 1, 0.6, seconds=3.0, flops=3.0),
        run("SET", 0.9, 0, 0.25, flops=4.0),
        run("RigL", 0.8, 0, 0.75, flops=5.0),
        run(DENSE, 0.0, 0, 0.875, seconds=9.0, flops=10.0),
    ]
    assert study.table(runs).split("\n") == [
        "| method | sparsity | test accuracy | seconds | FLOPs | seeds |",
        "|---|---|---|---|---|---|",
        "| dense | 0% | 87.5 | 9.0 | 1.000 | 1 |",
        "| RigL | 80% | 75.0 | 1.0 | 0.500 | 1 |",
        "| SET | 90% | 25.0 | 1.0 | 0.400 | 1 |",
        "| RigL | 90% | 55.0 ± 7.1 | 2.0 ± 1.4 | 0.200 | 2 |",
    ]
    assert "| SET | 90% | 25.0 | 1.0 | - | 1 |" in study.table(runs[2:3])


def test_the_program_trains_and_prints_the_table(tmp_path, capsys):
    path = tmp_path / "study.jsonl"
    options = [f"--{name.replace('_', '-')}={value}" for name, value in asdict(TINY).items()]
    study.main([str(path), "--seeds", "1", "--sparsities", "0.8", "--methods", f"{DENSE},MEST EM&S", *options])
    dense, sparse = study.read(path, TINY)
    assert sparse.sparsity == pytest.approx(0.8, abs=0.01) and dense.sparsity == 0
    assert 0 < sparse.flops < dense.flops and sparse.cpu_seconds > 0
    assert study.table([dense, sparse]) in capsys.readouterr().out
    with pytest.raises(SystemExit):
        study.main([str(path), "--methods", "RigLet"])
    assert "got RigLet" in capsys.readouterr().err


@pytest.mark.full
def test_replicas_in_two_processes_end_as_one_sparse_model():
    setting = replace(TINY, epochs=3)
    dense, pair = (study.train(Case(*case, 0), setting) for case in ((DENSE, 0.0), ("P-GaP x 2", 0.8)))
    assert pair.sparsity == pytest.approx(0.8, abs=0.01) and 0 <= pair.test_accuracy <= 1 and pair.cpu_seconds > 0
    assert dense.flops < pair.flops < 2 * dense.flops  # both replicas', each with half of its layers dense
