"""What ends a run before its time: a signal, met between two steps once a checkpoint is written, or a broken loss."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch
from torch import Tensor, nn

# A handler that the caller has put in place stays.
_USUAL = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGHUP: signal.SIG_DFL,  # a terminal that was closed; nohup has it ignored
}


class Interrupted(KeyboardInterrupt):
    """A run that was asked to stop and has kept where it was; `signal` is what asked."""

    def __init__(self, message: str, signal: signal.Signals) -> None:
        super().__init__(message)
        self.signal = signal


class Interrupts:
    """Whether a signal asked the run to stop: `asked` is that signal, or None."""

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Take note of the first signal instead of dying of it; the second one acts as usual.

        But for SIGHUP after SIGHUP: a closed terminal's kernel and shell both send it.

        Outside of the main thread, where Python handles no signals, nothing changes.
        """
        main = threading.current_thread() is threading.main_thread()
        ours = [each for each, usual in _USUAL.items() if main and signal.getsignal(each) == usual]

        def note(number: int, frame: FrameType | None) -> None:
            self.asked = signal.Signals(number)
            usual()
            if number == signal.SIGHUP:
                signal.signal(number, signal.SIG_IGN)

        def usual() -> None:
            for each in ours:
                signal.signal(each, _USUAL[each])

        try:
            for each in ours:
                signal.signal(each, note)
            yield
        finally:
            usual()


class Diverged(FloatingPointError):
    """The loss became NaN or infinite; the weights of the last checkpoint are untouched."""


def diagnose_nonfinite(model: nn.Module, images: Tensor) -> str:
    """Say what makes a loss NaN or infinite: the input, a parameter by name, or activations."""
    broken = (~torch.isfinite(images)).flatten(1).any(1).nonzero().flatten().tolist()
    if broken:
        return f"{len(broken)} of the batch's {len(images)} images hold NaN or infinity: look at the data set"
    # Not the buffers: this very forward pass has put an overflow into BatchNorm's statistics.
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            return f"{name} holds NaN or infinity: the last step was too large, try a lower lr or more warmup"
    sizes = {name: p.detach().abs().max().item() for name, p in model.named_parameters() if p.numel()}
    largest = max(sizes, key=sizes.__getitem__)
    return (
        "images and weights are finite, the activations overflowed;"
        f" the largest weight is {sizes[largest]:.3g} in {largest}: try a lower lr or more warmup"
    )


def diverged(model: nn.Module, images: Tensor, loss: float, *, epoch: int, step: int, lr: float) -> Diverged:
    """Build the error for a loss that is not finite, at a step of an epoch (both from 0)."""
    return Diverged(
        f"expected a finite loss, got {loss} at epoch {epoch}, step {step} (both from 0), learning rate {lr:.3g}:"
        f" {diagnose_nonfinite(model, images)}"
    )


def unranked(model: nn.Module, images: Tensor, epoch: int) -> Diverged:
    """Build the error for logits that are NaN in the evaluation of an epoch (from 0)."""
    return Diverged(
        f"expected logits that are numbers, got NaN in the evaluation of epoch {epoch} (from 0):"
        f" {diagnose_nonfinite(model, images)}"
    )
