"""HTML from Python calls; whatever is not already HTML is escaped."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape


class Html(str):
    """Text that is HTML already."""


VOID = frozenset({"meta", "col", "br", "img"})


def tag(name: str, /, *children: str, **attributes: str | None) -> Html:
    """An element: `tag("td", "a < b", class_="n")` is `<td class="n">a &lt; b</td>`; None leaves one out."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID:
        return Html(f"<{name}{written}>")
    return Html(f"<{name}{written}>{join(*children)}</{name}>")


def join(*children: str) -> Html:
    """Children one after the other."""
    return Html("".join(child if isinstance(child, Html) else escape(child) for child in children))


def tiles(figures: Iterable[tuple[str, str]]) -> Html:
    """The figures to remember, each with what it is."""
    boxes = (tag("div", tag("b", figure), tag("span", text), class_="tile") for figure, text in figures)
    return Html() if not (found := tuple(boxes)) else tag("div", *found, class_="tiles")
