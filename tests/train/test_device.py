"""Memory formats measured and kept, and the peak of a process's memory."""

import copy
import mmap
import resource

import pytest
import torch

from spfde.train import device
from spfde.train.device import Device, Layout, choose, forget_process_peak, process_peak, step_seconds

CPU = Device.of("cpu")
SHAPE = (8, 1, 12, 12)


def test_measuring_leaves_model_optimizer_and_random_state_alone(task):
    model = task.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model.eval()
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    seconds = step_seconds(model, SHAPE, CPU, steps=1)
    assert set(seconds) == {"contiguous", "channels_last"}
    assert all(value > 0 for value in seconds.values())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert not model.training
    assert all(p.grad is None for p in model.parameters())
    assert not optimizer.state
    assert model.conv1.weight.is_contiguous()


@pytest.mark.parametrize("faster", ["contiguous", "channels_last"])
def test_the_faster_format_is_chosen_with_both_times(task, monkeypatch, faster):
    times = {"contiguous": 0.004, "channels_last": 0.004, faster: 0.003}
    monkeypatch.setattr(device, "step_seconds", lambda *_: times)
    chosen = choose("auto", task.model(), SHAPE, CPU, measure=True)
    assert chosen.name == faster
    assert chosen.reason.startswith("3.0 ms a step, ")
    assert "4.0 ms, measured before training with batch 8" in chosen.reason


def test_what_is_not_measured(task, monkeypatch):
    monkeypatch.setattr(device, "step_seconds", None)
    assert choose("channels_last", task.model(), SHAPE, CPU, measure=True).name == "channels_last"
    assert choose("auto", task.model(), SHAPE, CPU, measure=False).name == "contiguous"
    assert choose("auto", task.model(), (8, 20), CPU, measure=True) == Layout("contiguous", "inputs are not images")
    with pytest.raises(ValueError, match=r"expected images \[n, c, h, w\] for channels_last, got .*\[8, 20\], try"):
        choose("channels_last", task.model(), (8, 20), CPU, measure=True)


def test_a_layout_lays_out_weights_and_images(task):
    last = Layout("channels_last", "")
    model, images = last.model(task.model()), last.images(torch.randn(2, 3, 4, 4))
    for tensor in (model.layer3[0].conv1.weight, images):
        assert tensor.is_contiguous(memory_format=torch.channels_last)
        assert not tensor.is_contiguous()


BLOCK = 64 * 2**20


def hold_for_a_moment():
    block = mmap.mmap(-1, BLOCK)  # straight from the system, and straight back
    block.write(b"1" * BLOCK)
    block.close()


def test_the_peak_stays_until_it_is_forgotten():
    forget_process_peak()
    before = process_peak()
    hold_for_a_moment()
    assert process_peak() >= before + BLOCK
    forget_process_peak()
    assert process_peak() < before + BLOCK


def test_a_system_without_proc_knows_the_peak_of_the_whole_process(tmp_path):
    forget_process_peak(tmp_path / "none")
    assert process_peak(tmp_path / "none") == resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_a_status_without_the_peak(tmp_path):
    (tmp_path / "status").write_text("Name:\tpython\nVmRSS:\t12 kB\n")
    assert process_peak(tmp_path) >= resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 // 2
    (tmp_path / "status").write_text("Name:\tpython\nVmHWM:\t  12 kB\n")
    assert process_peak(tmp_path) == 12 * 1024
