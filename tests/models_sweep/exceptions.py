"""Every known exception of the sweep: what is raised instead, and why that is right."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Known:
    """error and message (a regular expression) are demanded: an exception that is gone fails the sweep."""

    error: type[Exception]
    message: str
    reason: str


EXCEPTIONS: dict[tuple[str, str], Known] = {
    ("timm: coat_lite_tiny", "freeze"): Known(
        ValueError,
        "expected a module to run in one block only, got '.*cpe'",
        "the convolution of a stage's position encoding serves every block of the stage, so no block can freeze alone",
    ),
}
