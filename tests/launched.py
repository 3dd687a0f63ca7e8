"""Processes as torchrun starts them: trainers find one another by its variables."""

import gc
import os
import socket
from collections.abc import Callable
from typing import Any

import torch.multiprocessing as mp


def launch(work: Callable[..., None], world: int, *arguments: Any, start: str = "spawn") -> None:
    """Calls `work(rank, *arguments)` in `world` processes that are one job on this machine's CPU.

    start="fork" spares them the seconds of their imports.
    """
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    mp.start_processes(_begin, (work, world, port, arguments), nprocs=world, start_method=start)


def _begin(rank: int, work: Callable[..., None], world: int, port: int, arguments: tuple[Any, ...]) -> None:
    told = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    job = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "spfde", "OMP_NUM_THREADS": 1}
    os.environ.update({name: str(value) for name, value in {**told, **job}.items()})
    gc.freeze()  # what was imported is walked through at every freeze otherwise
    work(rank, *arguments)
