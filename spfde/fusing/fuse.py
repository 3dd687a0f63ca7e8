"""Whole models: fuse norms with the additions and activations that follow them, and undo it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from spfde.fusing.chains import obstacle
from spfde.fusing.forward import FusedForward, Key, Rewritten, is_fused, rewritten_forwards
from spfde.fusing.layers import LayerCall
from spfde.fusing.norm_with_act import NormWithAct, act_inside, is_joined
from spfde.fusing.residual import Added
from spfde.fusing.stand_in import Untraceable
from spfde.kernels.epilogue import ACTIVATIONS, Epilogue
from spfde.kernels.problem import problem_of
from spfde.kernels.registry import get, sparse_kernels
from spfde.nn import SparseLayer
from spfde.nn.norm import FusedNormAct2d


@dataclass(frozen=True)
class NormFusing:
    """One norm: `chain` is what runs as one ("norm+add+relu", "norm" for itself alone, "" if it stays torch's).

    `reason`: why not more. `fused`: whether `spfde.fuse` has put it in.
    """

    name: str
    chain: str
    reason: str
    fused: bool


@dataclass(frozen=True)
class LayerFusing:
    """One sparse layer: `chain` is what is called at once ("conv+norm+add+relu"), see `spfde.fuse`.

    `kernels`: those of a GPU whose product ends so, in one kernel. `reason`: why there is none, "" where there is one.
    `shares_passes`: whether the norm shares passes over memory with the layer's native kernel on a CPU, in training.
    """

    name: str
    chain: str
    reason: str = ""
    kernels: tuple[str, ...] = ()
    shares_passes: bool = False


@dataclass(frozen=True)
class Report:
    """The norms of a model and what can be fused with them; str() is the table.

    layers: the sparse layers called with what follows them; a GPU's kernels do both, a norm when it is frozen.
    """

    rows: tuple[NormFusing, ...]
    layers: tuple[LayerFusing, ...] = ()

    def __str__(self) -> str:
        return "\n".join((self._norms(), *self._layers()))

    def _layers(self) -> list[str]:
        lines = []
        for kernels in dict.fromkeys(layer.kernels for layer in self.layers if layer.kernels):
            able = [layer for layer in self.layers if layer.kernels == kernels]
            width = max(len(layer.name) for layer in able)
            named = " or ".join(map(repr, kernels))
            lines.append(f"one kernel on a GPU, where layer.kernel is {named} (with a norm, when frozen):")
            lines += [f"{layer.name:{width}}  {layer.chain}" for layer in able]
        others = Counter(layer.reason for layer in self.layers if layer.reason)
        if sharing := sum(layer.shares_passes for layer in self.layers):
            lines.insert(
                0, f"on a CPU in training {sharing} norms share passes with the native kernel of the layer before"
            )
        return [*lines, *(f"sparse layers that run apart: {n}, {why}" for why, n in others.items())]

    def _norms(self) -> str:
        if not self.rows:
            return "no normalisation layer, nothing to fuse"
        width = max(len(row.name) for row in self.rows)
        chains = max(len(row.chain or "left alone") for row in self.rows)
        lines = [f"{r.name:{width}}  {r.chain or 'left alone':{chains}}  {r.reason}".rstrip() for r in self.rows]
        joined = sum("+" in row.chain for row in self.rows)
        word = "fused" if any(row.fused for row in self.rows) else "can be fused"
        return "\n".join([*lines, f"{joined} of {len(self.rows)} norms {word} with what follows them"])


def fuse(model: nn.Module, *, recompute: bool = False) -> nn.Module:
    """Makes one call of every norm (+ residual addition) (+ activation) in place, and returns the model.

    ReLU and ReLU6 run in the norm's kernel; SiLU, Hardswish, GELU (exact), Mish, ELU, LeakyReLU, sigmoids and tanh are
    torch's op on what it returns. An nn.Identity may stand between; timm's BatchNormAct2d has its activation inside.

    Parameters, buffers, state_dict keys, module names and classes stay: an nn.BatchNorm2d becomes a
    `spfde.nn.FusedNormAct2d`, which is one, and a module whose forward calls a whole chain gets a rewritten forward.
    `spfde.fuse.report(model)` says what was fused, and what was not and why. Fusing twice is fusing once.

    A sparse layer whose only reader is such a chain, an addition (+ activation) or an activation is called with it:
    one kernel does all where the layer's kernel is one of a GPU that ends so. With a norm that is so where the norm is
    in evaluation and no gradient is wanted (a frozen prefix, no_grad). On a CPU a convolution in native kernels and its
    norm share passes over memory in training. Layers that become sparse later are called so after fusing again.

    What a forward adds right after it has called another module, `x + self.mlp(x)`, is added inside of that one where
    its own forward ends with such a layer or norm. A module with hooks, also of later, is called as it is written.

    recompute: a layer that reads what a fused norm or a GELU made does not save it, backward makes it again: up to half
    of the memory, for 5 to 8% of the time of a step.

    Numbers, parameters and tensors of the modules are read when the forward runs. A rewritten forward holds as long as
    what else it has read is as it was: a flag or a list of the module, a global. Otherwise the module's own forward
    runs, until you fuse again.

    Raises:
        TypeError: model is not an nn.Module.
    """
    forwards, _ = _forwards(_checked(model), recompute)
    useful = {module for module, rewritten in _used(forwards) if any(forward.useful for forward in rewritten)}
    for module in model.modules():
        if module in useful:
            vars(module)["forward"] = FusedForward(module, recompute, forwards[module])
        elif is_fused(module):
            del vars(module)["forward"]  # of an earlier call
        if type(module) is nn.BatchNorm2d and not obstacle(module):
            module.__class__ = FusedNormAct2d
            vars(module)[_OURS] = True
        elif act_inside(module) and "forward" not in vars(module):
            vars(module)["forward"] = NormWithAct(module)
    return model


def unfuse(model: nn.Module) -> nn.Module:
    """Gives the model of before `fuse` back, in place, with its present weights and statistics.

    Raises:
        TypeError: model is not an nn.Module.
    """
    for module in _checked(model).modules():
        if is_fused(module) or is_joined(module):
            del vars(module)["forward"]
        if vars(module).pop(_OURS, False) and type(module) is FusedNormAct2d:
            module.__class__ = nn.BatchNorm2d
    return model


def report(model: nn.Module) -> Report:
    """What `fuse` did, or would do, with every normalisation layer of the model, in order of registration.

    Raises:
        TypeError: model is not an nn.Module.
    """
    names = {module: name or "the model" for name, module in _checked(model).named_modules()}
    forwards, problems = _forwards(model, recompute=False)
    used = [forward for _, rewritten in _used(forwards) for forward in rewritten]
    rows = []
    for norm in model.modules():
        if not isinstance(norm, nn.modules.batchnorm._BatchNorm):
            continue
        calls = [call for forward in used for call in forward.norms if call.norm is norm]
        around = [f"in {names[m]} ({type(m).__name__}), {why}" for m, why in problems.items() if norm in m.modules()]
        if act := act_inside(norm):
            chain = "norm" if act == "none" else f"norm+{act}"
            rows.append(NormFusing(names[norm], chain, "" if "+" in chain else "it has no activation", is_joined(norm)))
            continue
        alone = obstacle(norm)
        chains = [call.chain for call in calls] or ["" if alone else "norm"]
        reasons = [call.reason for call in calls] or [alone, *around[-1:], "no forward calls it"]
        rows.append(
            NormFusing(
                name=names[norm],
                chain=", ".join(dict.fromkeys(filter(None, chains))),
                reason=next(filter(None, reasons), ""),
                fused=type(norm) is FusedNormAct2d,
            )
        )
    calls = dict.fromkeys(call for forward in used for call in forward.layers)
    return Report(tuple(rows), tuple(_layer_fusing(names[c.layer], c) for c in calls))


def _layer_fusing(name: str, call: LayerCall) -> LayerFusing:
    """Which kernels of a GPU, at hand or not, end with what follows the layer, and why none does."""
    kind, *parts = call.chain.split("+")
    act = next((part for part in parts if part in ACTIVATIONS), "none")
    added = torch.empty(0, dtype=torch.float16) if "add" in parts else None  # of the product's own precision
    end = Epilogue(residual=added, act=act, residual_after_act=added is not None and act in parts[: parts.index("add")])
    plan, op = call.layer.plan, "linear" if kind == "linear" else "conv2d"
    problem = problem_of(plan.shape, (1, 1, 1, 1), plan.multiplied, plan.block, plan.window, "cuda", torch.float16)
    able, reasons = [], []
    for kernel in sparse_kernels("cuda"):
        if reason := kernel.hindrance(problem):
            reasons.append(reason)
        elif op in kernel.products and kernel.products[op].fuses(end, problem, torch.float16, graph=False):
            able.append(kernel.name)
        else:
            reasons.append(f"the products of kernel {kernel.name!r} do not end so")
    why = "" if able else "; ".join(dict.fromkeys(reasons))
    return LayerFusing(name, call.chain, why, tuple(able), _shares_passes(call))


def _shares_passes(call: LayerCall) -> bool:
    """Whether `conv2d_norm_act` has a kernel for the layer."""
    if not call.chain.startswith("conv+norm"):
        return False
    normed = get("native").products["conv2d"].normed
    return normed is not None and normed.applies(call.layer.plan.window, call.layer.grid.block)


fuse.report = report  # type: ignore[attr-defined]


_Forwards = dict[nn.Module, dict[Key, Rewritten]]
_OURS = "_fused_by_spfde"  # in the __dict__ of a norm that was a BatchNorm2d
_SOUGHT = (nn.modules.batchnorm._BatchNorm, nn.GELU, SparseLayer)


def _checked(model: nn.Module) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected an nn.Module, got {type(model).__name__}, try the model itself")
    return model


def _forwards(model: nn.Module, recompute: bool) -> tuple[_Forwards, dict[nn.Module, str]]:
    """The rewritten forwards of every module around what is sought, and why some have none; outer before inner."""
    forwards, problems = {}, {}
    for module in _inner_first(model, set()):
        inside = any(isinstance(m, _SOUGHT) for m in module.modules() if m is not module)
        if not inside or type(module).forward is nn.Module.forward:
            continue
        try:
            if not is_fused(module) and "forward" in vars(module):
                raise Untraceable("its forward is replaced on the instance")
            forwards[module] = rewritten_forwards(module, recompute, forwards)
        except Untraceable as problem:
            problems[module] = str(problem)
    return dict(reversed(forwards.items())), dict(reversed(problems.items()))


def _inner_first(module: nn.Module, seen: set[nn.Module]) -> Iterator[nn.Module]:
    """Every module once, after all that is inside it; backwards, they come in order of registration."""
    seen.add(module)
    for child in reversed(list(module.children())):
        if child not in seen:
            yield from _inner_first(child, seen)
    yield module


def _used(forwards: _Forwards) -> Iterator[tuple[nn.Module, list[Rewritten]]]:
    """The forwards of every module that are called in training: its own, those that add to it, or both."""
    added: set[Added] = set()
    called: set[nn.Module] = set()
    for module, rewritten in forwards.items():
        adding = [f for key, f in rewritten.items() if key[0] and Added(module, key[1]) in added]
        used = adding if adding and module not in called else [*adding, rewritten[True, ""]]
        for f in used:
            added.update(f.added)
            called.update(f.called)
        yield module, used
