"""Every sieve has a page, with its options as they are, its source and when it does not pay."""

import inspect
import re
from pathlib import Path

import pytest

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
