"""`spfde profile`: a training step of a network of the zoo, sparse beside dense, by kind of work and by layer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.table import Table
from rich.text import Text

from spfde import env as environment
from spfde import fuse, sparsify
from spfde import profile as profile_step
from spfde._modules import tensors
from spfde.bench.workload import USUAL, workload
from spfde.cli.options import option, refuse
from spfde.cli.terminal import steady
from spfde.profiling.result import StepProfile

PATTERN = "unstructured"


def profile(
    model: Annotated[str, typer.Option(help="Network of the zoo, or module:callable that returns one.")] = "resnet32",
    sparsity: Annotated[float, typer.Option(help="Fraction of weights that are zero; 0: the dense network.")] = 0.9,
    pattern: Annotated[str | None, option("Pattern of the zeros, as spfde.sparsify takes it.", PATTERN)] = None,
    fused: Annotated[bool, typer.Option("--fuse/--no-fuse", help="Fuse norms with what follows them.")] = True,
    recompute: Annotated[bool, typer.Option(help="Make fused outputs again in backward, for memory.")] = False,
    batch: Annotated[int | None, option("Samples in a step.", USUAL, min=1)] = None,
    size: Annotated[
        int | None, typer.Option(min=1, help="Pixels a side, or tokens; the network's usual number if left out.")
    ] = None,
    input_shape: Annotated[
        str | None, typer.Option("--input", help="Of a sample of module:callable: 3x224x224.", metavar="SHAPE")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Steps that are timed, each way in turn.")] = 10,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads (torch's current number).")] = None,
    out: Annotated[Path | None, typer.Option(help="Directory for profile.json and profile.png.")] = None,
) -> None:
    """Profile a training step: where its time and memory go, sparse beside dense, by kind of work and by layer."""
    if recompute and not fused:
        raise ValueError("expected --recompute with fused norms, got --no-fuse, try one of them")
    if not sparsity:
        refuse("of a sparse network", "--sparsity 0.9", pattern=pattern)
    pattern = pattern or PATTERN
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)  # what cannot be written is told before anything is timed
    if threads is not None:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    load = workload(model, batch, size, input_shape)
    network, x = load.model, load.inputs
    if sparsity:
        network = sparsify(network, sparsity, pattern=pattern)
    if fused:
        network = fuse(network, recompute=recompute)
    found = profile_step(network, x, load.loss_fn, rounds=rounds)
    console = steady()
    for title, table in terminal(found):
        console.print(title, soft_wrap=True)
        console.print(table)
    if out is not None:
        given = {"model": model, "sparsity": sparsity, "pattern": pattern, "fuse": fused, "recompute": recompute}
        sizes = [list(each.shape) for each in tensors(x)]
        size_of = sizes[0] if len(sizes) == 1 else sizes
        kept = {"environment": environment.portable(environment.report()), **given, "size": size_of, **found.to_dict()}
        (out / "profile.json").write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
        found.save_plot(out / "profile.png")
        console.print(f"profile: {out / 'profile.json'}, {out / 'profile.png'}", markup=False, highlight=False)


def terminal(found: StepProfile) -> list[tuple[Text, Table]]:
    """The tables of a profile for the terminal, with their titles."""
    shown = []
    for title, (head, *rows) in found.tables():
        table = Table(box=None, header_style="bold", pad_edge=False)
        for index, name in enumerate(head):
            table.add_column(name, justify="left" if index < 2 else "right", overflow="fold")
        for row in rows:
            table.add_row(*map(Text, row))
        shown.append((Text(f"\n{title}"), table))
    return shown
