"""Tracing a forward while garbage is collected."""

import gc

import torch
from torch import nn

from spfde import fuse
from spfde.nn import FusedNormAct2d

collected = 0


def count(phase, info):
    global collected
    collected += 1


def test_what_runs_at_a_collection_is_no_part_of_a_forward():
    model, threshold = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval(), gc.get_threshold()
    x = torch.randn(2, 3, 5, 5)
    want = model(x)
    gc.callbacks.append(count)
    gc.set_threshold(1)
    try:
        fused = fuse(model)
    finally:
        gc.callbacks.remove(count)
        gc.set_threshold(*threshold)
    assert collected
    assert gc.isenabled()
    assert any(isinstance(module, FusedNormAct2d) for module in fused.modules())
    torch.testing.assert_close(fused(x), want)
