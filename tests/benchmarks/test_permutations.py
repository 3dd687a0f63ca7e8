"""The study of permutations: its runs, what differs between them, what it skips, and its table."""

import json

import permutations
import pytest
import torch
from permutations import Case, Run, Setting

from spfde.nn import SparseLayer

TINY = ["--train-images", "64", "--test-images", "32", "--width", "32", "--blocks", "1", "--epochs", "4"]
TINY += ["--batch-size", "16"]


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_every_arm_runs_once(tmp_path, capsys):
    path = tmp_path / "new" / "runs.jsonl"
    wanted = permutations.cases(1, [0.5], ["2:4"])
    arguments = [str(path), "--seeds", "1", "--sparsities", "0.5", "--patterns", "2:4", *TINY]
    permutations.main(arguments)
    first = capsys.readouterr().out
    head, *runs = map(json.loads, path.read_text().splitlines())
    assert {"machine", "command", "setting"} == set(head) and len(runs) == 5 == len(wanted)
    assert "| 2:4 | 50% | learned |" in first and first.count(" seed 0:") == 5
    permutations.main(arguments)
    assert " seed 0:" not in capsys.readouterr().out and len(path.read_text().splitlines()) == 6
    with pytest.raises(ValueError, match="expected runs of .*'epochs': 10.*try another file"):
        permutations.read(path, Setting(epochs=10))


def test_runs_of_a_seed_start_from_the_same_weights_and_masks():
    setting = Setting(width=32, blocks=1)
    made = [permutations.network(Case("block:4x4", 0.5, how, 3), setting) for how in permutations.PERMUTED]
    layers = [[m for m in model.modules() if isinstance(m, SparseLayer)] for model in made]
    for plain, *others in zip(*layers, strict=True):
        assert all(torch.equal(plain.values, other.values) for other in others)
        assert all(torch.equal(plain.positions(), other.positions()) for other in others)
    assert ["permutation" in first._modules for first, _ in layers] == [False, True, True, False]
    assert ["permutation" in second._modules for _, second in layers] == [False, True, False, False]


def test_the_table_has_means_over_seeds():
    runs = [Run(Case("2:4", 0.5, "drawn", seed), accuracy, 1.0, 2.0, 0.003) for seed, accuracy in enumerate((0.5, 0.6))]
    assert permutations.table(runs).splitlines()[-1] == "| 2:4 | 50% | drawn | 55.0 ± 7.1 | 2.0 ± 0.0 | 3.0 | 2 |"
