"""Every known exception of the sweep: what is raised instead, and why that is right."""

from __future__ import annotations

from dataclasses import dataclass

from models_sweep.stages import STAGES


@dataclass(frozen=True)
class Known:
    """error and message (a regular expression) are demanded: an exception that is gone fails the sweep."""

    error: type[Exception]
    message: str
    reason: str


def everywhere(name: str, known: Known) -> dict[tuple[str, str], Known]:
    return {(name, stage): known for stage in STAGES}


def standardised(kind: str) -> Known:
    reason = f"every convolution is a {kind}, which changes its weight in each forward: a subclass is refused by name"
    return Known(ValueError, f"subclass.*{kind}|{kind}.*subclass", reason)


EXCEPTIONS: dict[tuple[str, str], Known] = {
    **everywhere("timm: resnetv2_50x1_bit", standardised("StdConv2d")),
    **everywhere("timm: nf_resnet26", standardised("ScaledStdConv2d")),
    ("timm: coat_lite_tiny", "freeze"): Known(
        ValueError,
        "expected a module to run in one block only, got '.*cpe'",
        "the convolution of a stage's position encoding serves every block of the stage, so no block can freeze alone",
    ),
}
