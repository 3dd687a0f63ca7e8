"""A user's script under mypy --strict and pyright's strict mode: part of `make test-integrations`."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("user_script.py")
# Pyright would ask the first python on PATH where torch is, whichever runs it.
COMMANDS = {"mypy": ["mypy", "user_script.py"], "pyright": ["basedpyright", "--pythonpath", sys.executable]}


@pytest.fixture
def folder(tmp_path):
    """The script alone, with settings that say where spfde is."""
    shutil.copy(SCRIPT, tmp_path)
    settings = {"include": ["user_script.py"], "extraPaths": [str(ROOT)], "typeCheckingMode": "strict"}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    # silent: of a package that is installed, as spfde is for a user, types are read and errors are not reported
    (tmp_path / "mypy.ini").write_text(
        f"[mypy]\nstrict = True\nmypy_path = {ROOT}\n[mypy-spfde.*]\nfollow_imports = silent\n"
    )
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_a_user_s_script_is_clean(command, folder):
    done = subprocess.run([sys.executable, "-m", *COMMANDS[command]], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_type_is_found(command, folder):
    with (folder / "user_script.py").open("a") as script:
        script.write("wrong: int = layer.mask()\n")
    done = subprocess.run([sys.executable, "-m", *COMMANDS[command]], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 1 and '"Tensor"' in done.stdout and '"int"' in done.stdout
