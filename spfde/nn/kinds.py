"""The kinds of layer that have a sparse form: what is converted, counted, summed up and frozen asks here."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from spfde.nn.conv1d import SparseConv1d
from spfde.nn.conv2d import SparseConv2d
from spfde.nn.conv2d_same import SparseConv2dSame
from spfde.nn.conv_transpose2d import SparseConvTranspose2d
from spfde.nn.layer import SparseLayer
from spfde.nn.linear import SparseConv1D, SparseLinear
from spfde.nn.std_conv2d import SparseStdConv2d

# NonDynamicallyQuantizableLinear is nn.MultiheadAttention's out_proj: a Linear under another name.
_SPARSE: dict[type[nn.Module], type[SparseLayer]] = {
    nn.Linear: SparseLinear,
    NonDynamicallyQuantizableLinear: SparseLinear,
    nn.Conv1d: SparseConv1d,
    nn.Conv2d: SparseConv2d,
    nn.ConvTranspose2d: SparseConvTranspose2d,
}
# Kinds of other packages, known by name: they are not imported for it.
_FOREIGN: dict[str, type[SparseLayer]] = {
    "transformers.pytorch_utils.Conv1D": SparseConv1D,
    "torch_geometric.nn.dense.linear.Linear": SparseLinear,
    "timm.layers.conv2d_same.Conv2dSame": SparseConv2dSame,
    **dict.fromkeys(
        (f"timm.layers.std_conv.{kind}Conv2d{pad}" for kind in ("Std", "ScaledStd") for pad in ("", "Same")),
        SparseStdConv2d,
    ),
}


def register(dense: type[nn.Module], sparse: type[SparseLayer]) -> None:
    """Lets `spfde.sparsify` make layers of type `dense` sparse ones of type `sparse`.

    dense: has a Parameter `weight` [outputs, ...] and `bias` (or None); a subclass of it is another kind. sparse:
    offers `at(layer, positions, pattern)` and `to_dense()`. A class that computes as nn.Linear does is registered with
    SparseLinear, and `spfde.densify` gives it back as it was: `register(MyLinear, spfde.nn.SparseLinear)`.

    Raises:
        TypeError: an argument is not such a class.
        ValueError: another class is registered for `dense`.
    """
    if not (isinstance(dense, type) and issubclass(dense, nn.Module)):
        raise TypeError(f"expected a subclass of nn.Module as dense, got {dense!r}, try the class of the layer")
    if not (isinstance(sparse, type) and issubclass(sparse, SparseLayer) and callable(getattr(sparse, "at", None))):
        raise TypeError(f"expected a SparseLayer class with at() as sparse, got {sparse!r}, try one of SparseConv2d")
    if _SPARSE.setdefault(dense, sparse) is not sparse:
        raise ValueError(f"expected a kind that is free, got {dense.__name__}, which {_SPARSE[dense].__name__} has")


def unregister(dense: type[nn.Module]) -> None:
    """Forgets a kind that `register` made known."""
    del _SPARSE[dense]


def sparse_form(layer: nn.Module) -> type[SparseLayer] | None:
    """The sparse class for a layer of this very type, None if there is none."""
    kind = type(layer)
    return _SPARSE.get(kind) or _FOREIGN.get(f"{kind.__module__}.{kind.__qualname__}")


def has_kind(module: nn.Module) -> bool:
    """Whether a module is a dense layer of a kind that is registered, or of a subclass of one."""
    return sparse_form(module) is not None or isinstance(module, tuple(_SPARSE))


def is_turned(layer: nn.Module) -> bool:
    """Whether the weight of a dense layer of a kind is [inputs, outputs]."""
    form = sparse_form(layer)
    return form is not None and form.turned


def kinds() -> tuple[type[nn.Module], ...]:
    """The dense classes that have a sparse form; a class that only renames another one is left out."""
    return tuple(
        kind for kind in _SPARSE if not any(kind is not other and issubclass(kind, other) for other in _SPARSE)
    )
