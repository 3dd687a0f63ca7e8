"""Steps to a loss: exact where the network is linear, refused where it is not on the way."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import spfde
from spfde.freezing import freeze, freeze_weights
from spfde.planning import steps_to_loss


def counted(model, x, y, loss, lr, momentum=0.0, loss_fn=F.cross_entropy):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
    for step in range(1000):
        now = loss_fn(model(x), y)
        if now <= loss:
            return step
        optimizer.zero_grad()
        now.backward()
        optimizer.step()
    return None


def problem(sparsity=0.0):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(8, 3))
    if sparsity:
        model = spfde.sparsify(model, distribution={"1": sparsity})
    return model, torch.randn(12, 2, 4), torch.randint(3, (12,))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_a_linear_network_is_predicted_to_the_step(sparsity, momentum):
    model, x, y = problem(sparsity)
    target = 0.7 * F.cross_entropy(model(x), y).item()
    before = [p.detach().clone() for p in model.parameters()]
    found = steps_to_loss(model, x, y, target, 0.02, momentum=momentum)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert found.kept == pytest.approx(1, abs=1e-3) and found.losses[-1] <= target < found.losses[-2]
    assert found.steps == counted(model, x, y, target, 0.02, momentum) > 5
    assert f"{found.steps} steps: the loss falls from" in str(found)


def test_the_first_step_by_hand():
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(3.0)
    x, y = torch.tensor([[2.0]]), torch.tensor([[0.0]])
    found = steps_to_loss(model, x, y, 1.0, 0.05, loss_fn=F.mse_loss)
    # f = 6, df/dw = 2: f <- f - 0.05 * 4 * 2 f = 0.6 f
    assert found.losses == pytest.approx([36, 36 * 0.36, 36 * 0.36**2, 36 * 0.36**3, 36 * 0.36**4])
    assert found.steps == 4


def test_what_is_frozen_does_not_move():
    model, x, y = problem(0.5)
    freeze_weights(model[1], [0])
    target = 0.9 * F.cross_entropy(model(x), y).item()
    found = steps_to_loss(model, x, y, target, 0.02)
    assert found.steps == counted(model, x, y, target, 0.02)
    freeze(model)
    with pytest.raises(ValueError, match="parameters that train, got none"):
        steps_to_loss(model, x, y, target, 0.02)


def test_a_loss_that_is_there_takes_no_step():
    model, x, y = problem()
    assert steps_to_loss(model, x, y, 100.0, 0.1).steps == 0


def test_training_from_scratch_is_not_predicted():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3))
    x, y = torch.randn(30, 8), torch.randint(3, (30,))
    found = steps_to_loss(model, x, y, 0.2, 0.2)
    assert found.steps is None and found.kept < 0.9
    assert "not for training from scratch" in found.reason and str(found).startswith("not predicted: ")


def test_losses_that_do_not_get_there_are_told():
    model, x, y = problem()
    slow = steps_to_loss(model, x, y, 0.01, 1e-6, most=5)
    assert slow.steps is None and "in 5 steps, not to 0.01" in slow.reason
    fast = steps_to_loss(model, x, y, 0.01, 1e4, most=50)
    assert fast.steps is None and ("grows" in fast.reason or "too far" in fast.reason)


def test_what_no_expansion_describes_is_refused():
    model, x, y = problem()
    for change, text in [
        ({"loss": 0.0}, "loss > 0"),
        ({"lr": 0.0}, "lr > 0"),
        ({"momentum": 1.0}, "momentum in \\[0, 1\\)"),
        ({"most": 0}, "most >= 1"),
    ]:
        with pytest.raises(ValueError, match=text):
            steps_to_loss(model, x, y, **{"loss": 0.1, "lr": 0.1, **change})
    with pytest.raises(ValueError, match="expected samples, got none"):
        steps_to_loss(model, x[:0], y[:0], 0.1, 0.1)
    with pytest.raises(ValueError, match="at most 4096 numbers, got \\[1400, 3\\], try fewer samples"):
        steps_to_loss(model, torch.randn(1400, 8), torch.zeros(1400).long(), 0.1, 0.1)
    for layer, what in ((nn.BatchNorm1d(3), "normalised by each batch"), (nn.Dropout(0.5), "random")):
        whole = nn.Sequential(*model, layer)
        with pytest.raises(ValueError, match=f"got '2' \\({type(layer).__name__}\\), {what}"):
            steps_to_loss(whole, x, y, 0.1, 0.1)
        assert steps_to_loss(whole.eval(), x, y, 1.0, 0.1).losses
