"""What inits that run the model refuse, by name, before anything changes."""

import re

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import spfde
from spfde.nn import SparseLayer
from spfde.topology import FORCE, SNIP, GraSP, SynFlow


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.3), nn.ReLU(), nn.Linear(48, 20), nn.Linear(20, 5),
    )  # fmt: skip


def sizes(model) -> dict[str, int]:
    return {name: m.nnz for name, m in model.named_modules() if isinstance(m, SparseLayer)}


X = torch.randn(6, 3, 9, 9, generator=torch.Generator().manual_seed(1))
Y = torch.randint(0, 5, (6,), generator=torch.Generator().manual_seed(2))
NAN = {"3": torch.full((12, 8, 3, 3), torch.nan), "9": torch.rand(20, 48)}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(init="snip", loss_fn=cross_entropy), "expected data=(x, y) for init 'snip', got none, try"),
        (dict(init="grasp", data=(X, Y)), "expected a loss_fn for init 'grasp', got none, try torch.nn.functional"),
        (dict(init="force", data=(X, Y), loss_fn=3), "expected loss_fn to be callable, got 3, try"),
        (dict(init="snip", data=X, loss_fn=cross_entropy), "expected data=(x, y) or a list of such pairs, got Tensor"),
        (dict(init="snip", data=(X, Y, X), loss_fn=cross_entropy), "a list of such pairs, got 3 of them, try"),
        (dict(init="snip", data=[], loss_fn=cross_entropy), "a list of such pairs, got 0 of them, try"),
        (dict(init="synflow"), "expected data=(x, y) for init 'synflow', got none"),
        (dict(init="synflow", data=X), "expected data=(x, y) or a list of such pairs, got Tensor"),
        (dict(init="synfow"), "init to be one of force, grasp, iter-snip, magnitude, random, snip, synflow, got"),
        (dict(init=SNIP), "expected init to be a name, a method or a mapping, got <class"),
        (dict(init=3), "expected init to be a name, a method or a mapping, got 3"),
        (dict(init="magnitude", data=(X, Y)), "expected no data and no loss_fn for init 'magnitude'"),
        (dict(init={"3": X}, loss_fn=cross_entropy), "expected no data and no loss_fn for given scores"),
        (dict(init={"4": X}), "expected a layer in init to be one of 3, 9, got '4'"),
        (dict(init={"3": X}), "expected scores [12, 8, 3, 3] for '3', got [6, 3, 9, 9]"),
        (dict(init={"9": NAN["9"]}), "expected scores [12, 8, 3, 3] for '3', got none"),
        (dict(init=NAN), "expected scores [12, 8, 3, 3] for '3', got NaN"),
        (dict(init="snip", data=(X, Y), loss_fn=lambda o, y: o), "expected loss_fn(model(x), y) to return a scalar"),
        (dict(init="snip", data=(X, Y), loss_fn=lambda o, y: 3.0), "a scalar tensor, got float, try the mean"),
        (dict(init="snip", data=(X, Y), loss_fn=lambda o, y: o.detach().sum()), "expected a loss that depends on the"),
        (dict(init="grasp", data=(X, Y), loss_fn=lambda o, y: o.sum() / 0), "expected finite scores, got infinite"),
    ],
)  # fmt: skip
def test_errors_leave_the_model_alone(options, words):
    model = net()
    kept = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=re.escape(words)):
        spfde.sparsify(model, 0.9, **options)
    assert all(torch.equal(value, kept[key]) for key, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert sizes(model) == {}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: GraSP(temperature=0), "expected a temperature > 0, got 0, try 1"),
        (lambda: SynFlow(rounds=0), "expected rounds >= 1, got 0, try 100"),
        (lambda: FORCE(rounds=0), "expected rounds >= 1, got 0, try 10"),
    ],
)
def test_methods_check_their_options(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_outputs_that_are_no_tensor():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x):
            return {"logits": self.layer(x)}

    data = torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
    loss_fn = lambda output, y: cross_entropy(output["logits"], y)  # noqa: E731
    assert sizes(spfde.sparsify(Pair(), 0.5, distribution="erk", init="snip", data=data, loss_fn=loss_fn)) == {
        "layer": 3
    }
    for init in ("grasp", "synflow"):
        with pytest.raises(ValueError, match=f"expected the model to return a tensor for init '{init}', got dict"):
            spfde.sparsify(Pair(), 0.5, distribution="erk", init=init, data=data, loss_fn=loss_fn)
    off = GraSP(temperature=1)
    assert sizes(spfde.sparsify(Pair(), 0.5, distribution="erk", init=off, data=data, loss_fn=loss_fn)) == {"layer": 3}
