"""The tables of a profile, as rows of words: for str() and for the terminal."""

from __future__ import annotations

from collections.abc import Callable

from spfde.profiling.kinds import KINDS
from spfde.profiling.memory import Memory
from spfde.profiling.result import Layer, StepProfile

Table = tuple[str, list[tuple[str, ...]]]  # a title; a head and rows
QUIET = 0.9  # share of a step that its parts come to on a machine that does nothing else
SEEN = 5e-6  # seconds of a layer below which its row would be noughts
MEMORY = ("weights", "gradients", "optimizer", "index", "batch", "kept")


def tables(profile: StepProfile) -> list[Table]:
    """By kind, by layer, and memory."""
    return [_kinds(profile), _layers(profile), _memory(profile)]


def milliseconds(seconds: float | None) -> str:
    """1.23, or nothing."""
    return "" if seconds is None else f"{seconds * 1e3:.2f}"


def megabytes(size: int | None) -> str:
    """1.23 (of 10^6 bytes), or nothing."""
    return "" if size is None else f"{size / 1e6:.2f}"


def _ratio(dense: float | None, model: float | None) -> str:
    return f"{dense / model:.2f}x" if dense and model else ""


def _share(part: float | None, whole: float) -> str:
    return "" if part is None else f"{part / whole:.0%}"


def _kinds(profile: StepProfile) -> Table:
    model, dense = profile.model, profile.dense
    title = f"step: {milliseconds(model.seconds)} ms"
    if dense is not None:
        title += f", {dense.name} {milliseconds(dense.seconds)} ms, {profile.speedup:.2f}x"
    title += f" (batch {profile.batch}, threads {profile.threads}, medians of {profile.rounds})"
    kinds = [kind for kind in KINDS if any(kind in way.kinds() for way in profile.ways)]
    rows = [("kind", "", "ms", "share", *(("dense ms", "share", "dense / model") if dense else ()))]
    for kind in kinds:
        own = model.kinds().get(kind)
        row = (kind, "", milliseconds(own), _share(own, model.seconds))
        if dense is not None:
            other = dense.kinds().get(kind)
            row += (milliseconds(other), _share(other, dense.seconds), _ratio(other, own))
        rows.append(row)
    title += f"; parts come to {' and '.join(f'{way.accounted:.0%}' for way in profile.ways)} of it"
    if min(way.accounted for way in profile.ways) < QUIET:
        title += ": the machine was busy with something else, run again"
    return title, rows


def _layers(profile: StepProfile) -> Table:
    model, dense = profile.model, profile.dense
    twins = {} if dense is None else {layer.name: layer for layer in dense.layers()}
    head = ("layer", "op", "forward ms", "backward ms", "kept MB")
    rows = [(*head, *(("dense forward", "dense backward", "dense kept", "dense / model") if dense else ()))]
    own = {layer.name: layer for layer in model.layers()}
    for name in dict.fromkeys((*twins, *own)):  # a fused model has fewer: the twin's order holds for both
        mine, twin = own.get(name), twins.get(name)
        if all(layer is None or (layer.seconds < SEEN and not layer.kept) for layer in (mine, twin)):
            continue
        row = (name or "(model)", mine.op if mine else f"({twin.op})", *_cells(mine))
        if dense is not None:
            row += (*_cells(twin), _ratio(twin and twin.seconds, mine and mine.seconds))
        rows.append(row)
    for kind in dict.fromkeys(kind for way in profile.ways for kind in way.around()):
        around = [way.around().get(kind) for way in profile.ways]
        row = (f"({kind})", "", milliseconds(around[0]), "", "")
        if dense is not None:
            row += (milliseconds(around[1]), "", "", _ratio(around[1], around[0]))
        rows.append(row)
    return "layers, in order of execution; what is not theirs below", rows


def _cells(layer: Layer | None) -> tuple[str, str, str]:
    if layer is None:
        return "", "", ""
    return milliseconds(layer.forward), milliseconds(layer.backward), megabytes(layer.kept)


def _memory(profile: StepProfile) -> Table:
    def row(name: str, read: Callable[[Memory], int]) -> tuple[str, ...]:
        sizes = [read(way.memory) for way in profile.ways]
        return (name, "", *map(megabytes, sizes), *([_ratio(sizes[0], sizes[1])] if len(sizes) > 1 else []))

    head = ("memory", "", "MB", *(("dense MB", "model / dense") if profile.dense else ()))
    rows = [row(name, lambda memory, name=name: getattr(memory, name)) for name in (*MEMORY, "peak")]
    return "bytes of a step, at torch's allocator", [head, *rows]
