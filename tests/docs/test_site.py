"""Every page is in the navigation of the site once, links and anchors lead somewhere, and the guide's loop runs."""

import re
from pathlib import Path
from types import ModuleType

import pytest

import spfde

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


def anchors(page: Path) -> set[str]:
    heads = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", head).strip().lower()) for head in heads}


def test_the_navigation_has_every_page_once():
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:\n")[1]
    assert sorted(re.findall(r": (\S+\.md)$", nav, re.M)) == PAGES


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_to_pages_and_headings(name):
    page = DOCS / name
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)", page.read_text(encoding="utf-8")):
        found = (page.parent / target).resolve() if target else page
        assert found.exists() and found.is_relative_to(DOCS), target
        assert not anchor or anchor in anchors(found), f"{target}#{anchor}"


def test_the_guide_to_dropping_in_runs():
    code = "\n".join(re.findall(r"```python\n(.*?)```", (DOCS / "guides/drop-in.md").read_text(encoding="utf-8"), re.S))
    names = {}
    exec(compile(code, "drop-in.md", "exec"), names)
    assert names["freezer"].frozen and len(names["sieve"].removed) and not hasattr(names["model"][2], "values")


@pytest.mark.parametrize("name", PAGES)
def test_nothing_looks_like_a_link_by_name(name):
    """`[row][column]` outside of code is a link to a heading called column, which the site cannot find."""
    text = re.sub(r"```.*?```|`[^`]*`", "", (DOCS / name).read_text(encoding="utf-8"), flags=re.S)
    found = re.findall(r"\S*\]\[\S*", re.sub(r"^ {4}.*$", "", text, flags=re.M))
    assert not found


def test_the_reference_has_every_public_name():
    pages = "\n".join(page.read_text(encoding="utf-8") for page in (DOCS / "api").glob("*.md"))
    entries = re.findall(r"^::: (\S+)$", pages, re.M)
    assert len(entries) == len(set(entries))
    for name in {*spfde.__all__, "bench", "convert", "env", "flops", "kernels", "levers", "planning"} - {"__version__"}:
        public = getattr(spfde, name, None)
        if public is None or isinstance(public, ModuleType):
            assert f"spfde.{name}" in entries
        else:
            path = f"{public.__module__}.{public.__name__}"
            assert f"spfde.{name}" in entries or any(f"{path}.".startswith(f"{entry}.") for entry in entries)
