"""What stands for a model's arguments: a tensor, a tuple (positional), a mapping (keywords), the same everywhere."""

from collections import UserDict
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import spfde
from spfde._modules import as_args, map_tensors
from spfde.flops import layer_work, positions
from spfde.freezing import blocks
from spfde.topology import Lottery


@dataclass
class Output:
    """What transformers' models return: a dataclass, with parts that may be missing."""

    logits: Tensor
    loss: Tensor | None = None


class Net(nn.Module):
    """Registered back to front, called as transformers' models are."""

    def __init__(self, whole: bool = False) -> None:
        super().__init__()
        self.c, self.b, self.a = nn.Linear(32, 4), nn.Linear(32, 32), nn.Linear(8, 32)
        self.whole = whole

    def forward(self, x: Tensor, mask: Tensor | None = None, *, scale: Tensor | None = None):
        assert isinstance(x, Tensor)
        y = torch.relu(self.b(self.a(x if mask is None else x * mask)))
        y = self.c(y) * (1 if scale is None else scale)
        return Output(y) if self.whole else y


X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
INPUTS = {
    "tensor": X,
    "tuple": (X, None),
    "tuple-mask": (X, torch.ones(8)),
    "mapping": {"x": X, "scale": torch.ones(1)},
    "none": {"mask": None, "x": X},
    "batch": UserDict({"x": X, "mask": torch.ones(4, 8)}),
}
each_input = pytest.mark.parametrize("inputs", INPUTS.values(), ids=INPUTS)


def loss_fn(output, y: Tensor) -> Tensor:
    return functional.cross_entropy(getattr(output, "logits", output), y)


@each_input
@pytest.mark.parametrize("whole", [False, True], ids=["tensor", "dataclass"])
def test_layers_are_found_in_order_of_execution(inputs, whole):
    model = spfde.sparsify(Net(whole), 0.9, example_input=inputs)
    assert [type(m).__name__ for m in (model.a, model.b, model.c)] == ["Linear", "SparseLinear", "Linear"]
    work = layer_work(model, inputs)
    assert [*work] == ["a", "b", "c"] and {w.positions for w in work.values()} == {1}
    assert set(positions(model, inputs).values()) == {4}
    assert spfde.summary(model, inputs).counted
    assert [block.name for block in blocks(model, inputs)] == ["a", "b"]


@each_input
def test_measurements_take_it(inputs):
    model = spfde.sparsify(Net(), 0.9, example_input=inputs)
    assert spfde.tune(model, inputs, repeats=1).entries
    found = spfde.profile(model, inputs, rounds=1)
    assert found.batch == 4 or inputs is INPUTS["mapping"]


@each_input
@pytest.mark.parametrize("init", ["snip", "grasp", "synflow"])
def test_inits_take_it(inputs, init):
    y = torch.arange(4)
    if init == "synflow":
        given = {"data": (inputs, y)}, {"data": ((X,), y)}
    else:
        given = {"data": (inputs, y), "loss_fn": loss_fn}, {"data": [((X,), y)], "loss_fn": loss_fn}
    masks = []
    for options in given:
        torch.manual_seed(0)
        model = spfde.sparsify(Net(), 0.5, example_input=X, init=init, **options)
        masks.append(model.b.mask())
    assert torch.equal(*masks)


def test_images_are_seen_in_a_mapping():
    class Images(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 2)

        def forward(self, pixel_values: Tensor) -> Tensor:
            return self.head(self.conv(self.stem(pixel_values)).mean((2, 3)))

    model = spfde.sparsify(Images(), 0.5)
    assert spfde.profile(model, {"pixel_values": torch.randn(2, 3, 8, 8)}, rounds=1).dense is not None


def test_tickets_take_it():
    lottery = Lottery(
        Net(), lambda *_: None, sparsity=0.5, rounds=1, epochs=1, distribution="uniform", example_input={"x": X}
    )
    lottery.run()
    assert [type(m).__name__ for m in (lottery.model.a, lottery.model.b)] == ["Linear", "SparseLinear"]


def test_a_mapping_that_is_the_argument_itself_is_put_into_a_tuple():
    assert as_args(({"x": X},)) == (({"x": X},), {})
    assert as_args([X])[0] == ([X],)
    with pytest.raises(TypeError, match=r"expected a mapping of keyword arguments, got the key 0, try \(mapping,\)"):
        as_args({0: X})


def test_tensors_are_mapped_wherever_they_are():
    found = map_tensors(lambda t: t.shape[0], ({"x": X, "n": None}, [X, 3], X))
    assert found == ({"x": 4, "n": None}, [4, 3], 4)
