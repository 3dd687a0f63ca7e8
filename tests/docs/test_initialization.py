"""The examples of docs/initialization.md and docs/topology.md run as printed, and their tables name what there is."""

import inspect
import re
from pathlib import Path

import pytest
import torch

import spfde
from spfde.topology import INITS, METHODS

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {name: (DOCS / f"{name}.md").read_text(encoding="utf-8") for name in ("initialization", "topology")}


@pytest.fixture(autouse=True)
def registries():
    """What an example registers is gone afterwards."""
    before = dict(METHODS), dict(INITS)
    yield
    for registry, old in zip((METHODS, INITS), before, strict=True):
        registry.clear()
        registry.update(old)


def run(page):
    space = {"torch": torch, "spfde": spfde}
    for code in re.findall(r"```python\n(.*?)```", PAGES[page], re.S):
        exec(compile(code, f"{page}.md", "exec"), space)
    return space


def test_the_examples_run():
    assert [row.number for row in run("initialization")["table"]] == [0, 1, 2]
    assert run("topology")["topology"].noise == 0.3


def test_every_init_and_every_method_has_a_row():
    rows = re.findall(r'^\| `"([\w-]+)"`.* \| .*\|', PAGES["initialization"].split("## Lottery")[0], re.M)
    assert rows == [*INITS]
    rows = re.findall(r"^\| \[`(\w+)`\]\(topology/([\w-]+)\.md\) \|", PAGES["topology"], re.M)
    assert sorted(rows) == sorted((method.__name__, name) for name, method in METHODS.items())


@pytest.mark.parametrize("name", list(METHODS))
def test_the_page_of_a_method_has_its_options_as_they_are(name):
    page = (DOCS / "topology" / f"{name}.md").read_text(encoding="utf-8")
    assert "*Source.*" in page and "*When it does not pay.*" in page and f"--topology {name}`" in page
    given = inspect.signature(METHODS[name]).parameters
    own = [key for key in ("every", "drop_fraction") if key in given] + list(METHODS[name].options())
    told = re.findall(r"^\| `(\w+)` \| (\S+) \| .+ \|$", page, re.M)
    assert told == [(key, str(given[key].default)) for key in own]
