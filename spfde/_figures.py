"""How every figure of spfde looks."""

from __future__ import annotations

from types import ModuleType

INK, MUTED, LINE = "#14181f", "#586173", "#dde1e7"
STYLE = {
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": INK,
}


def matplotlib_for(what: str) -> ModuleType:
    """matplotlib, with its `figure`: a Figure made from it leaves pyplot's state and the caller's backend alone.

    Raises:
        ImportError: it is not installed. what: names what was to be drawn.
    """
    try:
        import matplotlib.figure
    except ImportError as error:
        raise ImportError(
            f"expected matplotlib, which draws the {what}, got no such module, try pip install spfde[report]"
        ) from error
    return matplotlib
