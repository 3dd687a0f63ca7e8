"""Masks that an init, a ticket or a trained mask gives, by hand: the arithmetic is in each test's words."""

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from spfde import sparsify
from spfde.topology import FORCE, SNIP, EdgePopup, FreezeNet, GraSP, Lottery, Piggyback, Thresholds, learn_thresholds


def linear(*rows):
    layer = nn.Linear(len(rows[0]), len(rows), bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(rows))
    return layer


# y = 3 - 2 + 2 = 3, so dL/dw = 2 (3 - 2) x = (2, 4, 2).
DATA = torch.tensor([[1.0, 2, 1]]), torch.tensor([[2.0]])


def kept(model, sparsity, init):
    return sparsify(model, sparsity, init=init, data=DATA, loss_fn=mse_loss).positions().tolist()


def test_snip():
    """|w g| = 6, 4, 4; of the equal two the first."""
    assert kept(linear([3.0, -1, 2]), 2 / 3, SNIP()) == [0]
    assert kept(linear([3.0, -1, 2]), 1 / 3, SNIP()) == [0, 1]


def test_grasp():
    """H g = 2 x (x . g) = 2 * 12 x, so w H g = 24 (3, -2, 2): the second goes first, the third next."""
    assert kept(linear([3.0, -1, 2]), 1 / 3, GraSP(temperature=1)) == [0, 2]
    assert kept(linear([3.0, -1, 2]), 2 / 3, GraSP(temperature=1)) == [0]


@pytest.mark.parametrize(("revive", "second"), [(True, [0]), (False, [1])])
def test_force_takes_back_what_iterative_snip_does_not(revive, second):
    """Two hidden units, 5 - 4 and 4.5 + 0.2, and a goal of one weight in each layer, in two rounds.

    Round 1 keeps 5 and 4.5 below, and above the second unit, as 1 < 4.7. Then the units are 5 and 4.5: above, FORCE
    takes the first again; below only 4.5 reaches the output.
    """
    model = nn.Sequential(linear([5.0, -4], [4.5, 0.2]), linear([1.0, 1]))
    data = torch.tensor([[1.0, 1]]), torch.tensor([[0.0]])
    shares = {"0": 0.75, "1": 0.5}
    sparsify(model, distribution=shares, init=FORCE(2, revive), data=data, loss_fn=mse_loss)
    assert model[0].positions().tolist() == [2]
    assert model[1].positions().tolist() == second


def test_edge_popup():
    """|s| = .1 .4 .3 .2 keeps 2 and 3; dy/ds = w sign(s) = 1 -2 3 -4, so a step of 0.1 makes |s| = 0 .2 0 .2."""
    model = linear([1.0, 2, 3, 4])
    popup = EdgePopup(model, 0.5)
    (scores,) = popup.parameters()
    with torch.no_grad():
        scores.copy_(torch.tensor([[0.1, -0.4, 0.3, -0.2]]))
    y = model(torch.ones(1, 4))
    assert y.item() == 5
    y.sum().backward()
    torch.optim.SGD([scores], lr=0.1).step()
    assert model(torch.ones(1, 4)).item() == 6
    assert popup.finish().dense_weight().tolist() == [[0, 2, 0, 4]]


def test_piggyback():
    """Scores start at 0.01; y = 1 + 2 + 3 and dy/ds = w: a step of 0.002 leaves .008 .006 .004 above or below .005."""
    model = linear([1.0, 2, 3])
    masks = Piggyback(model)
    y = model(torch.ones(1, 3))
    assert y.item() == 6
    y.sum().backward()
    torch.optim.SGD(masks.parameters(), lr=0.002).step()
    assert masks.finish().dense_weight().tolist() == [[1, 2, 0]]


def test_freezenet():
    """SNIP chooses the first weight, which a step of 0.1 takes from 3 to 2.8; the others keep their values."""
    model = linear([3.0, -1, 2])
    frozen = FreezeNet(model, 2 / 3, data=DATA, loss_fn=mse_loss)
    assert frozen.masks()[""].tolist() == [[True, False, False]]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.0)
    mse_loss(model(DATA[0]), DATA[1]).backward()
    optimizer.step()
    assert frozen.finish().weight.tolist() == [[pytest.approx(2.8), -1, 2]]


@pytest.mark.parametrize(("rewind", "ticket"), [("weights", [[1, 0, 0, 4]]), ("learning-rate", [[6, 0, 0, 5]])])
def test_a_lottery_ticket(rewind, ticket):
    """Training takes 1 2 3 4 to 6 2 0.5 5: the largest two stay, at their first values or at their last."""

    def train(model, first, last):
        if isinstance(model, nn.Linear):
            with torch.no_grad():
                model.weight += torch.tensor([[5.0, 0, -2.5, 1]])

    lottery = Lottery(linear([1.0, 2, 3, 4]), train, sparsity=0.5, rounds=1, epochs=1, rewind=rewind)
    lottery.run()
    assert lottery.model.dense_weight().tolist() == ticket


def test_thresholds():
    """At t = sigmoid(0) = 0.5 the weights 2 -1 .25 .5 are 1.5 -.5 0 0: the last two are stored no longer."""
    layer = learn_thresholds(sparsify(linear([2.0, -1, 0.25, 0.5]), 0.0), raw=0.0)
    topology = Thresholds(layer, torch.optim.SGD(layer.parameters(), lr=0.0), total_steps=9, every=1, end=0.0)
    assert topology.step()
    assert layer.positions().tolist() == [0, 1]
    assert layer.dense_weight().tolist() == [[1.5, -0.5, 0, 0]]
    assert not topology.step()
