"""Freezing inside DistributedDataParallel: works where it can, else a hint before anything changes."""

import pytest
import torch
import torch.distributed as dist
from freezing.models import IMAGES, ResNet
from torch.nn.parallel import DistributedDataParallel

from spfde.freezing import Prefix, Progressive, blocks, freeze, is_frozen, unfreeze
from spfde.integrations import EMA, Rebucketed

OPTIONS = {"epochs": 12, "interval": 2, "flops_reduction": 0.1}
HINT = (
    r"expected DistributedDataParallel\(find_unused_parameters=True\) around what is frozen, got {}.*try .*Rebucketed"
)


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


def test_a_wrapper_that_was_made_around_something_frozen_is_refused_when_that_thaws():
    model = ResNet()
    early = blocks(model, torch.randn(IMAGES))[0]
    early.freeze()
    wrapped = DistributedDataParallel(model, find_unused_parameters=True)
    known = sum(p.requires_grad for p in model.parameters())
    for call in (early.unfreeze, lambda: unfreeze(model.layer1)):
        with pytest.raises(RuntimeError, match=rf"made when all it holds trained, got one for {known} of .*Rebucketed"):
            call()
    assert early.is_frozen and wrapped.module is model
    del wrapped
    early.unfreeze()
    assert all(p.requires_grad for p in model.parameters())


def test_a_wrapper_is_made_anew_after_a_freeze_and_a_thaw_and_at_no_other_time():
    model, made = ResNet(), []

    def wrap(model):
        made.append(sum(p.requires_grad for p in model.parameters()))
        return DistributedDataParallel(model)

    ddp = Rebucketed(model, wrap)
    early = blocks(model, torch.randn(IMAGES))[0]
    for change in (early.freeze, lambda: None, early.unfreeze):
        change()
        with torch.no_grad():
            ddp(torch.randn(IMAGES))
        for _ in range(2):
            model.zero_grad()
            with ddp.no_sync():
                ddp(torch.randn(IMAGES)).sum().backward()
            ddp(torch.randn(IMAGES)).sum().backward()
        assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
    whole = sum(True for _ in model.parameters())
    assert made == [whole, whole - len(early.trainable), whole]
    assert [*ddp.state_dict()] == [f"module.{key}" for key in model.state_dict()]
    assert not ddp.eval().module.training and EMA(ddp).model is model


def test_a_wrapper_that_something_else_holds_is_not_made_anew():
    model = ResNet()
    ddp = Rebucketed(model)
    held = ddp.wrapper
    freeze(model.layer1)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"nothing but the Rebucketed to hold .* try ddp.wrapper"):
            ddp(torch.randn(IMAGES))
    del held
    ddp(torch.randn(IMAGES)).sum().backward()
    with pytest.raises(TypeError, match="expected wrap to make a DistributedDataParallel, got ResNet"):
        Rebucketed(ResNet(), lambda model: model)
    with pytest.raises(ValueError, match="expected a wrapper for a graph that changes .* got static_graph=True, try"):
        Rebucketed(ResNet(), lambda model: DistributedDataParallel(model, static_graph=True))


def test_a_whole_model_freezes_in_any_wrapper():
    wrapped = DistributedDataParallel(ResNet())
    freeze(wrapped)
    assert is_frozen(wrapped)


@pytest.mark.parametrize("cache", ["off", "auto"])
def test_the_front_of_a_wrapped_model_is_one_call(cache):
    model, x = ResNet(), torch.randn(IMAGES)
    found = blocks(model, x)
    for block in found[:2]:
        block.freeze()
    wrapped, prefix = DistributedDataParallel(model), Prefix(model, found, cache, len(x))
    expected = model.eval()(x)
    for _ in range(2):
        with prefix(torch.arange(len(x))):
            got = wrapped(x)
        got.sum().backward()
        assert torch.allclose(got, expected, rtol=1e-4, atol=1e-5)
    assert all((p.grad is None) == (not p.requires_grad) for p in model.parameters())
    assert cache == "off" or prefix.cache.stats.hits == len(x)
