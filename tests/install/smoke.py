"""What an installed spfde must do with numpy and torch alone: the README's example, a sentence for the rest.

Not collected by a plain run: cibuildwheel and nox run it on wheels, where there is nothing but pytest besides.
"""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_readme_s_example_runs():
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    done = subprocess.run([sys.executable, "-c", code], cwd="/", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "layer1.0.conv1" in done.stdout


@pytest.mark.skipif(find_spec("typer") is not None, reason="the extra cli is installed")
def test_the_command_says_what_it_lacks():
    done = subprocess.run([sys.executable, "-m", "spfde", "env"], cwd="/", capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip().endswith("try pip install spfde[cli]") and len(done.stderr.splitlines()) == 1
