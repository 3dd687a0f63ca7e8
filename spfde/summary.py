"""What a model's weights are stored as, which kernel runs them, and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from spfde._names import printable
from spfde.flops import positions, trained_weights
from spfde.kernels.registry import skips_zeros
from spfde.nn import SparseLayer, SparseMultiheadAttention
from spfde.nn.kinds import has_kind
from spfde.nn.refusals import owners_of, problem_of
from spfde.nn.select import UNTRAINED
from spfde.nn.weighted import Weighted, dense_note, is_trained, weighted
from spfde.profiling.memory import size_of


@dataclass(frozen=True)
class LayerSummary:
    """One weighted layer, or one bare weight Parameter. `kernel` is "auto" before the first forward.

    shape: of the dense weight; the number of weights where a layer has several (an LSTM). nnz: stored weights,
    whatever the pattern. size: bytes of parameters, index and what kernels keep. multiply_adds: those of the dense
    forward product, for the example input or for the input that a sparse layer saw last, 0 where unknown. table: the
    name of the measured table that the layer chooses by, if any. tied: whether an earlier row has the same weights.
    frozen: stored weights that are frozen by themselves (`spfde.freezing.freeze_weights`).
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
    tied: bool = False
    frozen: int = 0

    @property
    def converted(self) -> bool:
        """Whether the layer was made sparse."""
        return self.pattern != "dense"

    @property
    def weights(self) -> int:
        """Weights of its dense form that no earlier row has."""
        return 0 if self.tied else prod(self.shape)


@dataclass(frozen=True)
class Summary:
    """The weights of a model, each once; str() is the table. counted: whether all layers' multiply-adds are known."""

    rows: tuple[LayerSummary, ...]
    counted: bool = False

    @property
    def sparse_share(self) -> float:
        """Share of the converted layers that really run a sparse kernel, in [0, 1]."""
        return _share([1] * len(self._converted), [row.runs_sparse for row in self._converted])

    @property
    def converted_share(self) -> float:
        """Share of the model's weights that are in sparse layers, in [0, 1]."""
        return _share([row.weights for row in self.rows], [row.converted for row in self.rows])

    @property
    def sparse_weight_share(self) -> float:
        """Share of the model's weights that are in layers that run a sparse kernel, in [0, 1]."""
        return _share([row.weights for row in self.rows], [row.runs_sparse for row in self.rows])

    @property
    def sparse_work_share(self) -> float:
        """Share of the dense multiply-adds, as far as they are known, that runs in sparse kernels, in [0, 1]."""
        return _share([row.multiply_adds for row in self.rows], [row.runs_sparse for row in self.rows])

    @property
    def tables(self) -> tuple[str, ...]:
        """The names of the measured tables in use."""
        return tuple(sorted({row.table for row in self.rows if row.table is not None}))

    @property
    def _converted(self) -> list[LayerSummary]:
        return [row for row in self.rows if row.converted]

    def __str__(self) -> str:
        head = ("layer", "kind", "shape", "sparsity", "MB", "pattern", "kernel", "why")
        body = [
            (
                r.name,
                r.kind,
                "x".join(map(str, r.shape)),
                f"{r.sparsity:.1%}",
                _mb(r.size),
                r.pattern,
                r.kernel,
                r.reason,
            )
            for r in self.rows
        ]
        body = [tuple(map(_one_line, line)) for line in body]
        widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in [head, *body]]
        dense = sum(r.weights for r in self.rows)
        stored = sum(r.nnz for r in self.rows if not r.tied)
        share = 1 - stored / dense if dense else 0.0
        converted = self._converted
        work = ""
        if all(row.multiply_adds for row in converted):
            part = _share([row.multiply_adds for row in converted], [row.runs_sparse for row in converted])
            work = f", with {part:.0%} of their multiply-adds"
        lines += [
            f"{stored} of {dense} weights stored ({share:.1%} sparse) in {_mb(sum(r.size for r in self.rows))} MB; "
            f"{sum(row.runs_sparse for row in converted)} of {len(converted)} sparse layers run a sparse kernel "
            f"({self.sparse_share:.0%}){work}",
            f"of the whole model {self.converted_share:.1%} of the weights are in sparse layers, "
            f"{self.sparse_weight_share:.1%} run in a sparse kernel"
            + (f", with {self.sparse_work_share:.1%} of the multiply-adds" if self.counted else ""),
        ]
        if self.tables:
            lines.append(f"kernels measured in table {', '.join(self.tables)}")
        return "\n".join(lines)


def _share(amounts: Sequence[int], these: Iterable[bool]) -> float:
    """The share of the amounts that is of these."""
    whole = sum(amounts)
    return sum(amount for amount, is_this in zip(amounts, these, strict=True) if is_this) / whole if whole else 0.0


def _one_line(text: str) -> str:
    """Text of a cell: a name must not steer a terminal, nor begin a row."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def _mb(size: int) -> str:
    return f"{size / 1e6:.3f}"


def summary(model: nn.Module, example_input: Any = None) -> Summary:
    """The weights of a model (parameters of two or more dimensions): sparsity, kernel, and why.

    Every weighted layer is a row, and every bare weight Parameter (experts, packed projections, position embeddings).
    Kernels are known after one forward pass.

    example_input: an input (a tuple: positional arguments, a mapping: keywords) to run the model on once, in eval mode
    without gradients: multiply-adds are then counted in the whole model (see `spfde.flops.positions`), not only in
    sparse layers.
    """
    used = None if example_input is None else positions(model, example_input)
    owners = owners_of(model)
    attentions = [m for m in model.modules() if isinstance(m, nn.MultiheadAttention)]
    projections = {m.out_proj for m in attentions if not isinstance(m, SparseMultiheadAttention)}
    rows = []
    for entry in weighted(model):
        if isinstance(entry.module, SparseLayer):
            rows.append(_sparse_row(entry, entry.module, entry.module in projections, used))
        else:
            rows.append(_dense_row(entry, owners, used))
    return Summary(tuple(rows), used is not None)


def _sparse_row(
    entry: Weighted, layer: SparseLayer, is_projection: bool, used: Mapping[nn.Module, int] | None
) -> LayerSummary:
    choice, taken = layer.choice, layer.weight_taken or (is_projection and layer.choice is None)
    if taken:
        kernel, reason = "dense", "its parent reads .weight and multiplies by a dense weight, made anew each time"
    else:
        kernel, reason = layer.kernel, "chosen at the first forward pass" if choice is None else choice.reason
    work = 0 if choice is None or taken else choice.problem.multiply_adds
    frozen = layer.stored - trained_weights(layer)
    if frozen:
        reason = f"{reason}; {frozen / layer.stored:.1%} of its weights frozen"
    return LayerSummary(
        name=entry.name,
        kind=entry.kind,
        shape=entry.shape,
        sparsity=layer.sparsity,
        nnz=layer.stored,
        pattern=str(layer.pattern),
        kernel=kernel,
        reason=reason,
        runs_sparse=choice is not None and not taken and skips_zeros(choice.kernel),
        size=size_of([list(layer.parameters()), list(layer.buffers()), layer.plan]),
        multiply_adds=work if used is None else used.get(layer, 0) * entry.size,
        table=None if layer.table is None else layer.table.name,
        frozen=frozen,
    )


def _dense_row(
    entry: Weighted, owners: Mapping[int, Sequence[str]], used: Mapping[nn.Module, int] | None
) -> LayerSummary:
    held = [p for p in entry.module.parameters(recurse=False) if not is_lazy(p)]
    held = [p for p in entry.parameters if not is_lazy(p)] + [p for p in held if p.dim() < 2 and not entry.bare]
    if parametrize.is_parametrized(entry.module):
        held = list(entry.module.parameters())
    return LayerSummary(
        name=entry.name,
        kind=entry.kind,
        shape=entry.shape,
        sparsity=0.0,
        nnz=entry.size,
        pattern="dense",
        kernel="dense",
        reason=_why_dense(entry, owners),
        runs_sparse=False,
        size=0 if entry.tied else size_of(held),
        multiply_adds=(used or {}).get(entry.module, 0) * entry.size,
        tied=entry.tied is not None,
    )


def _why_dense(entry: Weighted, owners: Mapping[int, Sequence[str]]) -> str:
    tied = f"; tied to {entry.tied}" if entry.tied else ""
    if entry.bare or not has_kind(entry.module):
        if (reason := dense_note(entry.module)) is not None:
            return f"not converted: {reason}{tied}"
        what = f": a Parameter of {type(entry.module).__name__}" if entry.bare else f" of {entry.kind}"
        return f"no sparse form{what}{tied}"
    reason, trained = dense_note(entry.module), is_trained(entry.module)
    if reason == UNTRAINED and trained:
        reason = "its weight was not trained when spfde.sparsify ran"
    elif reason is None and not trained:
        reason = UNTRAINED
    if reason is not None:
        return f"not converted: {reason}{'' if reason.startswith('tied') else tied}"
    problem = problem_of(entry, owners)
    return "not converted" if problem is None else f"not converted: {problem.subject} {problem.got}"
