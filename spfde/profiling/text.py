"""The tables of a profile, as rows of words: for str() and for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from spfde.profiling.kinds import KINDS
from spfde.profiling.memory import Memory
from spfde.profiling.variant import LayerTime, Variant

Variants = Sequence[Variant]  # the model's, then the dense baseline's if there is one
Table = tuple[str, list[tuple[str, ...]]]  # a title; a head and rows
QUIET = 0.9  # share of a step that its parts come to on a machine that does nothing else
SEEN = 5e-6  # seconds of a layer below which its row would be noughts
MEMORY = ("weights", "gradients", "optimizer", "index", "batch", "kept")


def tables(variants: Variants, conditions: str) -> list[Table]:
    """By kind, by layer, and memory. conditions: of the measurement, for the title."""
    return [_kinds(variants, conditions), _layers(variants), _memory(variants)]


def aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """Rows as lines: text at the left, numbers (every column from the third on) at the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides: list[Callable[[str, int], str]] = [str.ljust, str.ljust, *(str.rjust for _ in widths[2:])]
    return ["  ".join(s(c, w) for s, c, w in zip(sides, row, widths, strict=True)).rstrip() for row in rows]


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


def _kinds(variants: Variants, conditions: str) -> Table:
    model, dense = _pair(variants)
    title = f"step: {milliseconds(model.seconds)} ms"
    if dense is not None:
        title += f", {dense.name} {milliseconds(dense.seconds)} ms, {dense.seconds / model.seconds:.2f}x"
    title += f" ({conditions})"
    kinds = [kind for kind in KINDS if any(kind in each.kinds() for each in variants)]
    rows = [("kind", "", "ms", "share", *(("dense ms", "share", "dense / model") if dense else ()))]
    for kind in kinds:
        own = model.kinds().get(kind)
        row = (kind, "", milliseconds(own), _share(own, model.seconds))
        if dense is not None:
            other = dense.kinds().get(kind)
            row += (milliseconds(other), _share(other, dense.seconds), _ratio(other, own))
        rows.append(row)
    title += f"; parts sum to {' and '.join(f'{each.accounted:.0%}' for each in variants)} of it"
    if min(each.accounted for each in variants) < QUIET:
        title += ": the machine was busy with something else, run again"
    return title, rows


def _layers(variants: Variants) -> Table:
    model, dense = _pair(variants)
    baseline = {} if dense is None else {layer.name: layer for layer in dense.layers()}
    head = ("layer", "op", "forward ms", "backward ms", "kept MB")
    rows = [(*head, *(("dense forward", "dense backward", "dense kept", "dense / model") if dense else ()))]
    own = {layer.name: layer for layer in model.layers()}
    for name in dict.fromkeys((*baseline, *own)):  # a fused model has fewer: the baseline's order holds for both
        mine, other = own.get(name), baseline.get(name)
        if all(layer is None or (layer.seconds < SEEN and not layer.kept) for layer in (mine, other)):
            continue
        row = (name or "(model)", mine.op if mine else f"({other.op})", *_cells(mine))
        if dense is not None:
            row += (*_cells(other), _ratio(other and other.seconds, mine and mine.seconds))
        rows.append(row)
    for kind in dict.fromkeys(kind for each in variants for kind in each.around()):
        around = [each.around().get(kind) for each in variants]
        row = (f"({kind})", "", milliseconds(around[0]), "", "")
        if dense is not None:
            row += (milliseconds(around[1]), "", "", _ratio(around[1], around[0]))
        rows.append(row)
    return "layers, in order of execution; what is not theirs below", rows


def _pair(variants: Variants) -> tuple[Variant, Variant | None]:
    return variants[0], variants[1] if len(variants) > 1 else None


def _cells(layer: LayerTime | None) -> tuple[str, str, str]:
    if layer is None:
        return "", "", ""
    return milliseconds(layer.forward), milliseconds(layer.backward), megabytes(layer.kept)


def _memory(variants: Variants) -> Table:
    def row(name: str, read: Callable[[Memory], int]) -> tuple[str, ...]:
        sizes = [read(each.memory) for each in variants]
        return (name, "", *map(megabytes, sizes), *([_ratio(sizes[0], sizes[1])] if len(sizes) > 1 else []))

    head = ("memory", "", "MB", *(("dense MB", "model / dense") if len(variants) > 1 else ()))
    rows = [row(name, lambda memory, name=name: getattr(memory, name)) for name in (*MEMORY, "peak")]
    return "bytes of a step, at torch's allocator", [head, *rows]
