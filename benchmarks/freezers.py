"""What freezers cost that look at the network: `observe` as a share of a training step, and what they keep.

    python benchmarks/freezers.py --threads 1 --json runs/bench/freezers.json

A step of a sparse ResNet-20 on 64 32x32 images and `observe` take turns, with nothing frozen and with all but the last
of the blocks that may freeze. Both are counted in seconds of the processor that this process had, so that others on the
machine do not count; `observe` on average over all `--steps`, most of which compare nothing.
"""

from __future__ import annotations

import argparse
import inspect
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timing
import torch
import torch.nn.functional as F
from torch import nn

from spfde import freezing, memory, sparsify
from spfde._modules import tensors
from spfde.levers import Backward
from spfde.models import create

BATCH, SIDE = 64, 32
LOOKING = [
    name
    for name, method in freezing.METHODS.items()
    if Backward in getattr(method, "needs", ()) and name != "smartfrz"  # whose cost is that of an epoch: smartfrz.py
]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--methods", nargs="*", default=LOOKING, choices=LOOKING)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    print(f"{'freezer':12} {'keeps':>9} {'of a step':>10} {'time, none frozen':>18} {'most frozen':>12}")
    rows = []
    for name in given.methods:
        row = measure(name, given.model, given.sparsity, given.steps)
        rows.append(row)
        print(
            f"{name:12} {row['kept_kb']:6.0f} KB {row['of_memory']:10.1%} {row['none_frozen']:18.2%}"
            f" {row['most_frozen']:12.2%}",
            flush=True,
        )
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        record = {"machine": timing.machine(), "model": given.model, "sparsity": given.sparsity, "rows": rows}
        given.json.write_text(json.dumps({**record, "steps": given.steps}, indent=1) + "\n")


def measure(name: str, model_name: str, sparsity: float, steps: int) -> dict[str, Any]:
    """What one freezer keeps, beside the peak of a step, and its time beside that of a step."""
    model = sparsify(create(model_name), sparsity=sparsity)
    inputs = torch.randn(BATCH, 3, SIDE, SIDE)
    parts = freezing.blocks(model, inputs[:1])
    method = freezing.METHODS[name]
    takes = inspect.signature(method).parameters
    peak = memory(model, inputs).peak
    found: dict[str, Any] = {"method": name}
    for state, frozen in (("none_frozen", 0), ("most_frozen", len(parts) * 2 // 3 - 1)):
        freezer = method(model, parts, **({"epochs": 100} if "epochs" in takes else {}))
        freezer.load_state_dict({**freezer.state_dict(), "frozen": [part.name for part in parts[:frozen]], "epoch": 9})
        found[state] = share(freezer, training_step(model, inputs), inputs, steps)
        if not frozen:
            kept = sum(tensor.nbytes for tensor in tensors(freezer.state_dict()))
            found.update(kept_kb=kept / 1e3, of_memory=kept / peak)
    return found


def training_step(model: nn.Module, inputs: torch.Tensor) -> Callable[[], None]:
    """A step of SGD on random classes; gradients stay until the next one."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1e-3, momentum=0.9)
    targets = torch.randint(10, (BATCH,))
    model.train()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()

    return step


def share(freezer: freezing.Freezer, step: Callable[[], None], inputs: torch.Tensor, steps: int) -> float:
    """The processor's time in `observe`, on average over `steps` steps, beside that in the steps (every fifth one)."""
    looking = stepping = 0.0
    for _ in range(3):
        step()
    freezer.observe(inputs, lr=0.1)
    for turn in range(steps):
        if turn % 5 == 0:
            stepping += 5 * seconds_of(step)
        looking += seconds_of(lambda: freezer.observe(inputs, lr=0.1))
    return looking / stepping


def seconds_of(call: Callable[[], None]) -> float:
    """Seconds of the processor that this process had in a call."""
    start = time.process_time()
    call()
    return time.process_time() - start


if __name__ == "__main__":
    main()
