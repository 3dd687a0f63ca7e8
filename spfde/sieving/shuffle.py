"""Orders and shares that are a pure function of a seed: nothing to keep for a resumed run, the same on every rank."""

from __future__ import annotations

import hashlib
from fractions import Fraction

import torch


def derived(seed: int, purpose: str, counter: int) -> int:
    """A seed for one of several draws that must not be alike."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{counter}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def shuffled(samples: torch.Tensor, seed: int) -> torch.Tensor:
    """`samples` [n] in an order that is a pure function of their number and the seed."""
    return samples.index_select(0, _permutation(len(samples), seed))


def permutation(count: int, seed: int) -> torch.Tensor:
    """range(count) in an order that is a pure function of both: int64 [count]."""
    return _permutation(count, seed).long()


def _permutation(count: int, seed: int) -> torch.Tensor:
    dtype = torch.int32 if count < 2**31 else torch.int64  # the same order, by half the memory
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def share(fraction: float, count: int | Fraction) -> int:
    """floor(fraction * count), exact for the fraction as it is written: 0.29 of 100 is 29."""
    return int(written(fraction) * count)


def written(fraction: float) -> Fraction:
    """A fraction as it is written: 0.29 is 29/100, which no float is."""
    return Fraction(repr(float(fraction)))
