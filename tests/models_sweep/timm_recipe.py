"""The lines that docs/distributed.md adds to timm's train.py, between the parts that the script joins, in its order.

The script itself is not in timm's packages. Part of `make test-models`; not collected by a plain run of the tests.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import spfde

pytestmark = pytest.mark.filterwarnings("default")  # other libraries' warnings are theirs

EPOCHS, ACCUMULATED, CLASSES = 3, 2, 2


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """An image folder of two colours, with the splits that the script looks for."""
    from PIL import Image

    root = tmp_path_factory.mktemp("images")
    for split in ("train", "validation"):
        for kind, colour in (("red", (200, 40, 30)), ("blue", (30, 40, 200))):
            folder = root / split / kind
            folder.mkdir(parents=True)
            for i in range(8):
                Image.new("RGB", (32, 32), tuple(min(255, c + 5 * i) for c in colour)).save(folder / f"{i}.png")
    return root


class WithModel:
    """How the script trained until timm 1.0: the model, its average and the loss by themselves."""

    def __init__(self, model: nn.Module) -> None:
        import timm.task  # after the fixture that makes torchvision importable

        self.timm, self.model, self.ema, self.loss_fn = timm, model, None, timm.loss.LabelSmoothingCrossEntropy(0.1)

    def resume(self, path: Path, optimizer: Any) -> int:
        return self.timm.models.resume_checkpoint(self.model, str(path), optimizer, log_info=False)

    def average(self, path: Path | None) -> None:
        self.ema = self.timm.utils.ModelEmaV3(self.model, decay=0.9)
        if path is not None:
            self.timm.models.load_checkpoint(self.ema.module, str(path), use_ema=True)

    def saver(self, optimizer: Any, args: Any, folder: str) -> Any:
        options = dict(args=args, checkpoint_dir=folder, recovery_dir=folder)
        return self.timm.utils.CheckpointSaver(self.model, optimizer, model_ema=self.ema, **options)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return self.loss_fn(self.model(x), y)

    def averaged(self) -> nn.Module:
        return self.ema.module

    def update(self, step: int) -> None:
        self.ema.update(self.model, step=step)


class WithTask(WithModel):
    """How it trains now: a task that holds all three."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.task = self.timm.task.ClassificationTask(model, criterion=self.loss_fn, verbose=False)

    def resume(self, path: Path, optimizer: Any) -> int:
        return self.timm.task.resume_task_checkpoint(self.task, str(path), optimizer, log_info=False)

    def average(self, path: Path | None) -> None:
        self.task.setup_ema(decay=0.9)
        if path is not None:
            self.timm.task.load_task_ema_checkpoint(self.task, str(path))

    def saver(self, optimizer: Any, args: Any, folder: str) -> Any:
        options = dict(args=args, checkpoint_dir=folder, recovery_dir=folder)
        return self.timm.utils.CheckpointSaver(self.model, optimizer, task=self.task, **options)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return self.task(x, y)["loss"]

    def averaged(self) -> nn.Module:
        return self.task.get_trainable_module(ema=True).module

    def update(self, step: int) -> None:
        self.task.update_ema(step=step)


def train(kind: type[WithModel], images: Path, folder: Path, resume: Path | None, until: int = EPOCHS) -> WithModel:
    """The script's main and train_one_epoch; spfde's lines are marked."""
    import timm
    import timm.task
    from timm.data import create_dataset, create_loader
    from timm.optim import create_optimizer_v2
    from timm.scheduler import create_scheduler_v2

    timm.utils.random_seed(42, 0)
    args = argparse.Namespace(model="resnet10t", epochs=EPOCHS)
    model = timm.create_model(args.model, num_classes=CLASSES)
    model = spfde.sparsify(model, 0.8, distribution="erk")  # spfde
    model.to(memory_format=torch.channels_last)
    run = kind(model)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05)
    start = 0 if resume is None else run.resume(resume / "last.pth.tar", optimizer)
    run.average(None if resume is None else resume / "last.pth.tar")
    options = dict(
        input_size=(3, 32, 32), batch_size=4, use_prefetcher=False, num_workers=0, device=torch.device("cpu")
    )
    data = create_dataset("", root=str(images), split="train", is_training=True)
    loader = create_loader(data, is_training=True, no_aug=True, **options)
    saver = run.saver(optimizer, args, str(folder))
    updates = (len(loader) + ACCUMULATED - 1) // ACCUMULATED
    scheduler, epochs = create_scheduler_v2(optimizer, num_epochs=EPOCHS, updates_per_epoch=updates)
    topology = spfde.topology.RigL(model, optimizer, total_steps=updates * epochs, every=1, end=1.0)  # spfde
    if resume is not None:  # spfde
        topology.load_state_dict(torch.load(resume / "topology.pt", weights_only=True))
    scheduler.step(start)
    moved = 0
    for epoch in range(start, until):
        timm.utils.random_seed(42, epoch)  # not in the script: a resumed epoch shall meet the same batches
        model.train()
        optimizer.zero_grad()
        for i, (x, y) in enumerate(loader):
            x = x.contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16):
                loss = run.loss(x, y)
            (loss / ACCUMULATED).backward()
            if (i + 1) % ACCUMULATED:
                continue
            timm.utils.dispatch_clip_grad(model.parameters(), value=1.0, mode="norm")
            optimizer.step()
            moved += topology.step()  # spfde
            optimizer.zero_grad()
            run.update(epoch * updates + i // ACCUMULATED + 1)
        saver.save_checkpoint(epoch, metric=float(epoch))
        torch.save(topology.state_dict(), folder / "topology.pt")  # spfde
        scheduler.step(epoch + 1)
    assert moved >= until - start  # the last update of an annealed schedule moves nothing
    return run


@pytest.mark.parametrize("kind", [WithModel, WithTask])
def test_a_resumed_training_ends_with_the_same_bits(kind, images: Path, tmp_path: Path) -> None:
    whole, first, second = (tmp_path / name for name in ("whole", "first", "second"))
    for folder in (whole, first, second):
        folder.mkdir()
    uninterrupted = train(kind, images, whole, resume=None)
    train(kind, images, first, resume=None, until=1)
    resumed = train(kind, images, second, resume=first)
    for mine, theirs in ((resumed.model, uninterrupted.model), (resumed.averaged(), uninterrupted.averaged())):
        ours, others = mine.state_dict(), theirs.state_dict()
        assert ours.keys() == others.keys() and all(torch.equal(ours[key], others[key]) for key in ours)
    masks = {name: m.mask() for name, m in resumed.model.named_modules() if isinstance(m, spfde.nn.SparseLayer)}
    assert masks and all(torch.equal(resumed.averaged().get_submodule(name).mask(), masks[name]) for name in masks)
