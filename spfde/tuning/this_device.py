"""The device that computes here, as a profile names it: from torch, and from what the board and its driver tell."""

from __future__ import annotations

from pathlib import Path

import torch

from spfde._machine import cpu_name
from spfde._native import native
from spfde._words import size
from spfde.energy.board import Board, board_of
from spfde.energy.rails import rails_of
from spfde.tuning.device_profile import Device


def gpu_uuid() -> str:
    """The current GPU's UUID as NVIDIA's driver names it; "" where torch tells none."""
    found = str(getattr(torch.cuda.get_device_properties(torch.cuda.current_device()), "uuid", ""))
    return found if not found or found.startswith("GPU-") else f"GPU-{found}"


def this_device(kind: str, root: Path = Path("/")) -> Device:
    """The CPU ("cpu") or the current GPU ("cuda") of this process. root: a file tree recorded on another machine.

    A Jetson goes by its module: all its GPUs have one name. Its memory is the board's, which CPU and GPU share.
    """
    gpu = gpu_uuid() if kind == "cuda" else ""
    board, rails = board_of(root, gpu, cpu_name()), rails_of(root, gpu)
    facts, absent = _facts_of_board(board), {}
    if rails.why_not:
        absent["power"] = rails.why_not
    else:
        facts["power"] = rails.covers
    if not board.power_mode:
        absent["power mode"] = "neither nvpmodel, nor the driver's power limit, nor a platform profile"
    if not board.clocks:
        absent["clocks"] = "the kernel shows none (virtual machines have none)"
    if kind == "cpu":
        facts["isa"] = native().isa()
        return Device(board.model if board.l4t else cpu_name(), "cpu", torch.get_num_threads(), board.memory,
                      board.power_mode, facts, absent)  # fmt: skip
    card = torch.cuda.get_device_properties(torch.cuda.current_device())
    unified = bool(getattr(card, "is_integrated", board.l4t))
    facts |= {
        "gpu": card.name,
        "compute capability": f"{card.major}.{card.minor}",
        "unified memory": "yes" if unified else "no",
        "L2": size(card.L2_cache_size),
    }
    name, memory = (board.model if board.l4t else card.name), (board.memory if unified else card.total_memory)
    return Device(name, "cuda", card.multi_processor_count, memory, board.power_mode, facts, absent)


def _facts_of_board(board: Board) -> dict[str, str]:
    locked = {None: "", True: "yes", False: "no"}[board.clocks_locked]
    clocks = {
        f"clock of {name}": f"{least / 1e6:.0f} to {most / 1e6:.0f} MHz, at first {now / 1e6:.0f}"
        for name, (least, most, now) in board.clocks.items()
    }
    facts = {
        "machine": board.model,
        "cpu": cpu_name(),
        "kernel": board.kernel,
        "l4t": board.l4t,
        "clocks locked": locked,
        **clocks,
        "memory": size(board.memory),
        "available at first": size(board.available),
    }
    return {name: fact for name, fact in facts.items() if fact}
