"""A matplotlib figure as inline SVG that takes its colours and its font from the page."""

from __future__ import annotations

import io
import re
from html import escape
from typing import TYPE_CHECKING

from spfde.report.markup import Html
from spfde.report.theme import TOKEN

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = {
    "svg.fonttype": "none",  # text stays text: selectable, in the page's font
    "text.parse_math": False,  # a run called "$x$" is no formula
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib, and is wide: what replaces it fits
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": TOKEN["ink"],
    "axes.labelcolor": TOKEN["muted"],
    "axes.edgecolor": TOKEN["line"],
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "figure.facecolor": "none",
    "figure.constrained_layout.use": True,
    "grid.color": TOKEN["line"],
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.labelcolor": TOKEN["ink"],
    "lines.linewidth": 1.8,
    "text.color": TOKEN["ink"],
    "xtick.color": TOKEN["line"],
    "ytick.color": TOKEN["line"],
    "xtick.labelcolor": TOKEN["muted"],
    "ytick.labelcolor": TOKEN["muted"],
}


def inline(figure: Figure, name: str, label: str) -> Html:
    """Draw a figure as an <svg> element for a page that may hold others.

    Args:
        figure: made under STYLE, with colours from theme.TOKEN.
        name: unique in the page; ids inside the drawing start with it.
        label: what the drawing shows, for those who cannot see it.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    out = io.StringIO()
    with matplotlib.rc_context(STYLE):
        FigureCanvasSVG(figure).print_svg(out, metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.S)
    text = re.sub(r' (xmlns(:\w+)?|version)="[^"]*"', "", text, count=3).replace("xlink:href", "href")
    text = _renumber(text, name)
    text = re.sub(r"'DejaVu Sans'(, sans-serif)?", "var(--font)", text)
    for variable, token in TOKEN.items():
        text = text.replace(token, f"var(--{variable})")
    head = f'<svg role="img" aria-label="{escape(label)}"'
    return Html(re.sub(r"\n\s*", "\n", text.replace("<svg", head, 1)).strip())


def _renumber(text: str, name: str) -> str:
    """Number the ids that something refers to, and drop the rest: matplotlib's depend on memory addresses."""
    used = set(re.findall(r'(?:href="#|url\(#)([^")]*)', text))
    numbers: dict[str, str] = {}

    def define(match: re.Match[str]) -> str:
        if match[2] not in used:
            return match[1]
        numbers[match[2]] = f"{name}-{len(numbers)}"
        return f'{match[1]} id="{numbers[match[2]]}"'

    # Inside tags only; in a label, "<" is written as an entity.
    text = re.sub(r'(<\w[^<>]*?) id="([^"]*)"', define, text)
    return re.sub(r'(href="#|url\(#)([^")]*)', lambda m: m[1] + numbers.get(m[2], m[2]), text)
