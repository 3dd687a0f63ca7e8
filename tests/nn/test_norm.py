"""FusedNormAct2d against nn.BatchNorm2d followed by the addition and the activation."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import spfde
from spfde.nn import FusedNormAct2d, norm

OPTIONS = [
    {},
    {"momentum": None},
    {"momentum": 0.4, "eps": 1e-2},
    {"affine": False},
    {"track_running_stats": False},
    {"affine": False, "track_running_stats": False, "momentum": None},
]
CHANNELS_LAST = {"memory_format": torch.channels_last}


def pair(**options):
    torch.manual_seed(0)
    plain = nn.BatchNorm2d(6, **options)
    if plain.affine:
        nn.init.uniform_(plain.weight)
        nn.init.uniform_(plain.bias)
    fused = FusedNormAct2d(6, **options)
    fused.load_state_dict(plain.state_dict())
    return plain, fused


def same_state(plain, fused):
    assert list(plain.state_dict()) == list(fused.state_dict())
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(fused.state_dict()[key], value)


@pytest.mark.parametrize("layout", [{}, CHANNELS_LAST], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_trains_and_evaluates_like_batch_norm(options, layout):
    plain, fused = pair(**options)
    for step in range(4):
        mode = step != 2
        x = (torch.randn(5, 6, 4, 3) + step).contiguous(**layout) if layout else torch.randn(5, 6, 4, 3) + step
        x, residual = x.requires_grad_(), torch.randn_like(x).requires_grad_()
        dy = torch.randn(5, 6, 4, 3)
        wanted = F.relu(plain.train(mode)(x) + residual)
        got = fused.train(mode)(x, residual, "relu")
        torch.testing.assert_close(got, wanted)
        wanted = torch.autograd.grad(wanted, [x, residual, *plain.parameters()], dy)
        torch.testing.assert_close(torch.autograd.grad(got, [x, residual, *fused.parameters()], dy), wanted)
        same_state(plain, fused)


def test_alone_it_is_a_batch_norm():
    plain, fused = pair()
    x = torch.randn(5, 6, 4, 3)
    assert isinstance(fused, nn.BatchNorm2d)
    torch.testing.assert_close(fused(x), plain(x))
    fused.track_running_stats = plain.track_running_stats = False  # torch's buffers then rest in training
    torch.testing.assert_close(fused(x), plain(x))
    torch.testing.assert_close(fused.eval()(x), plain.eval()(x))
    same_state(plain, fused)


@pytest.mark.parametrize("residual", [torch.randn(6, 1, 1), torch.randn(5, 1, 4, 3), 0.5, torch.randn(2, 5, 6, 4, 3)])
def test_a_residual_of_another_shape_is_added_as_torch_would(residual):
    plain, fused = pair()
    x = torch.randn(5, 6, 4, 3)
    torch.testing.assert_close(fused(x, residual, "relu6"), F.relu6(plain(x) + residual))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("add", norm.ADDITIONS)
def test_the_order_and_place_of_an_addition(add, dtype):
    plain, fused = pair()
    x = torch.randn(5, 6, 4, 3)
    for layout in (torch.contiguous_format, torch.channels_last):
        residual = torch.randn(5, 6, 4, 3).to(dtype).contiguous(memory_format=layout)
        y, expected = fused(x, residual, "relu", add=add), F.relu(norm.ADDITIONS[add](plain(x), residual))
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)  # y is float32
        assert y.stride() == expected.stride()


def test_an_addition_that_there_is_not():
    _, fused = pair()
    with pytest.raises(ValueError, match="expected add "):
        fused(torch.randn(5, 6, 4, 3), 0.5, add="sub")
    assert fused.num_batches_tracked == 0


@pytest.mark.parametrize("shape", [(1, 6, 1, 1), (2, 5, 3, 3), (2, 6, 3)])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_wrong_input_does_not_count(shape, momentum):
    _, fused = pair(momentum=momentum)
    before = copy.deepcopy(fused.state_dict())
    with pytest.raises(ValueError, match=r"[Ee]xpected"):
        fused(torch.randn(shape))
    assert all(torch.equal(value, before[key]) for key, value in fused.state_dict().items())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_frozen_it_keeps_its_statistics(copied):
    _, fused = pair()
    fused(torch.randn(5, 6, 4, 3))
    frozen = copied(spfde.freezing.freeze(fused))
    state = copy.deepcopy(frozen.state_dict())
    x = torch.randn(5, 6, 4, 3, requires_grad=True)
    y = frozen.train()(x, None, "relu")
    torch.testing.assert_close(
        y, F.relu(F.batch_norm(x, fused.running_mean, fused.running_var, fused.weight, fused.bias))
    )
    y.sum().backward()
    assert x.grad is not None
    assert all(torch.equal(value, state[key]) for key, value in frozen.state_dict().items())


def test_autocast_and_double():
    plain, fused = pair()
    x = torch.randn(5, 6, 4, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(fused(x.bfloat16(), None, "relu"), F.relu(plain(x.bfloat16())))
    x = x.double().requires_grad_()
    fused.double().eval()
    assert torch.autograd.gradcheck(lambda x, w, b: fused(x), (x, fused.weight, fused.bias))


@pytest.mark.parametrize("momentum", [0.1, None])
def test_compiles(momentum):
    torch._dynamo.reset()
    plain, fused = pair(momentum=momentum)
    compiled = torch.compile(fused, backend="aot_eager", fullgraph=momentum is not None)
    for _ in range(2):
        x = torch.randn(5, 6, 4, 3, requires_grad=True)
        y, wanted = compiled(x, None, "relu"), F.relu(plain(x))
        torch.testing.assert_close(y, wanted)
        torch.testing.assert_close(
            torch.autograd.grad(y.sum(), x), torch.autograd.grad(wanted.sum(), x), atol=1e-4, rtol=0
        )
        same_state(plain, fused)
