"""The ops of a step: which are noted, how much there is of each, and curves of them."""

import torch
from torch import nn

from spfde.nn import FusedNormAct2d
from spfde.tuning.ops import LAST, NORM, NORM_GRAD, Op, OpLog, curve, eager, summarised


def test_products_and_views_are_left_out():
    layer, x = nn.Linear(3, 4), torch.randn(2, 3)
    with OpLog() as log:
        layer(x).t().relu().sum().backward()
    names = [op.name for op in log.ops]
    assert "aten::relu" in names and "aten::threshold_backward" in names
    assert not {"aten::addmm", "aten::mm", "aten::t"} & {*names}
    assert all(op.seconds == 0 for op in log.ops)
    [relu] = [op for op in log.ops if op.name == "aten::relu"]
    assert relu.amount == 2 * 8 * 4, "read and written"


def test_products_of_activations_are_counted_in_flops():
    q, k, v = (torch.randn(2, 3, 5, 8, requires_grad=True) for _ in range(3))
    with OpLog() as log:
        nn.functional.scaled_dot_product_attention(q, k, v).sum().backward()
        torch.bmm(q.flatten(0, 1), k.flatten(0, 1).mT)
    amounts = {op.name: op.amount for op in log.ops}
    assert amounts["aten::bmm"] == 2 * 6 * 5 * 5 * 8
    attention = {name: amount for name, amount in amounts.items() if "attention" in name}
    assert sorted(attention.values()) == [2 * 2 * 6 * 5 * 8 * 5, 5 * 2 * 6 * 5 * 8 * 5]


def test_a_clock_times_the_ops():
    now = iter(range(1000))
    with OpLog(lambda: float(next(now))) as log:
        torch.ones(3).exp()
    assert [op.seconds for op in log.ops] == [1.0] * len(log.ops)


def test_amounts_within_an_octave_are_one_point():
    ops = [Op("a", 8, 1.0), Op("a", 12, 3.0), Op("a", 16, 5.0), Op("b", 0, 1.0)]
    rows = tuple(summarised(ops))
    assert curve(rows, "a") == [(10, 2.0), (16, 5.0)] and curve(rows, "b") == [(0, 1.0)] and curve(rows, "c") == []


def test_the_memory_format_of_images_is_part_of_the_name():
    x = torch.randn(2, 3, 4, 5)
    with OpLog() as log:
        x.exp()
        x.contiguous(memory_format=torch.channels_last).exp()
        x.flatten(1).exp()
    assert [op.name for op in log.ops if "exp" in op.name] == ["aten::exp", "aten::exp" + LAST, "aten::exp"]


def test_what_a_registered_op_leaves_to_torch_is_no_eager_steps():
    x = torch.randn(2, 3, 4, 5, requires_grad=True)
    norm, count = FusedNormAct2d(3).train(), torch.zeros(3)
    with OpLog() as log:
        y = norm(x, None, "relu")
        count.mul_(2).add_(1)
        y.sum().backward()
    names = [op.name for op in eager(log.ops)]
    assert {"aten::lerp_", "aten::zeros"} <= {op.name for op in log.ops} and not {"aten::lerp_", "aten::zeros"} & {
        *names
    }
    assert names.count(NORM) == names.count(NORM_GRAD) == 1
    assert names.count("aten::mul_") == 1 and names.count("aten::add_") == 2, "of the count, and of the batches"
