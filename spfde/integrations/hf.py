"""transformers: levers in its Trainer, and sparse models in its `save_pretrained` format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback

from spfde.integrations.engine import Engine
from spfde.integrations.pretrained import from_pretrained, save_pretrained
from spfde.levers import Lever, LeverFactory, Loss
from spfde.sieving.queue import QueueSieve

STATE = "spfde.pt"
INDEX = "sample_index"

__all__ = ["Numbered", "SpfdeCallback", "from_pretrained", "save_pretrained"]


class SpfdeCallback(TrainerCallback):
    """Topology, freezer, sieve and levers of yours in a `transformers.Trainer`, kept in its checkpoints.

        trainer = Trainer(spfde.sparsify(model, 0.8), args, train_dataset=data)
        rigl = lambda run: spfde.topology.RigL(run.model, run.optimizer, total_steps=run.total_steps)
        SpfdeCallback(rigl, freezer, sieve).attach(trainer)
        trainer.train(resume_from_checkpoint=...)

    A sieve becomes the Trainer's sampler; the items of its data set carry their index. It is told losses by logits and
    labels of classes, or by `losses`. Its class must keep epochs of one length, as Circular and Random do.

    Args:
        levers: as `spfde.integrations.engine.Engine` takes them, in the order in which they are told.
        example_input: one batch, for a lever that freezes and brings no blocks of its own.
        losses: makes the losses [n] of a batch of its outputs and labels; by default cross-entropy of classes.
    """

    def __init__(
        self,
        *levers: Lever | LeverFactory,
        example_input: Any = None,
        losses: Callable[[Any, Tensor], Tensor] | None = None,
    ) -> None:
        self.engine, self._losses = Engine(levers, example_input), losses
        self._trainer: Trainer | None = None
        self._resumed: str | None = None  # a checkpoint, until the first step after it
        self._indices: Tensor | None = None
        self._hooks: list[Any] = []

    def attach(self, trainer: Trainer) -> Trainer:
        """Add the callback to a trainer, its sieve as the sampler; the trainer.

        Raises:
            ValueError: the sieve's epochs vary in length, or it is for another number of samples.
        """
        sieve = self.engine.levers.sampler
        if sieve is not None:
            self._check_sieve(sieve, trainer)
            trainer.train_dataset = Numbered(trainer.train_dataset)
            trainer._get_train_sampler = lambda *_: sieve
            trainer._set_signature_columns_if_needed()
            trainer._signature_columns.append(INDEX)
            trainer.args.ignore_data_skip = True  # a resumed sieve skips by itself
        load = trainer._load_optimizer_and_scheduler

        def load_all(checkpoint: str | None) -> None:
            load(checkpoint)
            if checkpoint is not None:
                self._resume(Path(checkpoint))

        trainer._load_optimizer_and_scheduler = load_all
        trainer.add_callback(self)
        self._trainer = trainer
        return trainer

    def _check_sieve(self, sieve: Any, trainer: Trainer) -> None:
        if not isinstance(sieve, QueueSieve):
            raise ValueError(
                f"expected a sieve of epochs of one length, by which a Trainer counts its steps, got"
                f" {type(sieve).__name__}, try Circular or Random, or spfde.train.fit"
            )
        if sieve.num_samples != len(trainer.train_dataset):
            raise ValueError(
                f"expected a sieve of {len(trainer.train_dataset)} samples, got one of {sieve.num_samples}, try "
                "Circular(len(train_dataset))"
            )
        if trainer.args.world_size > 1 and sieve.world > 1:
            raise ValueError(
                f"expected a sieve of the whole order, which Accelerate shares out, got world={sieve.world}, try "
                "rank=0, world=1"
            )

    def _resume(self, checkpoint: Path) -> None:
        if not (checkpoint / STATE).exists():
            raise ValueError(
                f"expected {STATE} in {checkpoint}, got a checkpoint without it, try one written with this callback"
            )
        self.engine.load_state_dict(torch.load(checkpoint / STATE, weights_only=True, map_location="cpu"))
        self._resumed = str(checkpoint)

    # ---- the Trainer's events --------------------------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Make the levers of the model and the optimizer as they are trained."""
        if self._trainer is None:
            raise ValueError("expected callback.attach(trainer), got a callback in a list, try attach in its place")
        self.engine.begin(kwargs["model"], kwargs["optimizer"], epochs=state.num_train_epochs, steps=state.max_steps)
        if self.engine.levers.needing(Loss):
            model = self.engine.model
            self._hooks = [
                model.register_forward_pre_hook(self._take_indices, with_kwargs=True),
                model.register_forward_hook(self._observe, with_kwargs=True),
            ]

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell the levers of an epoch, unless it goes on after a resume."""
        epoch = state.global_step * state.num_train_epochs // state.max_steps
        if epoch != self.engine.epoch:
            self._resumed = None
        self.engine.start_epoch(epoch)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Bring the generators back where a checkpoint within the epoch has them: the loader has drawn a seed since."""
        if self._resumed is not None:
            self._trainer._load_rng_state(self._resumed)
            self._resumed = None

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell the levers of the gradients."""
        self.engine.backward()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell the levers of the step."""
        self.engine.stepped(not self._trainer.accelerator.optimizer_step_was_skipped)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell the levers of the epoch's end."""
        self.engine.end_epoch()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the levers' state beside the Trainer's own."""
        if args.should_save:
            torch.save(self.engine.state_dict(), Path(args.output_dir) / f"checkpoint-{state.global_step}" / STATE)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the model without the callback's hooks."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    # ---- the losses of samples -------------------------------------------------------------------------------------

    def _take_indices(self, model: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        self._indices = kwargs.pop(INDEX, None)
        return args, kwargs

    def _observe(self, model: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        if not model.training or self._indices is None:
            return None
        logits, labels = output["logits"], kwargs["labels"]
        if self._losses is not None:
            losses = self._losses(output, labels)
        elif logits.ndim == 2 and labels.ndim == 1:
            losses = functional.cross_entropy(logits.float(), labels, reduction="none")
        else:
            raise ValueError(
                f"expected logits [n, classes] for a sieve, got {list(logits.shape)}, try SpfdeCallback(..., losses="
                "lambda output, labels: ...), which makes the losses [n]"
            )
        weights = self.engine.weigh(self._indices.cpu(), logits, labels, losses)
        if weights is not None:
            output["loss"] = (losses * weights).mean()
        return output


class Numbered(Dataset):
    """A data set of mappings, each with its number under `sample_index`."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __len__(self) -> int:
        """Count the samples."""
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.data[index], INDEX: index}
