"""One step: parts of a batch, smoothing and clipping against a reference in float64; bfloat16 close to float32."""

import copy
import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional

from spfde.data import Images
from spfde.levers import Backward
from spfde.train.build import build
from spfde.train.session import Inputs
from spfde.train.stats import Stopwatch
from spfde.train.step import forward_backward, mean_loss, sample_losses, update


def plain(seed=0):
    """A network without BatchNorm: the parts of a batch see nothing of each other."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 4))


def session(task, model=None, **fields):
    recipe = task.recipe(method="dense", **fields)
    return build(Inputs(recipe, plain() if model is None else model, task.train, task.test))


def passes(run, images, targets):
    return forward_backward(run, images, targets, torch.arange(len(targets)), Stopwatch())


def gradients(model):
    return [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("size", [16, 13, 2, 1])
@pytest.mark.parametrize("accumulate", [1, 2, 3, 8])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_parts_add_up_to_the_batchs_gradient(task, size, accumulate, smoothing):
    run = session(task, accumulate=accumulate, label_smoothing=smoothing)
    images, targets = task.train.images[:size], task.train.targets[:size]
    reference = copy.deepcopy(run.model).double()
    expected = reference(images.double())
    share = functional.one_hot(targets, 4).double() * (1 - smoothing) + smoothing / 4
    loss = -(share * expected.log_softmax(1)).sum(1).mean()
    loss.backward()
    logits, value = passes(run, images, targets)
    assert value == pytest.approx(loss.item(), rel=1e-5)
    torch.testing.assert_close(logits.double(), expected.detach(), rtol=1e-4, atol=1e-5)
    assert not logits.requires_grad
    for got, right in zip(gradients(run.model), gradients(reference), strict=True):
        torch.testing.assert_close(got.double(), right, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.23])
@pytest.mark.parametrize("size", [1, 2, 3, 63, 96])
def test_the_mean_loss_is_torchs_to_the_bit_and_each_samples_too(smoothing, size):
    generator = torch.Generator().manual_seed(size)
    logits, targets = 3 * torch.randn(size, 10, generator=generator), torch.arange(size) % 10
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    (mean := mean_loss(ours.log_softmax(1), targets, smoothing) * 0.37).backward()
    (expected := functional.cross_entropy(theirs, targets, label_smoothing=smoothing) * 0.37).backward()
    assert torch.equal(mean, expected) and torch.equal(ours.grad, theirs.grad)
    each = functional.cross_entropy(logits, targets, label_smoothing=smoothing, reduction="none")
    assert torch.equal(sample_losses(logits.log_softmax(1), targets, smoothing), each)


def test_no_part_has_one_sample(task):
    sizes = []
    run = session(task, accumulate=8)
    run.model.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    for size in range(1, 17):
        sizes.clear()
        passes(run, task.train.images[:size], task.train.targets[:size])
        assert sum(sizes) == size and len(sizes) <= 8
        assert size == 1 or min(sizes) > 1


@pytest.mark.parametrize("clip", [0.0, 0.01, 1e6])
def test_the_whole_gradient_is_clipped(task, clip):
    run = session(task, clip=clip, momentum=0, weight_decay=0, lr=1.0)
    run.set_learning_rate(0.5)
    rate = run.optimizer.param_groups[0]["lr"]
    before = [p.detach().clone().double() for p in run.model.parameters()]
    passes(run, task.train.images[:16], task.train.targets[:16])
    slopes = [g.double() for g in gradients(run.model)]
    norm = torch.cat([g.flatten() for g in slopes]).norm().item()
    assert 0.01 < norm < 1e6
    update(run, Stopwatch())
    factor = min(1.0, clip / norm) if clip else 1.0
    for p, old, slope in zip(run.model.parameters(), before, slopes, strict=True):
        torch.testing.assert_close(p.detach().double(), old - rate * factor * slope, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("broken", [False, True])
def test_scaled_losses_leave_the_gradient_as_it_is_and_a_broken_step_is_not_taken(task, broken):
    seen = []

    class Look:
        needs = (Backward,)

        def on(self, event, run):
            seen.append([p.grad.clone() for p in run.model.parameters()])

        def state_dict(self):
            return {}

        load_state_dict = print

    plain_run, run = session(task), session(task)
    run.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    run.use([Look()])
    for each in (plain_run, run):
        each.set_learning_rate(0.5)
        passes(each, task.train.images[:16], task.train.targets[:16])
    if broken:
        next(run.model.parameters()).grad.fill_(float("inf"))
    before = [p.detach().clone() for p in run.model.parameters()]
    assert update(plain_run, Stopwatch()) and update(run, Stopwatch()) != broken
    if broken:
        assert all(torch.equal(p, old) for p, old in zip(run.model.parameters(), before, strict=True))
        return
    for unscaled, ours, theirs in zip(seen[0], run.model.parameters(), plain_run.model.parameters(), strict=True):
        torch.testing.assert_close(unscaled, theirs.grad, rtol=1e-5, atol=1e-8)
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)


def test_bfloat16_is_close_to_float32_and_really_used(task):
    images, targets = task.train.images[:16], task.train.targets[:16]
    kinds = {}
    for precision in ("float32", "bfloat16"):
        run = session(task, precision=precision)
        run.model.register_forward_hook(lambda m, i, output, p=precision: kinds.update({p: output.dtype}))
        logits, loss = passes(run, images, targets)
        if precision == "float32":
            exact, exact_loss, slopes = logits, loss, gradients(run.model)
    assert kinds == {"float32": torch.float32, "bfloat16": torch.bfloat16}
    assert loss == pytest.approx(exact_loss, rel=0.02) and loss != exact_loss
    assert (logits - exact).norm() < 0.02 * exact.norm()
    for got, right in zip(gradients(run.model), slopes, strict=True):
        assert got.dtype == torch.float32
        assert (got - right).norm() < 0.05 * right.norm()


@pytest.mark.parametrize(
    "fields",
    [
        {"accumulate": 4},
        {"clip": 0.5, "label_smoothing": 0.1},
        {"precision": "bfloat16"},
        {"optimizer": "adamw", "lr": 0.01},
        {"schedule": "step"},
        {"fuse": True},
        {"flip": True, "crop": 1},
        {"sieve_by": "random"},
        {"nesterov": True},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_every_way_to_step_learns(task, fields):
    first, last = task.fit(task.recipe(epochs=5, **fields)).epochs[::4]
    assert last.train_loss < 0.8 * first.train_loss and last.test_accuracy > 0.6


def test_images_are_augmented_by_epoch_and_index_and_only_for_training(task):
    run = session(task, crop=2, flip=True, seed=3)
    images, _, indices = next(run.train.batches(torch.arange(20), 20))
    first, again, other = (run.inputs(images, indices, epoch) for epoch in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other) and not torch.equal(first, images)
    assert torch.equal(images, task.train.images[:20])
    same = dataclasses.replace(run.recipe, crop=0, flip=False)
    run.recipe = same
    assert torch.equal(run.inputs(images, indices, 0), images)
    run.recipe = dataclasses.replace(run.recipe, crop=2, variants=2)
    assert torch.equal(run.inputs(images, indices, 0), run.inputs(images, indices, 2))
    assert not torch.equal(run.inputs(images, indices, 0), run.inputs(images, indices, 1))


def test_what_is_no_image_is_not_cropped(task):
    rows = Images(task.train.images, task.train.targets)
    flat = torch.utils.data.TensorDataset(rows.images.flatten(1), rows.targets)
    with pytest.raises(ValueError, match=r"expected images \[n, c, h, w\] for crop and flip, got .*\[1, 144\]"):
        build(Inputs(task.recipe(method="dense", flip=True), nn.Linear(144, 4), flat, flat))


def test_a_network_without_norms_cannot_be_fused(task):
    with pytest.raises(ValueError, match=r"a network with norms to fuse, got Sequential \(.*\), try fuse=False"):
        session(task, fuse=True)


def test_fusing_changes_the_model_and_no_key(task):
    from spfde.nn import FusedNormAct2d

    plain_keys = list(session(task, task.model()).model.state_dict())
    fused = session(task, task.model(), fuse=True).model
    assert any(isinstance(module, FusedNormAct2d) for module in fused.modules())
    assert list(fused.state_dict()) == plain_keys
