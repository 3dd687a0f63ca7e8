"""Compiled code stands aside while backward passes are watched: its graphs say nothing of the dense gradient.

No switch of the user's: torch.compile's own stance is set to eager for the armed steps, of the whole process, and set
back. Nothing is compiled anew for it.
"""

from __future__ import annotations

import sys
from typing import Any
from weakref import WeakSet, finalize

import torch

_watching: WeakSet[Any] = WeakSet()
_stance: Any = None


def watch(one: Any) -> None:
    """Something watches, until `unwatch` or its end."""
    if one not in _watching:
        _watching.add(one)
        finalize(one, _settle).atexit = False
    _settle()


def unwatch(one: Any) -> None:
    """It watches no longer."""
    _watching.discard(one)
    _settle()


def _settle() -> None:
    global _stance
    compiles = "torch._dynamo.eval_frame" in sys.modules  # else there is no compiled code, and the import takes long
    if _watching and _stance is None and compiles:
        _stance = torch.compiler.set_stance("force_eager")
    elif not _watching and _stance is not None:
        _stance.__exit__(None, None, None)
        _stance = None
