"""What each of two processes under Lightning does in integrations/test_lightning.py."""

from pathlib import Path
from typing import Any

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from spfde.sieving import InfoBatch

SAMPLES, BATCH, EPOCHS = 47, 6, 5
CUT = -(-SAMPLES // 2 // BATCH) + 1  # steps: in the second epoch


class Training(lightning.LightningModule):
    """Made before the processes find one another, sieve included, as programs do."""

    def __init__(self, save_to: str | None = None) -> None:
        super().__init__()
        self.save_to = save_to
        self.layer, self.shown = nn.Linear(1, 1), {}
        self.sieve = InfoBatch(SAMPLES, fraction=0.6, epochs=EPOCHS, anneal=0.6, seed=3)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(TensorDataset(torch.arange(SAMPLES)), batch_size=BATCH, sampler=self.sieve)

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        (samples,) = batch
        losses = (samples + 1.7 * self.sieve.epoch).sin() + 2
        weights = self.sieve.observe(samples, losses=losses)
        shares = losses if weights is None else losses * weights
        self.shown.setdefault(self.sieve.epoch, []).extend(samples.tolist())
        return self.layer(shares[:, None]).mean()

    def on_train_batch_end(self, *_: Any) -> None:
        if self.save_to is not None and self.global_step == CUT:
            self.trainer.save_checkpoint(self.save_to)

    def on_train_epoch_end(self) -> None:
        self.sieve.end_epoch()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 1e-3)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["sieve"] = self.sieve.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.sieve.load_state_dict(checkpoint["sieve"])


def trainer(folder: str) -> lightning.Trainer:
    return lightning.Trainer(
        accelerator="cpu",
        strategy="ddp",
        devices=2,
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=EPOCHS,
        reload_dataloaders_every_n_epochs=1,  # epochs vary in length
        enable_checkpointing=False,
    )


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    cut = f"{folder}/cut.ckpt"
    straight, resumed = Training(save_to=cut), Training()
    trainer(folder).fit(straight)
    trainer(folder).fit(resumed, ckpt_path=cut)
    assert straight.sieve.world == 2
    fabric = lightning.Fabric(accelerator="cpu", strategy="ddp", devices=2)
    fabric.launch()
    bare = Training()
    for (samples,) in fabric.setup_dataloaders(bare.train_dataloader()):
        bare.sieve.observe(samples, losses=samples.float())
    assert bare.sieve.presentations.eq(1).all()
    found = {"straight": straight, "resumed": resumed}
    torch.save(
        {name: {"shown": each.shown, "state": each.sieve.state_dict()} for name, each in found.items()},
        Path(folder) / f"{rank}.pt",
    )
