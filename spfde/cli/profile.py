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
from spfde.bench import workload
from spfde.cli.terminal import steady
from spfde.profiling.result import StepProfile


def profile(
    model: Annotated[str, typer.Option(help="Network of the zoo, or module:callable of (model, batch).")] = "resnet32",
    sparsity: Annotated[float, typer.Option(help="Fraction of weights that are zero; 0: the dense network.")] = 0.9,
    pattern: Annotated[str, typer.Option(help="Pattern of the zeros, as spfde.sparsify takes it.")] = "unstructured",
    fused: Annotated[bool, typer.Option("--fuse/--no-fuse", help="Fuse norms with what follows them.")] = True,
    recompute: Annotated[bool, typer.Option(help="Make fused outputs again in backward, for memory.")] = False,
    batch: Annotated[int, typer.Option(min=1, help="Samples in a step.")] = 64,
    size: Annotated[
        int | None, typer.Option(min=1, help="Pixels a side, or tokens; the network's usual number if left out.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Steps that are timed, each way in turn.")] = 10,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads (torch's current number).")] = None,
    out: Annotated[Path | None, typer.Option(help="Directory for profile.json and profile.png.")] = None,
) -> None:
    """Profile a training step: where its time and memory go, sparse beside dense, by kind of work and by layer."""
    if recompute and not fused:
        raise ValueError("expected --recompute with fused norms, got --no-fuse, try one of them")
    if threads is not None:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    load = workload(model, batch, size)
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
        out.mkdir(parents=True, exist_ok=True)
        kept = {"environment": environment.report(), **given, "size": list(x.shape), **found.to_dict()}
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
