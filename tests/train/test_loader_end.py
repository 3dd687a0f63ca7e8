"""Programs whose data set raises in a loader process: they end, as they do with torch alone."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys, torch
from torch import nn
from torch.utils.data import Dataset
from spfde.train import Recipe, fit

class Own(Dataset):
    def __init__(self, bad): self.bad = bad
    def __len__(self): return 20
    def __getitem__(self, i):
        if self.bad and i == 13: raise RuntimeError("item 13")
        return torch.zeros(1, 4, 4), i % 2

class Stop(Exception): pass
class Watch:
    def step(self, *args): raise {error}("by hand") if {error} is not None else None
    def __getattr__(self, name): return lambda *args: None

def run():
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    recipe = Recipe(epochs=1, freeze=0, batch_size=4, workers={workers})
    fit(recipe, model=net, train_set=Own({bad}), test_set=Own(False), progress={progress})
if {caught}:
    try: run()
    except BaseException as error: kept = error; print("caught", error)
else:
    run()
"""


@pytest.mark.parametrize(
    ("workers", "error", "caught"),
    [(2, None, False), (2, "Stop", True), (1, "KeyboardInterrupt", False)],
)
def test_the_program_ends(workers, error, caught):
    item = error is None
    text = PROGRAM.format(workers=workers, error=error, bad=item, caught=caught, progress=None if item else "Watch()")
    ended = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=120)
    assert ("item 13" if item else "by hand") in ended.stdout + ended.stderr, ended.stderr
    assert (ended.returncode == 0) == caught
