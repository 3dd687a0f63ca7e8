"""The callback in Lightning's Trainer: three levers, kept in its checkpoints, resumed to the same bits."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import spfde

pl = pytest.importorskip("lightning.pytorch")
callbacks = pytest.importorskip("spfde.integrations.lightning")

pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("UserWarning", "DeprecationWarning", "FutureWarning")
]
SAMPLES, EPOCHS = 40, 4
GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(SAMPLES, 12, generator=GENERATOR)
DATA = TensorDataset(torch.arange(SAMPLES), INPUTS, (INPUTS[:, 0] > 0).long())


class Training(pl.LightningModule):
    def __init__(self, told: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = [part for _ in range(3) for part in (nn.Linear(12, 12), nn.ReLU())]
        self.network, self.told = spfde.sparsify(nn.Sequential(*layers, nn.Linear(12, 2)), 0.6), told
        self.sieve = spfde.sieving.Circular(SAMPLES, fraction=0.25, interval=1)

    def forward(self, inputs):
        return self.network(inputs)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(DATA, batch_size=5, sampler=self.sieve)

    def training_step(self, batch, _):
        indices, inputs, targets = batch
        logits = self.network(inputs)
        seen = {"indices": indices, "logits": logits, "targets": targets} if self.told else {}
        return {"loss": cross_entropy(logits, targets), **seen}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)


def trained(folder, ckpt=None, module=None, saved=(), **options):
    module = module or Training()
    blocks = spfde.freezing.blocks(module, INPUTS[:1])
    callback = callbacks.SpfdeCallback(
        lambda run: spfde.topology.RigL(run.model, run.optimizer, total_steps=run.total_steps, every=2),
        spfde.freezing.Static(module, blocks, epochs=EPOCHS, count=1, start=EPOCHS // 2),
        module.sieve,
    )

    class Save(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step in saved:
                trainer.save_checkpoint(folder / f"{trainer.global_step}.ckpt")

    trainer = pl.Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        max_epochs=EPOCHS,
        callbacks=[callback, Save()],
        **options,
    )
    trainer.fit(module, ckpt_path=ckpt)
    return module, callback


def test_a_resumed_training_ends_with_the_same_bits(tmp_path):
    whole, first = trained(tmp_path, saved=(4, 6, 15))
    assert {"topology", "freeze", "sieve"} <= {decision.kind for _, decision in first.engine.decisions}
    assert whole.sieve.presentations.sum() == EPOCHS * 30
    for step in (4, 6, 15):  # within an epoch, at its end, and with a frozen block
        resumed, callback = trained(tmp_path, ckpt=tmp_path / f"{step}.ckpt")
        ours, theirs = resumed.state_dict(), whole.state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs), step
        assert resumed.sieve.presentations.equal(whole.sieve.presentations), step
        assert callback.engine.frozen == first.engine.frozen and callback.engine.step == first.engine.step == 24


def test_a_module_that_tells_no_samples_is_told_how(tmp_path):
    with pytest.raises(ValueError, match=r"expected training_step to return .*got \['loss'\]"):
        trained(tmp_path, module=Training(told=False))
