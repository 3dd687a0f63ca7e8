"""The examples as a user runs them, each in a process of its own, and the notebook: part of `make test-integrations`.

Not collected by a plain run of the tests, whose tests/docs/test_examples.py runs the shortest of them.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]

PRINTED = {
    "own_loop": "test accuracy ",
    "preset": "test accuracy ",
    "freeze_and_cache": "66.7% of 768 found",
    "ranks": "2 ranks, 6554 stored weights, masks alike: True",
    "deploy": "exported, dense: ",
    "online": "mirrored: ",
}


def test_every_example_is_run():
    assert sorted(PRINTED) == sorted(path.stem for path in EXAMPLES.glob("*.py"))


@pytest.mark.parametrize("name", PRINTED)
def test_the_example_runs(name, tmp_path):
    begin = TORCHRUN if name == "ranks" else []
    command = [sys.executable, *begin, str(EXAMPLES / f"{name}.py")]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert PRINTED[name] in done.stdout
