"""Who imports whom: the contracts of pyproject.toml hold, as `make lint` checks too."""

import pytest

importlinter = pytest.importorskip("importlinter.cli")


def test_no_import_goes_up_or_round():
    assert importlinter.lint_imports(no_logo=True) == 0
