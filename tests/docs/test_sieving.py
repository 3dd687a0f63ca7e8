"""Every sieve has a page, with its options as they are, its source and when it does not pay."""

import inspect
import re
import textwrap
from pathlib import Path

import pytest
import torch
from torch.utils.data import Subset, TensorDataset

from spfde.sieving import METHODS

DOCS = Path(__file__).parents[2] / "docs"


def text(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def test_the_index_lists_every_sieve():
    index = text("sieving.md")
    assert re.findall(r"\(sieving/(\w+)\.md\)", index) == list(METHODS)
    assert all(f'"{name}"' in index for name in METHODS)
    assert sorted(path.stem for path in (DOCS / "sieving").glob("*.md")) == sorted(METHODS)


@pytest.mark.parametrize("name", list(METHODS))
def test_the_page_of_a_sieve(name):
    page = text(f"sieving/{name}.md")
    assert page.startswith(f"# {METHODS[name].__name__}\n") and len(page.splitlines()) < 60
    assert "## When it does not pay\n" in page and re.search(r"^Source: ", page, re.M)
    (options,) = re.findall(r"Options:(.*?)\.(?:\s|$)", page, re.S)
    parameters = inspect.signature(METHODS[name]).parameters
    asked = {key: each.default for key, each in parameters.items() if key not in ("num_samples", "ranks")}
    told = dict(re.findall(r"`(\w+)=([^`]+)`", options))
    assert told == {key: repr(default) for key, default in asked.items()}
    for target in re.findall(r"\]\((\S+?\.md)\)", page):
        assert (DOCS / "sieving" / target).exists()


@pytest.mark.parametrize("name", ["circular", "infobatch", "kakurenbo", "grand"])
def test_the_loop_of_the_page_trains_with_what_the_pages_add(name):
    """The page's own text, with another sieve in it, and the passes that a sieve's page adds before `end_epoch`."""
    (loop,) = re.findall(r"```python\n(.*?)```", text("sieving.md"), re.S)
    method = METHODS[name].__name__
    options = {"circular": "interval=1", "grand": "at=1, epochs=4"}.get(name, "epochs=4")
    loop = loop.replace("import Circular", f"import {method}")
    loop = re.sub(r"Circular\(.*?\)  #", f"{method}(len(data), fraction=0.25, {options})  #", loop)
    page = text(f"sieving/{name}.md") if name in ("kakurenbo", "grand") else ""
    for look in re.findall(r"```python\n(.*?)```", page, re.S):
        begin = loop.index("    event = ")
        loop = loop[:begin] + textwrap.indent(look.replace("sieve.end_epoch()\n", ""), "    ") + loop[begin:]
    model = torch.nn.Linear(2, 2)
    x = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    given = {
        "data": TensorDataset(x, (x[:, 0] > 0).long()),
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), 1.0),
        "epochs": 4,
        "torch": torch,
        "Subset": Subset,
    }
    exec(compile(loop, "sieving.md", "exec"), given)
    sieve = given["sieve"]
    assert sieve.epoch == 4 and 0 < sieve.report().saved < 1
    assert name != "grand" or sieve.report().extra_seconds > 0
