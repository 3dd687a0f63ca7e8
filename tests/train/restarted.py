"""A training one of whose ranks is killed the first time; test_ranks.py has torchrun start this file."""

import os
import signal
import sys

import torch
from train.test_ranks import At, network, recipe, train


def die() -> None:
    if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(recipe(sys.argv[1], checkpoint_every_steps=2), network(), levers=[At(rank=1, step=7, act=die)])
