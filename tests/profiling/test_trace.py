"""What a step's instants are given to, in numbers of clock readings instead of seconds."""

import itertools
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from profiling.models import Block, images, loss_fn, sparse_block
from torch import nn
from torch.utils.checkpoint import checkpoint

import spfde
from spfde.kernels.clock import measure
from spfde.profiling.dense_baseline import step_of
from spfde.profiling.kinds import KINDS, kind_of_function, kind_of_module, plain_name
from spfde.profiling.timeline import Timeline
from spfde.profiling.trace import Trace


def traced(model, x, loss=loss_fn):
    """The buckets of a step, each with the number of clock readings in it."""
    step = step_of(model, None, lambda: x, loss)
    with measure() as kernels:
        timeline = Timeline(kernels, itertools.count().__next__)
        trace = Trace(timeline)
        with trace.of(step.model):
            step(trace.phase)
    return timeline.seconds


def ops(seconds, phase):
    return {(b.layer, b.op, b.kind) for b in seconds if b.phase == phase}


def test_dense_layers_functions_and_phases_forward_and_backward():
    seconds = traced(Block(), images())
    layers = {
        ("stem", "Conv2d", "dense products"),
        ("conv", "Conv2d", "dense products"),
        ("bn", "BatchNorm2d", "norm"),
        ("relu", "ReLU", "activation"),
        ("fc", "Linear", "dense products"),
        ("", "add", "add"),
        ("", "relu", "activation"),
        ("", "mean", "other ops"),
    }
    forward, backward = ops(seconds, "forward"), ops(seconds, "backward")
    assert forward == layers | {("", "", "Python"), ("", "Block", "Python")}
    assert backward == layers | {("", "", "autograd engine"), ("", "cross_entropy", "loss")}
    assert ops(seconds, "loss") >= {("", "cross_entropy", "loss")}
    assert ops(seconds, "optimizer") == {("", "", "optimizer")}
    assert ops(seconds, "data") == {("", "", "data")}
    assert {b.kind for b in seconds} <= set(KINDS)


def test_sparse_layers_are_kernels_with_python_around():
    seconds = traced(sparse_block(), images())
    conv = {b.kind for b in seconds if b.layer == "conv" and b.phase == "backward"}
    assert conv & {"sparse kernels", "masked dense"}
    assert not {b for b in seconds if b.layer == "conv" and b.kind == "dense products"}


def test_a_fused_model_is_followed_through_its_rewritten_forward():
    model = spfde.fuse(sparse_block(), recompute=True)
    seconds = traced(model, images())
    assert {b.kind for b in seconds if b.layer == "bn"} >= {"norm"}
    assert not {b for b in seconds if b.layer == "relu"}  # part of the norm


def entries(model, x, loss=loss_fn):
    """How often each (phase, layer, op) is entered in a step: every node of the graph is one entry."""
    found = Counter()

    class Counting(Timeline):
        def push(self, bucket):
            found[bucket.phase, bucket.layer, bucket.op] += 1
            super().push(bucket)

    step = step_of(model, None, lambda: x, loss)
    with measure() as kernels:
        trace = Trace(Counting(kernels))
        with trace.of(step.model):
            step(trace.phase)
    return found


def test_nodes_belong_to_what_made_them():
    found = entries(Block(), images())
    assert found["backward", "conv", "Conv2d"] == 2  # the convolution, its weight's gradient
    assert found["backward", "stem", "Conv2d"] == 3  # and a bias
    assert found["backward", "bn", "BatchNorm2d"] == 3
    assert found["backward", "relu", "ReLU"] == 1
    assert found["backward", "", "add"] == 1
    assert found["backward", "", "relu"] == 1


def test_a_module_called_twice_has_both_calls():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(5, 5)

        def forward(self, x):
            return self.fc(self.fc(x))

    found = entries(Twice(), torch.ones(3, 5))
    assert found["forward", "fc", "Linear"] == 2
    assert found["backward", "fc", "Linear"] == 2 * 2 + 2  # a product and a transpose each; weight and bias are one


def test_a_bare_layer_a_checkpoint_and_multihead_attention():
    seconds = traced(nn.Linear(5, 5), torch.ones(3, 5))
    assert {b.kind for b in seconds if b.op == "Linear"} == {"dense products"}

    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(5, 5), nn.GELU(), nn.Linear(5, 5))

        def forward(self, x):
            return checkpoint(self.body, x, use_reentrant=False)

    seconds = traced(Checkpointed(), torch.ones(3, 5))
    assert {"body.0", "body.1", "body.2"} <= {b.layer for b in seconds if b.phase == "backward"}

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x):
            return self.attention(x, x, x)[0].flatten(1)

    found = ops(traced(Attention(), torch.ones(3, 2, 4)), "backward")
    assert ("attention", "multi_head_attention_forward", "dense products") in found


@pytest.mark.parametrize("where", ["forward", "loss"])
def test_an_error_leaves_no_hook_and_no_mode(where):
    class Fails(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(5, 5)

        def forward(self, x):
            if where == "forward":
                self.fc(x[:, :1])
            return self.fc(x)

    def loss(output):
        raise RuntimeError("no loss")

    step = step_of(Fails(), None, lambda: torch.ones(3, 5), loss)
    with measure() as kernels:
        trace = Trace(Timeline(kernels))
        with pytest.raises(RuntimeError), trace.of(step.model):
            step(trace.phase)
    assert not torch.overrides._get_current_function_mode_stack()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in step.model.modules())


def test_kinds_by_name():
    assert kind_of_module(nn.Conv1d(1, 1, 1)) == "dense products"
    assert kind_of_module(nn.GroupNorm(1, 1)) == "norm"
    assert kind_of_module(nn.GELU()) == "activation"
    assert kind_of_module(nn.MaxPool2d(2)) == "other ops"
    assert [plain_name(f) for f in (torch.add, torch.Tensor.add_, torch.Tensor.__iadd__, F.relu)] == [
        "add", "add", "add", "relu"
    ]  # fmt: skip
    assert kind_of_function("scaled_dot_product_attention") == "dense products"
    assert kind_of_function("flatten") == "other ops"
