"""Times every variant of a case, part by part and in turn, and runs through cases while there is time."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import networks
import torch
from networks import NetworkCase
from record import Cell, Record, line
from timing import by_device
from variants import (
    KERNELS,
    OURS,
    Absent,
    Case,
    check,
    expected,
    names,
    sparse_layer,
    sparse_variant,
    timed_parts,
    variant,
)

from spfde.nn import SparseLayer
from spfde.tuning.layer import precision
from spfde.tuning.samples import Timing
from spfde.tuning.timing import TimeLimit

Calls = Mapping[str, Mapping[str, Callable[[], object]]]  # by variant and part
Timings = dict[str, dict[str, Timing]]


def measure(
    case: Case | NetworkCase,
    rounds: int,
    device: str = "cpu",
    wants: Callable[[str], bool] = lambda name: True,
    compiled: bool = True,
) -> Cell:
    """All variants of a case that `wants` names. Whatever goes wrong is in the cell: the run goes on."""
    if isinstance(case, NetworkCase):
        return _network(case, rounds, device)
    named = [name for name in names(case, device, compiled) if name.startswith("dense") or wants(name)]
    return _layer(case, rounds, device, named)


def _layer(case: Case, rounds: int, device: str, chosen: Sequence[str]) -> Cell:
    layer = case.layer
    shape = (str(layer), layer.kind, layer.group, layer.lanes, case.pattern, case.sparsity)
    cell = Cell(*shape, 1 - case.sparsity, {}, {}, case.dtype, str(case))
    absent: dict[str, str] = {}
    failed: dict[str, str] = {}
    with precision(case.dtype):
        try:
            sparse = sparse_layer(case, device)
            wanted = {dense: expected(case, None if dense else sparse, device) for dense in (True, False)}
        except Absent as reason:  # without a sparse variant there is nothing to compare the dense layer with
            return replace(cell, absent={name: str(reason) for name in chosen if not name.startswith("dense")})
        except Exception as error:  # from here on whatever is raised: what else is to be measured must not be lost
            return replace(cell, failed={"all of it": _named(error)})
        calls: dict[str, Mapping[str, Callable[[], object]]] = {}
        for name in chosen:
            try:
                calls[name] = _checked(case, name, sparse, wanted[name.startswith("dense")], device)
            except Absent as reason:  # on a GPU, every case is one that ours are for
                (failed if device == "cuda" and name in OURS["cuda"] else absent)[name] = str(reason)
            except Exception as error:
                failed[name] = _named(error)
        auto, reason = _auto(case, sparse, device, failed)
        some = any(not name.startswith("dense") for name in calls)
        seconds, host = _timed(calls, rounds, device, failed) if some else ({}, {})
    found = {"seconds": seconds, "host": host, "absent": absent, "failed": failed, "auto": auto, "reason": reason}
    return replace(cell, density=1 - sparse.sparsity, **found)


def _checked(
    case: Case, name: str, sparse: SparseLayer, wanted: Mapping[str, Any], device: str
) -> Mapping[str, Callable[[], object]]:
    """The timed parts of a variant, each of which has run once and given what is wanted."""
    made = variant(case, name, sparse, device)
    parts = made.parts()
    timed = [part for part in timed_parts(device) if part in parts]
    for part in timed:
        check(made, part, wanted, case.dtype)
    return {part: parts[part] for part in timed}


def _auto(case: Case, sparse: SparseLayer, device: str, failed: dict[str, str]) -> tuple[str, str]:
    """The variant that kernel = "auto" is, and why."""
    try:
        made = sparse_variant(case, "auto", sparse, device)
        with torch.no_grad():
            made.module(made.x)
    except Exception as error:
        failed["auto"] = _named(error)
        return "", ""
    choice = made.module.choice
    variants = {kernel: name for name, kernel in KERNELS.items()}
    return variants.get(choice.kernel, choice.kernel), choice.reason


def _network(case: NetworkCase, rounds: int, device: str) -> Cell:
    how, network = case.how, case.network
    shape = (f"{network.model} b{network.batch}", "network", network.model, network.batch, how.pattern, how.sparsity)
    cell = Cell(*shape, 1 - how.sparsity, {}, {}, "bfloat16", str(case))
    calls: dict[str, Mapping[str, Callable[[], object]]] = {}
    failed: dict[str, str] = {}
    try:
        given = networks.pair(case, device)
    except Exception as error:
        return replace(cell, failed={"all of it": _named(error)})
    for name in networks.variants():
        try:
            calls[name] = networks.calls(given, name)
        except Exception as error:
            failed[name] = _named(error)
    seconds, host = _timed(calls, rounds, device, failed)
    try:
        reason = networks.chosen(given)
    except Exception as error:
        failed["auto"], reason = _named(error), ""
    return replace(cell, seconds=seconds, host=host, failed=failed, auto="auto", reason=reason)


def _timed(calls: Calls, rounds: int, device: str, failed: dict[str, str]) -> tuple[Timings, Timings]:
    """Seconds on the device and on the CPU, every part of all variants in turn."""
    seconds: Timings = {}
    host: Timings = {}
    for part in dict.fromkeys(part for parts in calls.values() for part in parts):
        try:
            found = by_device({name: parts[part] for name, parts in calls.items() if part in parts}, rounds, device)
        except Exception as error:
            failed[part] = _named(error)
            continue
        for kept, timed in zip((seconds, host), found, strict=True):
            for name, timing in timed.items():
                kept.setdefault(name, {})[part] = timing
    return seconds, host


def _named(error: Exception) -> str:
    traceback.print_exception(error)
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[0]}"


def run(
    cases: Sequence[Case | NetworkCase],
    limit: TimeLimit,
    before: Record,
    path: Path,
    timed: Callable[[Case | NetworkCase], Cell],
    alive: Callable[[], bool] = lambda: True,
) -> Record:
    """Measures case after case while there is time, and writes what there is after each of them.

    A case is begun if as much time is left as the longest one before it took. before: what was measured already.
    alive: asked after a failure; a device that no longer answers ends the run.
    """
    longest, names = 0.0, [str(case) for case in cases]
    record = replace(before, unfinished=names)
    record.write(path)
    for index, case in enumerate(cases):
        start = limit.left
        if not limit.allows(longest):
            break
        cell = timed(case)
        longest = max(longest, start - limit.left)
        record = replace(record, cells=[*record.cells, cell], unfinished=names[index + 1 :])
        record.write(path)
        print(line(cell), flush=True)
        if cell.failed and not alive():
            break
    return record


def alive() -> bool:
    """Whether the GPU still answers: after a bad access it refuses everything, for this process."""
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True
