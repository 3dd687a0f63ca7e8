"""Lightning: levers in its Trainer, kept in its checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from torch.nn import functional

from spfde.integrations.engine import Engine
from spfde.levers import Lever, LeverFactory, Loss


class SpfdeCallback(pl.Callback):
    """Topology, freezer, sieve and levers of yours in a Lightning Trainer, with automatic optimization.

        rigl = lambda run: spfde.topology.RigL(run.model, run.optimizer, total_steps=run.total_steps)
        trainer = lightning.Trainer(callbacks=[SpfdeCallback(rigl, freezer, sieve)], ...)
        trainer.fit(module, ckpt_path=...)

    Make the module's network sparse before `configure_optimizers`. A sieve is also the DataLoader's sampler; it hears
    of a batch through what `training_step` returns beside the loss: `indices` [n], and `logits` and `targets` or the
    `losses` [n]. Weights of losses come too late there, so its class must have none.

    Args:
        levers: as `spfde.integrations.engine.Engine` takes them, in the order in which they are told.
        example_input: one batch, for a lever that freezes and brings no blocks of its own.
    """

    def __init__(self, *levers: Lever | LeverFactory, example_input: Any = None) -> None:
        self.engine = Engine(levers, example_input)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make the levers of the module and its optimizer, as they were restored.

        Raises:
            ValueError: the module has several optimizers, or drives one by itself.
        """
        if len(trainer.optimizers) != 1 or not pl_module.automatic_optimization:
            raise ValueError(
                f"expected one optimizer and automatic_optimization, got {len(trainer.optimizers)} and "
                f"{pl_module.automatic_optimization}, try the levers' plain methods in training_step"
            )
        if trainer.max_epochs is None or trainer.max_epochs < 1:
            raise ValueError(f"expected max_epochs, which levers plan by, got {trainer.max_epochs}, try max_epochs=90")
        steps = int(trainer.estimated_stepping_batches)
        self.engine.begin(pl_module, trainer.optimizers[0], epochs=trainer.max_epochs, steps=steps)
        self.engine.start_epoch(trainer.current_epoch)  # no epoch starts after a checkpoint of an epoch's last step

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Tell the levers of an epoch."""
        self.engine.start_epoch(trainer.current_epoch)

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        """Tell the levers of the gradients."""
        self.engine.backward()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Tell the levers of the samples' losses, and of an optimizer step."""
        if self.engine.levers.needing(Loss):
            self._observe(outputs)
        if trainer.global_step > self.engine.step:
            self.engine.stepped()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Tell the levers of the epoch's end; a sieve chooses the next one's samples."""
        self.engine.end_epoch()

    def state_dict(self) -> dict[str, Any]:
        """What Lightning's checkpoint keeps of the levers."""
        return self.engine.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from `state_dict`'s values when the training starts."""
        self.engine.load_state_dict(state_dict)

    def _observe(self, outputs: Any) -> None:
        if not isinstance(outputs, Mapping) or "indices" not in outputs or not {"losses", "logits"} & outputs.keys():
            raise ValueError(
                "expected training_step to return the samples' indices and their losses, or logits and targets, got "
                f"{sorted(outputs) if isinstance(outputs, Mapping) else type(outputs).__name__}, try "
                '{"loss": loss, "indices": indices, "logits": logits, "targets": targets}'
            )
        losses = outputs.get("losses")
        logits, targets = outputs.get("logits"), outputs.get("targets")
        if losses is None:
            losses = functional.cross_entropy(logits.float(), targets, reduction="none")
        if logits is None:
            logits, targets = losses[:, None], torch.zeros_like(losses)  # nothing to be right about
        if self.engine.weigh(outputs["indices"].cpu(), logits, targets, losses) is not None:
            raise ValueError(
                "expected levers that weigh no losses, which training_step has added up already, got one that does, "
                "try sieve.observe(...) in training_step"
            )
