"""Soft permutations: Sinkhorn's scaling, the penalty and its gradient, mirror descent, the nearest permutation."""

from itertools import permutations

import pytest
import torch

from spfde.topology.doubly_stochastic import descend, mixed, nearest_permutation, sharpening, sinkhorn, softness


def drawn(n, seed=0):
    return torch.rand(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 1e-3


def test_a_mixture_by_hand():
    assert torch.equal(mixed(torch.tensor([1, 0]), 0.5), torch.tensor([[0.25, 0.75], [0.75, 0.25]]))
    assert torch.equal(mixed(torch.tensor([2, 0, 1]), 1.0), torch.eye(3)[[2, 0, 1]])


def test_sinkhorn_by_hand_and_in_the_limit():
    # Rows of [[1, 3], [1, 1]] first, [[1/4, 3/4], [1/2, 1/2]], then columns, by 3/4 and 5/4.
    assert torch.allclose(sinkhorn(torch.tensor([[1.0, 3], [1, 1]]), 1), torch.tensor([[1 / 3, 0.6], [2 / 3, 0.4]]))
    soft = sinkhorn(drawn(7), 200)
    assert torch.allclose(soft.sum(0), torch.ones(7).double()) and torch.allclose(soft.sum(1), torch.ones(7).double())
    ratio = (drawn(7) / soft).log()  # of the form r_i c_j: each 2 x 2 minor of it vanishes
    assert torch.allclose(ratio - ratio[:1] - ratio[:, :1] + ratio[0, 0], torch.zeros(7, 7).double(), atol=1e-10)


def test_softness_is_zero_of_a_permutation_alone_and_its_gradient_is_right():
    assert softness(torch.eye(4)[[2, 0, 3, 1]]) == 0
    assert softness(torch.full((4, 4), 0.25)) == 0.5
    assert softness(torch.tensor([[0.6, 0.4], [0.4, 0.6]])).item() == pytest.approx(1 - 0.52**0.5)
    soft = sinkhorn(drawn(5), 50).requires_grad_()
    penalty = 10 - soft.norm(dim=1).sum() - soft.norm(dim=0).sum()
    assert penalty.item() / 10 == pytest.approx(softness(soft).item())
    (gradient,) = torch.autograd.grad(penalty, soft)
    assert torch.allclose(gradient, sharpening(soft.detach()))


def test_a_step_of_descent_by_hand():
    """From even halves, with a gradient of log 4 in one corner: [[1/8, 1/2], [1/2, 1/2]] scales to thirds."""
    gradient = torch.tensor([[4.0, 1], [1, 1]]).log()
    soft = sinkhorn(torch.tensor([[0.125, 0.5], [0.5, 0.5]]), 100)
    step = descend(torch.full((2, 2), 0.5), gradient, 1.0)
    assert torch.allclose(soft, torch.tensor([[1.0, 2], [2, 1]]) / 3)
    assert torch.allclose(step, soft, atol=1e-2)


def test_descent_finds_the_assignment_of_a_linear_loss():
    cost, soft = drawn(6, 3), torch.full((6, 6), 1 / 6).double()
    for step in range(300):
        soft = descend(soft, cost / cost.square().mean().sqrt() + step / 300 * sharpening(soft), 0.3)
    assert softness(soft) < 1e-3
    assert torch.equal(nearest_permutation(soft), nearest_permutation(-cost))


@pytest.mark.parametrize("n", [1, 2, 3, 6])
@pytest.mark.parametrize("seed", range(5))
def test_the_nearest_permutation_is_the_best_of_all(n, seed):
    matrix = drawn(n, seed).round(decimals=1)  # ties too
    order = nearest_permutation(matrix)
    best = max(sum(matrix[row, column].item() for row, column in enumerate(p)) for p in permutations(range(n)))
    assert sorted(order.tolist()) == list(range(n))
    assert matrix[torch.arange(n), order].sum().item() == pytest.approx(best)


def test_the_nearest_permutation_agrees_with_another_solver():
    optimize = pytest.importorskip("scipy.optimize")
    matrix = drawn(60, 1) * drawn(60, 2)
    rows, columns = optimize.linear_sum_assignment(matrix.numpy(), maximize=True)
    order = nearest_permutation(matrix)
    assert matrix[torch.arange(60), order].sum().item() == pytest.approx(matrix.numpy()[rows, columns].sum())


def test_ties_go_to_the_lower_place():
    assert nearest_permutation(torch.ones(4, 4)).tolist() == [0, 1, 2, 3]
