"""Freezing inside DistributedDataParallel: works where it can, else a hint before anything changes."""

import pytest
import torch
import torch.distributed as dist
from freezing.models import IMAGES, ResNet
from torch.nn.parallel import DistributedDataParallel

from spfde.freezing import Progressive, blocks, freeze, is_frozen

OPTIONS = {"epochs": 12, "interval": 2, "flops_reduction": 0.1}
HINT = r"expected DistributedDataParallel\(find_unused_parameters=True\) around what is frozen, got {}.*try .*anew"


@pytest.fixture(autouse=True)
def group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("options", "got"),
    [({}, "find_unused_parameters=False"), ({"static_graph": True}, "static_graph")],
)
@pytest.mark.parametrize("inside", [False, True])
def test_a_wrapper_that_waits_for_the_gradients_is_refused_before_anything_changes(options, got, inside):
    model = ResNet()
    found = blocks(model, torch.randn(IMAGES))
    wrapped = DistributedDataParallel(model, **options)
    early = wrapped.module.layer1 if inside else wrapped.get_submodule("module.layer1")
    for call in (lambda: freeze(early), found[0].freeze, lambda: Progressive(model, found, **OPTIONS)):
        with pytest.raises(RuntimeError, match=HINT.format(got)):
            call()
    assert all(p.requires_grad for p in model.parameters()) and all(m.training for m in model.modules())
    assert not any("train" in vars(m) for m in model.modules())


def test_a_wrapper_that_looks_for_unused_parameters_goes_on():
    model = ResNet()
    wrapped = DistributedDataParallel(model, find_unused_parameters=True)
    plan = Progressive(model, blocks(model, torch.randn(IMAGES)), **OPTIONS)
    for epoch in (0, 11):
        plan.begin_epoch(epoch)
        wrapped.train()
        for _ in range(2):
            model.zero_grad()
            wrapped(torch.randn(IMAGES)).sum().backward()
        assert [p.grad is not None for p in model.parameters()] == [p.requires_grad for p in model.parameters()]
    assert plan.blocks[0].is_frozen and model.fc.weight.grad is not None


def test_a_wrapper_that_is_gone_and_other_models_do_not_matter():
    model, other = ResNet(), ResNet()
    wrapped, elsewhere = DistributedDataParallel(model), DistributedDataParallel(other)
    del wrapped
    freeze(model.layer1)
    again = DistributedDataParallel(model)
    again(torch.randn(IMAGES)).sum().backward()
    freeze(model.layer1)  # nothing changes for the wrapper
    assert is_frozen(model.layer1) and elsewhere.module is other


def test_a_whole_model_freezes_in_any_wrapper():
    wrapped = DistributedDataParallel(ResNet())
    freeze(wrapped)
    assert is_frozen(wrapped)
