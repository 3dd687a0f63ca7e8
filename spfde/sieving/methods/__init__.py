"""The sieves by name: what recipes and the command line call them.

One is called as `(num_samples, *, fraction, interval, epochs, seed, **options)` with as many of the named ones as it
takes; its other parameters are its options.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from spfde.sieving.methods.circular import Circular
from spfde.sieving.methods.el2n import EL2N
from spfde.sieving.methods.epsgreedy import EpsGreedy
from spfde.sieving.methods.forgetting import Forgetting
from spfde.sieving.methods.grand import GraNd
from spfde.sieving.methods.infobatch import InfoBatch
from spfde.sieving.methods.kakurenbo import Kakurenbo
from spfde.sieving.methods.once import Once
from spfde.sieving.methods.oscillating import Oscillating
from spfde.sieving.methods.random import Random
from spfde.sieving.methods.ucb import UCB

METHODS: dict[str, Callable[..., Any]] = {
    "circular": Circular,
    "random": Random,
    "infobatch": InfoBatch,
    "forgetting": Forgetting,
    "once": Once,
    "el2n": EL2N,
    "grand": GraNd,
    "epsgreedy": EpsGreedy,
    "ucb": UCB,
    "kakurenbo": Kakurenbo,
    "oscillating": Oscillating,
}


def register(name: str, method: Callable[..., Any]) -> None:
    """Makes a sieve available by name, to recipes and the command line too. Doing so twice is doing it once.

    Raises:
        ValueError: the name is another one's.
    """
    if METHODS.setdefault(name, method) is not method:
        raise ValueError(f"expected a new name, got {name!r}, which is taken, try another")
