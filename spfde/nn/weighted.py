"""The weights of a model, each once: weighted layers, and bare Parameters that a module multiplies by itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from spfde._modules import eval_mode
from spfde.nn.kinds import has_kind
from spfde.nn.layer import SparseLayer

NORMS = (nn.LayerNorm, nn.RMSNorm)  # those whose scale may have two dimensions and is no layer's weight all the same
_NOTE = "_stays_dense_because"


@dataclass(frozen=True, eq=False)
class Weighted:
    """A weighted layer, or one bare weight Parameter. A weight has two or more dimensions.

    name: the layer's, or the Parameter's. module: the layer, or what holds the Parameter. parameters: its weights,
    computed if it is parametrized, () of a sparse layer and of one whose weight comes from elsewhere. bare: whether it
    is a Parameter. tied: the name of an earlier one that has the same weights.
    """

    name: str
    module: nn.Module
    parameters: tuple[Tensor, ...]
    bare: bool = False
    tied: str | None = None

    @property
    def kind(self) -> str:
        """The layer's class, or "Parameter"."""
        return "Parameter" if self.bare else type(self.module).__name__

    @property
    def is_layer(self) -> bool:
        """Whether it is a layer that multiplies its input: no Parameter, and not a norm's scale."""
        return not self.bare and not isinstance(self.module, NORMS)

    @property
    def shape(self) -> tuple[int, ...]:
        """The dense weight's; (their number,) of several; (0,) where nothing is known of it yet."""
        if isinstance(self.module, SparseLayer):
            return tuple(self.module.dense_shape)
        shapes = [tuple(p.shape) for p in self.parameters if not is_lazy(p)]
        return shapes[0] if len(shapes) == 1 else (sum(map(prod, shapes)),)

    @property
    def size(self) -> int:
        """How many weights the dense form has."""
        return prod(self.shape)

    @property
    def stored(self) -> int:
        """How many weights are stored."""
        return self.module.stored if isinstance(self.module, SparseLayer) else self.size


def weighted(model: nn.Module) -> list[Weighted]:
    """The weighted layers and bare weight Parameters of a model, in registration order, shared modules once."""
    found: list[Weighted] = []
    first: dict[int, str] = {}
    inside: set[nn.Module] = set()  # what a layer is made of
    for name, module in model.named_modules():
        if module in inside:
            continue
        if isinstance(module, SparseLayer):
            inside.update(module.modules())
            found.append(Weighted(name, module, ()))
            continue
        inside.update(*(held.modules() for held in _parametrizations(module).values()))
        for where, weights, bare in _weights_of(name, module):
            owners = {first.setdefault(id(weight), where) for weight in weights}
            tied = owners.pop() if len(owners) == 1 and where not in owners else None
            found.append(Weighted(where, module, tuple(weights), bare, tied))
    return found


def weighted_layers(model: nn.Module) -> dict[str, Weighted]:
    """The layers among them, by name."""
    return {entry.name: entry for entry in weighted(model) if entry.is_layer}


def _weights_of(name: str, module: nn.Module) -> Iterator[tuple[str, list[Tensor], bool]]:
    """Name, weights, and whether it is bare, of the layer that a module is and of its bare Parameters."""
    own = {**module._parameters, **{key: _computed(module, key) for key in _parametrizations(module)}}
    own = {key: p for key, p in own.items() if p is not None and (is_lazy(p) or p.dim() > 1)}
    outer = not has_kind(module) and _holds_weights(module)
    layer = [] if outer else [p for key, p in own.items() if key.startswith("weight")]
    if layer or has_kind(module):
        yield name, layer, False
    for key, parameter in own.items():
        if not key.startswith("bias" if outer else ("weight", "bias")):
            yield f"{name}.{key}".lstrip("."), [parameter], True


def _holds_weights(module: nn.Module) -> bool:
    """Whether a module has layers inside, so that a Parameter of its own is not all that it is."""
    parts = [child for key, child in module.named_children() if key != "parametrizations"]
    return any(is_lazy(p) or p.dim() > 1 for part in parts for p in part.parameters())


@torch.no_grad()
def _computed(module: nn.Module, key: str) -> Tensor:
    """A parametrized weight, in eval mode: in training a spectral norm would take a step."""
    with eval_mode(module):
        return getattr(module, key)


def _parametrizations(module: nn.Module) -> Mapping[str, nn.Module]:
    return module.parametrizations if parametrize.is_parametrized(module) else {}


def is_trained(layer: nn.Module) -> bool:
    """Whether a dense layer's weight is trained, or what it is computed from."""
    weight = layer._parameters.get("weight")
    if weight is not None:
        return weight.requires_grad
    sources = [p for key, p in layer.named_parameters() if key != "bias"]
    return not sources or any(p.requires_grad for p in sources)


def note_dense(model: nn.Module, reasons: Mapping[nn.Module, str]) -> None:
    """Leaves with each module why it stays dense, for `dense_note`; notes of before are gone.

    A note is a plain attribute: copies and pickles of the model have it, its state_dict has not.
    """
    for module in model.modules():
        module.__dict__.pop(_NOTE, None)
    for module, reason in reasons.items():
        module.__dict__[_NOTE] = reason


def dense_note(module: nn.Module) -> str | None:
    """Why `spfde.sparsify` left the module dense, where it did."""
    return module.__dict__.get(_NOTE)


def copy_note(source: nn.Module, target: nn.Module) -> None:
    """Leaves with a module that is put together again why the first of its layers, apart in `source`, stayed dense."""
    target.__dict__.pop(_NOTE, None)
    for layer in source.modules():
        if (note := dense_note(layer)) is not None:
            target.__dict__[_NOTE] = note
            return
