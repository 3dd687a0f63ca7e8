"""Sparse transformers models on disk: `save_pretrained`'s format, with a config that says what is sparse."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from spfde.convert import sparsify
from spfde.nn import SparseLayer
from spfde.topology import permute, reserve

WEIGHTS, SHARDS = "model.safetensors", "model.safetensors.index.json"


def save_pretrained(model: Any, directory: str | Path, **options: Any) -> None:
    """Save a sparse model as it is; `config.spfde` says which layers are sparse, how, and by how much.

    `config.spfde_tied` has the names of Parameters that are one, whatever transformers would tie by its config.

    options: those of the model's own `save_pretrained`.

    Raises:
        TypeError: it is no model of transformers.
        ValueError: weights of a layer are more than what it stores: a transform, or a permutation that is learned.
    """
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"expected a model of transformers, got {type(model).__name__}, try its module inside")
    model.config.spfde = {
        name: _described(name, layer) for name, layer in model.named_modules() if isinstance(layer, SparseLayer)
    }
    model.config.spfde_tied = _tied(model)
    if "save_original_format" in signature(model.save_pretrained).parameters:  # it would take packed experts apart
        options.setdefault("save_original_format", False)
    model.save_pretrained(directory, **options)


def from_pretrained(kind: Any, directory: str | Path) -> Any:
    """Load a model that `save_pretrained` saved, sparse as it was, to the bit.

    kind: the model's class, or an auto class such as `transformers.AutoModelForSequenceClassification`.

    Raises:
        TypeError: kind is no class.
        ValueError: its config does not say what is sparse, or the files do not hold the model.
    """
    if not isinstance(kind, type):
        raise TypeError(f"expected a class of models, got a {type(kind).__name__}, try type(model)")
    path = Path(directory)
    config = AutoConfig.from_pretrained(path)
    layers = getattr(config, "spfde", None)
    if not layers:
        raise ValueError(
            f"expected config.spfde in {path}, got a model without it, try {kind.__name__}.from_pretrained for a dense"
            " one, or spfde.integrations.hf.save_pretrained to save a sparse one"
        )
    model = (kind.from_config if hasattr(kind, "from_config") else kind._from_config)(config)  # in the config's dtype
    _tie(model, config.spfde_tied)
    _convert(model, layers)
    lost, odd = model.load_state_dict(_weights(path), strict=False)
    shared = {name for names in _tied(model) if not {*names} <= {*lost} for name in names}
    lost = [name for name in lost if name not in shared]
    if lost or odd:
        raise ValueError(
            f"expected the weights of the sparse {type(model).__name__} of config.spfde in {path}, got a difference in "
            f"{(lost or odd)[:3]}, try {kind.__name__}.from_pretrained if it was made dense before it was saved"
        )
    return model.eval()


def _described(name: str, layer: SparseLayer) -> dict[str, Any]:
    """What makes such a layer of a dense one; room: blocks that its values have slots for."""
    permutation, transform = (layer._modules.get(part) for part in ("permutation", "transform"))
    if transform is not None or not (permutation is None or permutation.hard):
        raise ValueError(
            f"expected layers that are what they store, got {transform or permutation} in {name!r}, try "
            "spfde.densify(model).save_pretrained(path), or torch.save(model.state_dict(), path) to go on later"
        )
    sparsity = 1 - layer.nnz / layer.grid.size
    own = {"sparsity": sparsity, "pattern": str(layer.pattern), "room": layer.values.shape[0]}
    return own if permutation is None else own | {"permuted": True}


def _convert(model: nn.Module, layers: Mapping[str, Mapping[str, Any]]) -> None:
    for pattern in dict.fromkeys(each["pattern"] for each in layers.values()):
        own = {name: each["sparsity"] for name, each in layers.items() if each["pattern"] == pattern}
        sparsify(model, pattern=pattern, distribution=own, exclude=SparseLayer)
    straight = [name for name, each in layers.items() if "permuted" not in each]
    if len(straight) < len(layers):
        permute(model, exclude=straight)
    for name, each in layers.items():
        reserve(model.get_submodule(name), each["room"])


def _weights(path: Path) -> dict[str, Tensor]:
    files = [WEIGHTS]
    if (path / SHARDS).exists():
        files = sorted({*json.loads((path / SHARDS).read_text(encoding="utf-8"))["weight_map"].values()})
    return {name: tensor for file in files for name, tensor in load_file(path / file).items()}


def _tied(model: nn.Module) -> list[list[str]]:
    """The names of each Parameter that has several, of which a file holds one."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [group for group in names.values() if len(group) > 1]


def _tie(model: nn.Module, groups: Iterable[Sequence[str]]) -> None:
    """Make Parameters of a dense model one in these groups, and in no others."""
    for _, *others in _tied(model):
        for name in others:
            own = model.get_parameter(name)
            _assign(model, name, nn.Parameter(own.detach().clone(), own.requires_grad))
    dense = {name for name, _ in model.named_parameters(remove_duplicate=False)}  # no values of a shared sparse layer
    for first, *others in groups:
        for name in others if first in dense else ():
            _assign(model, name, model.get_parameter(first))


def _assign(model: nn.Module, name: str, parameter: nn.Parameter) -> None:
    module, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(module), leaf, parameter)
