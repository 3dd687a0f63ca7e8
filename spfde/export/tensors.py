"""The state of a model as a safetensors file."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

from spfde.export.dense import to_dense
from spfde.export.parity import Exported
from spfde.nn import SparseLayer


def safetensors(model: nn.Module, path: str | Path, *, dense: bool = False) -> Exported:
    """Writes the model's state_dict as a safetensors file, values and index of sparse layers or dense weights.

    The file says of each sparse layer what it is (metadata "spfde": its dense shape and pattern). Weights that are tied
    are written once; safetensors.torch.load_model reads them back. It is read again and compared bit by bit.

    Raises:
        ModuleNotFoundError: safetensors is not installed.
        ValueError: what was read differs from what was written.
    """
    try:
        from safetensors.torch import load_file, save_model
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("expected safetensors, got no such module, try pip install spfde[export]") from error
    path, model = Path(path), to_dense(model) if dense else model
    sparse = {
        name: {"shape": list(layer.dense_shape), "pattern": str(layer.pattern)}
        for name, layer in model.named_modules()
        if isinstance(layer, SparseLayer)
    }
    save_model(model, str(path), metadata={"format": "pt", "spfde": json.dumps(sparse)})
    state = model.state_dict()
    for name, tensor in load_file(path).items():
        kept = state[name].detach().cpu()
        if tensor.dtype != kept.dtype or not torch.equal(tensor.view(-1).view(torch.uint8), _bytes(kept)):
            raise ValueError(f"expected {str(path)!r} to hold the model's tensors, got another {name!r}, try again")
    return Exported(path, "safetensors", 0.0)


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)
