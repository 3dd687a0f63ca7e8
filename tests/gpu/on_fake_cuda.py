"""The library on a GPU that is not there; run by test_on_fake_cuda.py.

What mixes devices is an error there, and so is what makes the CPU wait for the GPU where a step must not.
"""

from __future__ import annotations

import copy
import sys

import fake_cuda
import layers
import pytest
import torch
from cases import Case, Layer, conv
from fake_cuda import no_waiting
from record import Record
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from variants import PARTS

import spfde
from spfde import topology
from spfde.kernels import conv2d, spmm
from spfde.kernels.triton import candidates as triton_candidates
from spfde.tuning import sweep, timing
from spfde.tuning.layer import LayerSpec

PATTERNS = ("unstructured", "block:16x16", "block:32x16", "block:4x1", "block:1x4", "2:4", "fan-in", "channel")
IMAGES = (2, 3, 8, 8)


def network(pattern: str = "block:16x16", device: str = "cuda", **options) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3, 2, 1), nn.BatchNorm2d(32),
        nn.ReLU(), nn.Conv2d(32, 48, 1), nn.Flatten(), nn.Linear(768, 40), nn.ReLU(), nn.Linear(40, 10),
    )  # fmt: skip
    share = {"2:4": {}, "channel": {"sparsity": 0.5}}.get(pattern, {"sparsity": 0.7})
    return spfde.sparsify(model, **share, pattern=pattern, **options).to(device)


def images(seed: int = 0, device: str = "cuda") -> Tensor:
    return torch.randn(IMAGES, generator=torch.Generator().manual_seed(seed)).to(device)


def step(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Loss and gradients."""
    targets = torch.arange(len(x), device=x.device)
    loss = cross_entropy(model(x), targets)
    return [loss.detach(), *torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])]


def force(model: nn.Module, kernel: str) -> None:
    for layer in model.modules():
        if isinstance(layer, spfde.nn.SparseLinear | spfde.nn.SparseConv2d):
            layer.kernel = kernel


def close(fakes: list[Tensor], exact: list[Tensor]) -> None:
    for got, want in zip(fakes, exact, strict=True):
        assert got.is_cuda
        torch.testing.assert_close(got.cpu(), want, rtol=1e-3, atol=1e-4)


def test_the_fake_is_as_strict_as_a_gpu():
    here, there = torch.randn(3), torch.randn(3, device="cuda")
    with pytest.raises(AssertionError, match="tensors on cuda and cpu"):
        there + here
    with pytest.raises(AssertionError, match="address of a tensor on cuda"):
        there.data_ptr()
    with pytest.raises(AssertionError, match="CPU generator"):
        torch.randn(3, device="cuda", generator=torch.Generator())
    assert torch.equal((there + torch.tensor(1.0)).cpu(), there.cpu() + 1)
    for wait in (
        lambda: float(there[0]), lambda: there.cpu(), lambda: here.cuda(), lambda: there[there > 0],
        lambda: there.nonzero(), lambda: torch.tensor([1.0], device="cuda"), lambda: bool((there > 0).any()),
    ):  # fmt: skip
        wait()
        with no_waiting(), pytest.raises(AssertionError, match="waits for the GPU"):
            wait()


@pytest.mark.parametrize(
    ("kernel", "registered"),
    [("dense", False), ("auto", False), ("auto", True), ("reference", True), ("triton", False), ("triton", True)],
)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_step_is_that_of_a_cpu_and_waits_for_nothing(pattern, kernel, registered, monkeypatch):
    for module in (spmm, conv2d):
        monkeypatch.setattr(sys.modules[module.__module__], "through_dispatcher", lambda x: registered)
    model, twin = network(pattern), network(pattern, "cpu")
    if kernel == "triton" and pattern not in ("block:16x16", "block:32x16"):
        model, twin = model[7:], twin[7:]  # the linear ones
        x, there = images().new_zeros(2, 768) + 0.1, torch.zeros(2, 768) + 0.1
    else:
        x, there = images(), images(device="cpu")
    force(model, kernel)
    exact = step(twin, there)
    close(step(model, x), exact)
    with no_waiting():
        again = step(model, x)
    close(again, exact)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_step_under_autocast_waits_for_nothing(dtype):
    model = network()[3:9]  # sparse layers: the fake knows nothing of torch's own autocast
    x = torch.randn(2, 32, 8, 8, device="cuda")
    force(model, "triton")
    parameters = list(model.parameters())
    with torch.autocast("cuda", dtype):
        torch.autograd.grad(model(x).float().square().sum(), parameters)
        with no_waiting():
            y = model(x)
            grads = torch.autograd.grad(y.float().square().sum(), parameters)
    assert y.dtype == dtype
    assert all(g.dtype == torch.float32 and bool(torch.isfinite(g).all()) for g in grads)


def test_inference_and_frozen_layers_wait_for_nothing():
    model, x = network(), images()
    force(model, "triton")
    spfde.freezing.freeze(model[0])
    spfde.freezing.freeze(model[3])
    step(model, x)
    with no_waiting():
        step(model, x)
        with torch.inference_mode():
            assert model(x).shape == (2, 10)
    spfde.freezing.unfreeze(model[3])
    step(model, x)


@pytest.mark.parametrize("name", list(topology.METHODS))
def test_topologies_move_as_on_a_cpu(name):
    masks = []
    for device in ("cpu", "cuda"):
        model = network("unstructured", device)
        # Adam's first steps are as long for each weight, and P-GaP ranks those that have just grown by their size.
        optimizer = torch.optim.SGD if name == "p-gap" else torch.optim.AdamW
        params = optimizer(model.parameters(), 0.05)
        moves = topology.METHODS[name](model, params, total_steps=6, every=2, seed=3)
        for number in range(6):
            params.zero_grad()
            cross_entropy(model(images(number, device)), torch.arange(2, device=device)).backward()
            params.step()
            moves.step()
        kept = copy.deepcopy(moves.state_dict())
        moves.load_state_dict(kept)
        masks.append([m.mask().cpu() for m in model if isinstance(m, spfde.nn.SparseLinear | spfde.nn.SparseConv2d)])
    shared = [float((a == b).float().mean()) for a, b in zip(*masks, strict=True)]
    assert min(shared) > 0.99  # a tie may fall otherwise by the rounding of another order of sums


@pytest.mark.parametrize("name", [name for name in topology.METHODS if name not in ("snfs", "deepr", "constrained-l0")])
def test_between_its_updates_a_method_waits_for_nothing(name):
    model, x, targets = network("unstructured"), images(), torch.arange(2, device="cuda")
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    moves = topology.METHODS[name](model, optimizer, total_steps=20, every=4, seed=1)

    def train() -> bool:
        optimizer.zero_grad()
        cross_entropy(model(x), targets).backward()
        optimizer.step()
        return moves.step()

    while not train():
        pass
    with no_waiting():
        assert not train()


@pytest.mark.parametrize("pattern", ["block:16x16", "2:4", "fan-in"])
def test_a_move_builds_tiles_again_without_new_shapes(pattern):
    model, x = network(pattern), images()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    moves = topology.SET(model, optimizer, total_steps=4, every=1)
    for _ in range(3):
        fake_cuda.launches.clear()
        force(model, "triton") if pattern == "block:16x16" else None
        cross_entropy(model(x), torch.arange(2, device="cuda")).backward()
        first, fake_cuda.launches[:] = list(fake_cuda.launches), []
        optimizer.step()
        moves.step()
        cross_entropy(model(x), torch.arange(2, device="cuda")).backward()
        assert fake_cuda.launches == first


@pytest.mark.parametrize("init", ["random", "magnitude", "snip", "grasp", "synflow", "force"])
def test_births_on_the_gpu_are_those_of_a_cpu(init):
    masks = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4)).to(device)
        x = torch.randn(8, 20, generator=torch.Generator().manual_seed(1)).to(device)
        data = (x, torch.arange(8, device=device) % 4)
        asks = {} if init in ("random", "magnitude") else {"data": data, "loss_fn": cross_entropy}
        model = spfde.sparsify(model, 0.5, init=init, **asks)
        assert model[2].values.device.type == device
        masks.append(model[2].mask().cpu())
    assert float((masks[0] == masks[1]).float().mean()) > 0.97


@pytest.mark.parametrize("pattern", PATTERNS)
def test_conversions(pattern, capsys):
    model, x = network(pattern), images()
    model.eval()
    y = model(x)
    assert "cuda" not in str(spfde.summary(model))
    close([copy.deepcopy(model)(x)], [y.detach().cpu()])
    other = network(pattern)
    other.load_state_dict(model.state_dict())
    state = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    other.load_state_dict(state)
    close([spfde.fuse(copy.deepcopy(model))(x)], [y.detach().cpu()])
    torch.testing.assert_close(copy.deepcopy(model).cpu()(x.cpu()), y.cpu(), rtol=1e-3, atol=1e-4)
    close([spfde.densify(model)(x)], [y.detach().cpu()])


def test_an_input_elsewhere_and_what_is_for_a_cpu_are_refused():
    model, x = network(), images()
    with pytest.raises(ValueError, match="expected x on cuda:0 like the layer, got cpu"):
        model[3](torch.randn(2, 32, 8, 8))
    with pytest.raises(ValueError, match="expected a model on the CPU"):
        spfde.profile(model, x)
    model[3].kernel = "native"
    with pytest.raises(ValueError, match="kernel 'native'"):
        model(x)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own, where it forgets compiled graphs
def test_freezing_and_sieving():
    model, x = network(), images()
    blocks = spfde.freezing.blocks(model, x)
    freezer = spfde.freezing.Progressive(model, blocks, epochs=20, interval=1, flops_reduction=0.2)
    for epoch in range(20):
        freezer.begin_epoch(epoch)
        step(model, x)
    sieve = spfde.sieving.Circular(20, fraction=0.2, interval=1, seed=0)
    for _ in range(3):
        logits, targets = torch.randn(20, 4, device="cuda"), torch.arange(20, device="cuda") % 4
        for order in torch.as_tensor(list(sieve)).split(5):
            sieve.observe(order, logits[order.cuda()], targets[order.cuda()])
        sieve.end_epoch()


def test_the_timing_program_writes_a_record(monkeypatch, tmp_path):
    linear = Layer("linear", 2, (64, 64), bias=False)
    small = [
        Case(linear, "block:32x32", 0.8, "tf32"),
        Case(conv(1, (64, 64), 4, 3, bias=False), "block:32x32", 0.8, "bfloat16"),
        Case(linear, sparsity=0.5, dtype="bfloat16", clustered=True),
    ]  # fmt: skip
    monkeypatch.setattr(layers, "cases_of", lambda *options: small)
    monkeypatch.setattr(timing, "WARMUP", 0)
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    path = tmp_path / "record.json"
    layers.main(["--device", "cuda", "--rounds", "1", "--seconds", "200", "--json", str(path)])
    assert before == (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
    record = Record.read(path)
    assert "H200" in record.machine["gpu"] and not record.unfinished
    for cell in record.cells:
        assert "triton" not in cell.absent and not cell.failed, (cell.absent, cell.failed)
        assert cell.auto in ("triton", "masked")
        assert list(cell.seconds["triton"]) == list(PARTS) == list(cell.host["triton"])


def test_a_model_is_tuned_with_its_launches(monkeypatch, tmp_path):
    monkeypatch.setattr(triton_candidates, "MOST", 2)
    monkeypatch.setattr(sweep, "BUCKETS", [16])
    monkeypatch.setattr(timing, "WARMUP", 0)
    spec = LayerSpec((32, 64), 16, pattern="block:32x32", dtype="bfloat16")
    outcome, path = sweep.tune_here("cuda", [spec], tmp_path / "t.json", 100, 1, lambda line: None)
    assert outcome.refused == {} and spfde.Table.load(path) == outcome.table
    model, x = network("block:32x16")[3:4], torch.randn(1, 32, 4, 4, device="cuda")
    table = spfde.tune(model, x, table=outcome.table, repeats=1)
    assert [len(entry.launches) for entry in table.entries] == [3, 3]  # float32 convolutions may round to TF32
    assert model[0].choice.reason.endswith(f"(table {table.name})")
    spfde.use_table(None, model)
    spfde.use_table(path)
    try:
        layer = spec.sparse(2**-2, "cuda")
        layer(spec.input("cuda"))
        assert layer.choice.reason.endswith(f"(table {outcome.table.name})")
        model(x)
        assert model[0].choice.reason.startswith(("predicted", "no sparse"))
    finally:
        spfde.use_table(None)


@pytest.mark.parametrize("pattern", ["block:16x16", "block:4x1"])
def test_the_frozen_front_is_one_call_that_waits_for_nothing(pattern):
    model, twin = network(pattern), network(pattern, "cpu")
    for each in (model, twin):
        for block in spfde.freezing.blocks(each, images(device=next(each.parameters()).device.type))[:2]:
            block.freeze()
    prefix = spfde.freezing.Prefix(model, spfde.freezing.blocks(model, images()))
    x = images()
    with prefix():
        model(x)  # folds
    with no_waiting(), prefix():
        got = step(model, x)
    assert "2 of 2 convolutions folded" in str(prefix)
    close(got, step(twin, images(device="cpu")))


@pytest.mark.parametrize("registered", [False, True])
def test_a_step_by_torchs_semi_structured_products_waits_for_nothing(registered, monkeypatch):
    from torch.sparse._semi_structured_conversions import sparse_semi_structured_to_dense_cutlass as unpacked

    from spfde.kernels import semi_structured
    from spfde.kernels.dispatch import rule

    rule.forget()
    used = []
    product = lambda packed, meta, x: used.append(1) or unpacked(packed, meta) @ x  # noqa: E731
    monkeypatch.setattr(torch, "_sparse_semi_structured_mm", product)
    monkeypatch.setattr(torch, "_sparse_semi_structured_addmm", lambda b, *args: product(*args) + b[:, None])
    layer = spfde.sparsify(nn.Linear(64, 32), pattern="2:4").cuda()
    x = torch.randn(20, 64, generator=torch.Generator().manual_seed(0)).cuda()
    if registered:
        monkeypatch.setattr(spmm, "through_dispatcher", lambda x: True)

    def run() -> list[Tensor]:
        with torch.autocast("cuda", torch.float16):
            y = layer(x)
        return [y.detach(), *torch.autograd.grad(y.float().square().sum(), layer.parameters())]

    layer.kernel = "semi_structured"
    with pytest.raises(ValueError, match="no 2:4 product on this GPU"):
        run()
    monkeypatch.setattr(semi_structured, "backend", lambda: "cutlass")
    rule.forget()
    run()
    with no_waiting():
        got = run()
    assert len(used) == 2
    layer.kernel = "dense"
    for mine, dense in zip(got, run(), strict=True):
        assert mine.is_cuda
        assert (mine.cpu() - dense.cpu()).norm() <= 2e-3 * dense.cpu().norm()  # a half rounds at 5e-4
    rule.forget()
