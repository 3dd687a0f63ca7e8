"""Sums with fused norms and layers are what is written: precision, shape and memory format."""

import copy

import pytest
import torch
from fusing.networks import sparse
from torch import nn

import spfde


class Sum(nn.Module):
    """A branch, in this forward or a module of its own, and something added to what it returns."""

    def __init__(self, name, inside, add):
        super().__init__()
        layers = [nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)][: 1 + (name == "norm")]
        self.branch = nn.Sequential(*layers)
        self.inside, self.add = inside, add

    def forward(self, x, r):
        y = x
        if self.inside:
            y = self.branch(y)
        else:
            for layer in self.branch:
                y = layer(y)
        return self.add(y, r)


def in_place(y, r):
    y += r
    return y


ADD = {"y + r": lambda y, r: y + r, "r + y": lambda y, r: r + y, "y += r": in_place, "y.add_": lambda y, r: y.add_(r)}
FORMATS = [torch.contiguous_format, torch.channels_last]


def images(layout=torch.contiguous_format, seed=0):
    x = torch.randn(2, 8, 3, 4, generator=torch.Generator().manual_seed(seed))
    return x.contiguous(memory_format=layout)


@pytest.fixture(params=ADD.values(), ids=ADD)
def add(request):
    return request.param


@pytest.fixture(params=["norm", "layer"])
def pair(request, add):
    """The model as written and fused, with the branch a module and not."""
    found = []
    for inside in (False, True):
        torch.manual_seed(0)
        plain = sparse(Sum(request.param, inside, add))
        model = spfde.fuse(copy.deepcopy(plain))
        names = {row.chain for row in (*spfde.fuse.report(model).rows, *spfde.fuse.report(model).layers)}
        assert any(chain.endswith("+add") for chain in names)
        found.append((plain, model))
    return found


@pytest.mark.parametrize("of_r", FORMATS, ids=["r contiguous", "r channels_last"])
@pytest.mark.parametrize("of_x", FORMATS, ids=["x contiguous", "x channels_last"])
def test_a_sum_lies_in_memory_as_its_first_operand(pair, of_x, of_r):
    for plain, model in pair:
        expected, y = (m(images(of_x), images(of_r, 1)) for m in (plain, model))
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
        assert y.stride() == expected.stride()


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64])
def test_a_sum_has_the_precision_that_is_written(pair, dtype, autocast):
    for plain, model in pair:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            x, r = images(), (3 * images(seed=1)).to(dtype)
            expected, y = plain(x, r), model(x, r)
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)  # with its precision


@pytest.mark.parametrize("shape", [(1, 8, 1, 1), (8, 3, 4), (1,), (2, 2, 8, 3, 4), (3, 5)], ids=str)
def test_a_sum_has_the_shape_that_is_written(pair, shape):
    for plain, model in pair:
        r, results = torch.ones(shape), []
        for m in (plain, model):
            try:
                results.append(m(images(), r))
            except RuntimeError as error:
                results.append(str(error))
        if isinstance(results[0], str):
            assert results[1] == results[0]
        else:
            torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-5)
