"""The queue of held-out samples and the seeded draws around it: pure functions."""

from __future__ import annotations

import hashlib

import torch


def generator(seed: int, purpose: str, counter: int) -> torch.Generator:
    """A CPU generator that depends on nothing but its arguments."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{counter}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def shuffled(samples: torch.Tensor, seed: int, purpose: str, counter: int) -> torch.Tensor:
    """`samples` [n] in an order that is a pure function of the arguments."""
    return samples[torch.randperm(len(samples), generator=generator(seed, purpose, counter))]


def rotate(queue: torch.Tensor, entering: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(head, rest): as many samples leave at the head of `queue` as enter, in order, at its tail.

    No sample that enters leaves at once: there must be no more of them than the queue is long.
    """
    return queue[: len(entering)], torch.cat([queue[len(entering) :], entering])


def complement(samples: torch.Tensor, num_samples: int) -> torch.Tensor:
    """All of range(num_samples) that is not in `samples`, ascending."""
    left = torch.ones(num_samples, dtype=torch.bool)
    left[samples] = False
    return left.nonzero().flatten()
