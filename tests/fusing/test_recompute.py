"""recompute=True: the same bits from fewer saved tensors."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from fusing import models
from fusing.networks import NETWORKS, built, images

import spfde


def inputs_alive_after_forward(model):
    """Names of the layers whose input is still in memory when only the loss is held, and the loss."""
    seen = {}
    for name, m in model.named_modules():
        if not list(m.children()):
            hook = lambda _, args, name=name: seen.update({name: weakref.ref(args[0].untyped_storage())})  # noqa: E731
            m.register_forward_pre_hook(hook)
    loss = model(images()).square().sum()
    gc.collect()
    return {name for name, reference in seen.items() if reference() is not None}, loss


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_recomputing_gives_the_same_bits(name, sparse):
    saving = built(name)
    if sparse:
        spfde.sparsify(saving, 0.5)
        for m in saving.modules():
            if isinstance(m, spfde.nn.SparseLayer):
                m.kernel = "native"
    remaking = spfde.fuse(copy.deepcopy(saving), recompute=True)
    spfde.fuse(saving)
    for model in (saving, pickle.loads(pickle.dumps(remaking)), remaking):
        model(images()).square().sum().backward()
    for p, q in zip(remaking.parameters(), saving.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


def test_what_is_recomputed_is_not_saved():
    plain = models.VGG(True)
    readers = {"features.3", "features.7"}  # of norm + relu: a pooling and a convolution
    alive, loss = inputs_alive_after_forward(spfde.fuse(copy.deepcopy(plain)))
    assert readers <= alive
    alive, loss = inputs_alive_after_forward(spfde.fuse(plain, recompute=True))
    assert not readers & alive
    loss.backward()
