"""A training whose process is killed again and again at random moments; test_killed.py starts this file.

Children are forked, so that the seconds of starting an interpreter are paid once.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import torch
from train.runs import recipe

from spfde import data, models
from spfde.train import fit
from spfde.train.progress import NullProgress
from spfde.train.run_dir import CHECKPOINTS, begun, checkpoints

MOMENTS = ("set-up", "any", "any", "write")  # before the first step, any time after it, while a file is written


class Ready(NullProgress):
    """Tells the parent that training starts."""

    def __init__(self, pipe: int) -> None:
        self.pipe = pipe

    def start(self, *_) -> None:
        os.write(self.pipe, b"!")


def launch(out: Path, digits, options: dict) -> tuple[int, int]:
    """Forks a process that trains, or goes on; its id, and a pipe that has a byte once training starts."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    try:
        torch.manual_seed(1)
        model = models.create("resnet20", in_channels=1, width=0.25)
        resume = begun(out) or bool(checkpoints(out))
        given = {"model": model, "train_set": digits.train, "test_set": digits.test, "resume": resume}
        fit(recipe(out=out, **options), progress=Ready(writing), **given)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def ended(child: int) -> bool:
    """Waits for a process: whether it came to its end; raises if it failed."""
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return False
    assert os.WEXITSTATUS(status) == 0, "expected a run that resumes"
    return True


def wait_for_a_write(out: Path) -> None:
    """Returns once a file is half written, or none was for a while."""
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline and not list((out / CHECKPOINTS).glob(".*.partial")):
        time.sleep(0)


def main(whole: Path, killed: Path, kills: int, seed: int, options: dict) -> None:
    """Trains once without a break and once with `kills` of them; prints how many left half a checkpoint behind."""
    torch.set_num_threads(1)
    digits = data.load("digits", train=128, test=32)
    child, ready = launch(whole, digits, options)
    os.read(ready, 1)
    start = time.monotonic()
    assert ended(child)
    seconds = time.monotonic() - start
    draw, halves, done = random.Random(seed), 0, False
    for kill in range(kills):
        child, ready = launch(killed, digits, options)
        moment = MOMENTS[(kill + 2) % len(MOMENTS)]
        if moment != "set-up":
            os.read(ready, 1)
        time.sleep(draw.uniform(0, 0.3 if moment == "set-up" else 0.7 * seconds / kills))
        if moment == "write":
            wait_for_a_write(killed)
        os.kill(child, signal.SIGKILL)
        done = ended(child)
        os.close(ready)
        if done:
            break
        halves += bool(list(killed.rglob("*.partial")))
    assert not done, f"expected a run that outlives {kills} kills, got one of {seconds:.2f} s"
    child, ready = launch(killed, digits, options)
    assert ended(child)
    print(json.dumps({"kills": kills, "halves": halves, "seconds": seconds}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), json.loads(sys.argv[5]))
