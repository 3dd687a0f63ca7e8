"""Soft permutations: non-negative matrices [n, n] whose rows and columns sum to 1, of which the corners are hard."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

LEAST = 1e-10  # a place at 0 could never come back


def mixed(order: Tensor, share: float) -> Tensor:
    """share * P + (1 - share) / n for the permutation P[i, order[i]] = 1: float32 [n, n]."""
    n = order.numel()
    soft = torch.full((n, n), (1 - share) / n, device=order.device)
    soft[torch.arange(n, device=order.device), order] += share
    return soft


def sinkhorn(matrix: Tensor, rounds: int = 5) -> Tensor:
    """The doubly stochastic diag(r) M diag(c) of a positive M, after so many rounds over rows and columns."""
    for _ in range(rounds):
        matrix = matrix / matrix.sum(1, keepdim=True)
        matrix = matrix / matrix.sum(0, keepdim=True)
    return matrix


def descend(soft: Tensor, gradient: Tensor, rate: float) -> Tensor:
    """Mirror descent: the doubly stochastic matrix nearest to soft * exp(-rate * gradient), in relative entropy.

    A place changes by at most a factor of e^4 before it is scaled.
    """
    return sinkhorn((soft * (-rate * gradient).clamp(-4, 4).exp()).clamp(min=LEAST))


def softness(soft: Tensor) -> Tensor:
    """The mean of 1 - |v|_2 over rows and columns v, []: 0 exactly for a permutation, 1 - n^-1/2 if all is even.

    It is the penalty sum(|v|_1 - |v|_2) of AutoShuffleNet (1901.08624) over 2 n, as |v|_1 is 1.
    """
    soft = soft.detach()
    return 1 - (soft.norm(dim=1).mean() + soft.norm(dim=0).mean()) / 2


def sharpening(soft: Tensor) -> Tensor:
    """The gradient of 2 n `softness`, in [-2, 0]."""
    return -(soft / soft.norm(dim=1, keepdim=True) + soft / soft.norm(dim=0, keepdim=True))


def nearest_permutation(matrix: Tensor) -> Tensor:
    """The permutation [n] (int64) with the largest sum of matrix[i, order[i]]: the nearest in the Frobenius norm.

    Exact, by shortest augmenting paths (Jonker and Volgenant 1987) on the CPU: a row whose largest element no other row
    claims costs a step of numpy, another one at most n of them. Ties go to the lower place.
    """
    cost = -matrix.detach().double().cpu().numpy()
    n = len(cost)
    rows, columns, owner = cost.min(1), np.zeros(n), np.full(n, -1)  # duals, and the row of each column
    left = []
    for row, column in enumerate(cost.argmin(1)):
        if owner[column] < 0:
            owner[column] = row
        else:
            left.append(row)
    for row in left:
        _augment(cost, rows, columns, owner, row)
    order = np.empty(n, np.int64)
    order[owner] = np.arange(n)
    return torch.from_numpy(order).to(matrix.device)


def _augment(cost: np.ndarray, rows: np.ndarray, columns: np.ndarray, owner: np.ndarray, row: int) -> None:
    """Gives one more row a column, by the path of least reduced cost; duals and owners change in place."""
    least, before = cost[row] - rows[row] - columns, np.full(len(cost), -1)
    done = np.zeros(len(cost), bool)
    while True:
        column = int(np.where(done, np.inf, least).argmin())
        if owner[column] < 0:
            break
        done[column] = True
        through = least[column] + cost[owner[column]] - rows[owner[column]] - columns
        shorter = (through < least) & ~done
        least[shorter], before[shorter] = through[shorter], column
    rows[owner[done]] += least[column] - least[done]
    columns[done] -= least[column] - least[done]
    rows[row] += least[column]
    while column >= 0:
        column_before = before[column]
        owner[column] = row if column_before < 0 else owner[column_before]
        column = column_before
