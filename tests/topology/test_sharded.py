"""Models that `fully_shard` (FSDP2) shares out by layer: masks fixed and moving as in one process, or refused."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from launched import launch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.functional import cross_entropy

from spfde import sparsify
from spfde.nn import SparseLayer
from spfde.topology import DSTEE, GMP, ITOP, MEST, SET, SNFS, RigL, SRigL

fsdp = pytest.importorskip("torch.distributed.fsdp")
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-3),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2),
}
CASES = {
    "set": (SET, "sgd", {}),
    "mest": (MEST, "adamw", {"lam": 0.1}),
    "itop": (ITOP, "sgd", {}),
    "rigl": (RigL, "sgd", {}),
    "dstee": (DSTEE, "adamw", {}),
    "dstee, c": (DSTEE, "sgd", {"c": 1e-3}),
    "srigl": (SRigL, "sgd", {}),
    "itop, gradient": (ITOP, "sgd", {"growth": "gradient"}),
    "fixed": (None, "sgd", {}),
}


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(9, 13), nn.ReLU(), nn.Linear(13, 11), nn.ReLU(), nn.Linear(11, 3))
    return sparsify(model, distribution={"0": 0.6, "2": 0.7})


def trained(name: str, model: nn.Module, rank: int = 0, ranks: int = 1) -> nn.Module:
    """Six steps, of which two move the masks, on this rank's samples."""
    method, optimizer, options = CASES[name]
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    topology = method and method(model, optimizer, total_steps=40, every=2, **options)
    generator = torch.Generator().manual_seed(1)
    for _ in range(6):
        inputs, targets = torch.randn(8, 9, generator=generator), torch.randint(3, (8,), generator=generator)
        samples, inputs, targets = inputs, inputs[rank::ranks], targets[rank::ranks]
        for half in (slice(2), slice(2, None)):  # accumulated
            (cross_entropy(model(inputs[half]), targets[half], reduction="sum") / len(inputs)).backward()
        optimizer.step()
        if topology:
            topology.step()
        optimizer.zero_grad()
        with torch.no_grad():
            model(samples)  # leaves the outermost weights whole until they are needed
    if topology:
        assert topology.finish() == 0
    return model


def whole(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: v.full_tensor() if hasattr(v, "full_tensor") else v for name, v in model.state_dict().items()}


def sharded() -> nn.Module:
    model, mesh = network(), init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model:
        if isinstance(layer, SparseLayer):
            fsdp.fully_shard(layer, mesh=mesh)
    return fsdp.fully_shard(model, mesh=mesh)


def work(rank: int, folder: str) -> None:
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    found = {name: whole(trained(name, sharded(), rank, 2)) for name in CASES}
    torch.save(found, f"{folder}/{rank}.pt")
    for method, options, words in (
        (SNFS, {}, r"fully_shard \(FSDP2\) can gather .*, got SNFS, .*try SET, MEST"),
        (GMP, {"sparsity": 0.9}, "got GMP"),
        (MEST, {"soft": True}, "before DistributedDataParallel or fully_shard, got"),
    ):
        model = sharded()
        with pytest.raises(ValueError, match=words):
            method(model, OPTIMIZERS["sgd"](model.parameters()), total_steps=40, **options)
    unseen_passes()
    dist.destroy_process_group()


def unseen_passes() -> None:
    """A pass that does not reach the step is noticed, decay that somebody adds is not one."""
    model = sharded()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    topology = RigL(model, optimizer, total_steps=40, every=1)
    for zeroed in (False, True):
        optimizer.zero_grad()
        model(torch.randn(4, 9)).square().sum().backward()
        if zeroed:
            optimizer.zero_grad()
            model(torch.randn(4, 9)).square().sum().backward()
        for parameter in model.parameters():
            parameter.grad.add_(parameter.detach(), alpha=0.1)
        optimizer.step()
        if not zeroed:
            assert topology.step()
    masks = [buffer.clone() for buffer in model.buffers()]
    with pytest.raises(ValueError, match="expected the gradient of '0' to be the sum .* under fully_shard"):
        topology.step()
    assert all(map(torch.equal, masks, model.buffers()))


def test_sharded_masks_move_as_in_one_process(tmp_path):
    launch(work, 2, str(tmp_path), start="fork")
    first, second = (torch.load(Path(tmp_path) / f"{rank}.pt", weights_only=True) for rank in range(2))
    for name in CASES:
        alone = whole(trained(name, network()))
        assert alone.keys() == first[name].keys()
        for key, value in alone.items():
            assert first[name][key].equal(second[name][key]), (name, key)
            torch.testing.assert_close(first[name][key], value, rtol=1e-4, atol=1e-6, msg=f"{name} {key}")
            if key.endswith(("row_ptr", "col")):
                assert first[name][key].equal(value), (name, key)
    start = network().state_dict()
    assert not first["rigl"]["2.col"].equal(start["2.col"])
    assert not first["set"]["2.col"].equal(start["2.col"]) and first["fixed"]["2.col"].equal(start["2.col"])
