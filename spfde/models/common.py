"""What the families share: checks of options, He initialisation, widths."""

from __future__ import annotations

from torch import nn

from spfde._names import unknown

FORMS = ("imagenet", "cifar")


def check_counts(**counts: float) -> None:
    """Refuse counts below 1, by name.

    Raises:
        ValueError: a count is below 1, or not a number.
    """
    for name, value in counts.items():
        if not value >= 1:
            raise ValueError(f"expected {name} >= 1, got {value}, try a larger number")


def check_form(form: str) -> None:
    """Refuse a form other than "imagenet" (images of 224 pixels) and "cifar" (of 32).

    Raises:
        ValueError: it is another one.
    """
    if form not in FORMS:
        raise unknown("form", form, FORMS)


def start(model: nn.Module) -> None:
    """Fill the weights, from the global random generator: convolutions N(0, 2 / fan-in), linears N(0, 0.01²), biases 0.

    N(0, 2 / fan-in) is He et al. (2015), arXiv 1502.01852; normalisation keeps torch's ones and zeros.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
