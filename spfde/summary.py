"""What a model's layers store and which kernel runs them."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from torch import nn

from spfde.kernels.registry import skips_zeros
from spfde.nn import SparseLayer
from spfde.nn.kinds import has_kind
from spfde.profiling.memory import size_of


@dataclass(frozen=True)
class LayerSummary:
    """One weighted layer. `kernel` is "auto" before the first forward.

    nnz: stored weights, whatever the pattern. size: bytes of parameters, index and what kernels keep. multiply_adds:
    those of the dense forward product for the input last seen, 0 before. table: the name of the measured table that
    the layer chooses by, if any.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    sparsity: float
    nnz: int
    pattern: str
    kernel: str
    reason: str
    runs_sparse: bool
    size: int = 0
    multiply_adds: int = 0
    table: str | None = None

    @property
    def converted(self) -> bool:
        """Whether the layer was made sparse."""
        return self.pattern != "dense"


@dataclass(frozen=True)
class Summary:
    """The layers of a model; str() is the table."""

    rows: tuple[LayerSummary, ...]

    @property
    def sparse_share(self) -> float:
        """Share of the converted layers that really run a sparse kernel, in [0, 1]."""
        converted = [row for row in self.rows if row.converted]
        return sum(row.runs_sparse for row in converted) / len(converted) if converted else 0.0

    @property
    def sparse_work_share(self) -> float:
        """Share of the converted layers' dense multiply-adds that runs in a sparse kernel, in [0, 1]."""
        work = sum(row.multiply_adds for row in self.rows if row.converted)
        return sum(row.multiply_adds for row in self.rows if row.runs_sparse) / work if work else 0.0

    @property
    def tables(self) -> tuple[str, ...]:
        """The names of the measured tables in use."""
        return tuple(sorted({row.table for row in self.rows if row.table is not None}))

    def __str__(self) -> str:
        head = ("layer", "shape", "sparsity", "MB", "pattern", "kernel", "why")
        body = [
            (
                r.name,
                "x".join(map(str, r.shape)),
                f"{r.sparsity:.1%}",
                _mb(r.size),
                r.pattern,
                r.kernel,
                r.reason,
            )
            for r in self.rows
        ]
        widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in [head, *body]]
        stored = sum(r.nnz for r in self.rows)
        dense = sum(prod(r.shape) for r in self.rows)
        converted = [r for r in self.rows if r.converted]
        run = sum(r.runs_sparse for r in converted)
        share = 1 - stored / dense if dense else 0.0
        lines.append(
            f"{stored} of {dense} weights stored ({share:.1%} sparse) in {_mb(sum(r.size for r in self.rows))} MB; "
            f"{run} of {len(converted)} sparse layers run a sparse kernel ({self.sparse_share:.0%}), "
            f"with {self.sparse_work_share:.0%} of their multiply-adds"
        )
        if self.tables:
            lines.append(f"kernels measured in table {', '.join(self.tables)}")
        return "\n".join(lines)


def _mb(size: int) -> str:
    return f"{size / 1e6:.3f}"


def summary(model: nn.Module) -> Summary:
    """The weighted layers of a model with sparsity, kernel and reason; kernels are known after one forward pass."""
    rows = []
    for name, module in model.named_modules():
        if isinstance(module, SparseLayer):
            choice = module.choice
            rows.append(
                LayerSummary(
                    name=name,
                    kind=type(module).__name__,
                    shape=tuple(module.shape),
                    sparsity=module.sparsity,
                    nnz=module.stored,
                    pattern=str(module.pattern),
                    kernel=module.kernel,
                    reason="chosen at the first forward pass" if choice is None else choice.reason,
                    runs_sparse=choice is not None and skips_zeros(choice.kernel),
                    size=size_of([list(module.parameters()), list(module.buffers()), module.plan]),
                    multiply_adds=0 if choice is None else choice.problem.multiply_adds,
                    table=None if module.table is None else module.table.name,
                )
            )
        elif has_kind(module):
            size = module.weight.numel()
            rows.append(
                LayerSummary(
                    name=name,
                    kind=type(module).__name__,
                    shape=tuple(module.weight.shape),
                    sparsity=0.0,
                    nnz=size,
                    pattern="dense",
                    kernel="dense",
                    reason="not converted",
                    runs_sparse=False,
                    size=size_of(list(module.parameters())),
                )
            )
    return Summary(tuple(rows))
