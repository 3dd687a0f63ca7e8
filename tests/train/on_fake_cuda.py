"""Training on a GPU that is not there; run by tests/gpu/test_on_fake_cuda.py."""

import pytest
import torch
from fake_cuda import FakeCuda
from torch import nn
from train.conftest import images

from spfde.train import Recipe, checkpoint, fit, run_dir
from spfde.train.device import Device

TRAIN, TEST = images(48, seed=0), images(16, seed=1)
FIELDS = {"epochs": 4, "batch_size": 16, "lr": 0.05, "sparsity": 0.5, "sieve": 0.25, "freeze": 0.1, "threads": 1}


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4),
    )  # fmt: skip


def train(device: str, **options):
    fields = {**FIELDS, "device": device, **options.pop("fields", {})}
    return fit(Recipe(**fields), model=network(), train_set=TRAIN, test_set=TEST, **options)


def test_a_run_on_a_gpu_is_that_of_a_cpu():
    there, here = train("cuda"), train("cpu")
    assert all(isinstance(p, FakeCuda) for p in there.model.parameters())
    assert [e.frozen for e in there.epochs] == [e.frozen for e in here.epochs] and there.epochs[-1].frozen
    assert [e.samples for e in there.epochs] == [36] * 4
    for ours, theirs in zip(there.epochs, here.epochs, strict=True):
        assert ours.train_loss == pytest.approx(theirs.train_loss, rel=1e-2)
        assert ours.layers == theirs.layers and ours.flops == theirs.flops
    assert there.epochs[0].memory == 2**20 and there.to_dict()["device"] == "cuda"


def test_a_checkpoint_of_a_gpu_goes_on_on_a_cpu_and_back(tmp_path):
    def stop_at(epoch):
        def stop(record):
            if record.epoch == epoch:
                raise KeyboardInterrupt

        return stop

    out = str(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train("cuda", fields={"out": out}, on_epoch=stop_at(1))
    kept = checkpoint.read(run_dir.checkpoints(tmp_path)[-1])
    assert kept.machine["device"] == "NVIDIA H200" and kept.recipe["device"] == "cuda"
    with pytest.warns(RuntimeWarning, match="device 'NVIDIA H200'"), pytest.raises(KeyboardInterrupt):
        train("cpu", fields={"out": out}, on_epoch=stop_at(2), resume=True)
    with pytest.warns(RuntimeWarning, match="device 'cpu'"):
        result = train("cuda", fields={"out": out}, resume=True)
    assert [record.epoch for record in result.epochs] == [0, 1, 2, 3]
    assert all(isinstance(p, FakeCuda) for p in result.model.parameters())


def test_float16_scales_its_losses():
    device = Device.of("cuda", "float16")
    assert device.scaler().is_enabled() and not Device.of("cuda", "bfloat16").scaler().is_enabled()
    assert device.autocast().fast_dtype == torch.float16


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="device='cuda:1'"):
        train("cuda:1")
