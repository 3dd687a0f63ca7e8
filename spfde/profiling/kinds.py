"""What kind of work a module or a function does, by its name."""

from __future__ import annotations

from torch import nn

from spfde.kernels.registry import names, skips_zeros
from spfde.nn import SparseLayer
from spfde.profiling.timeline import PYTHON

SPARSE, MASKED, DENSE = "sparse kernels", "masked dense", "dense products"
NORM, ACTIVATION, ADD, OTHER = "norm", "activation", "add", "other ops"
LOSS, OPTIMIZER, DATA, ENGINE = "loss", "optimizer", "data", "autograd engine"
# In the order of a table.
KINDS = (SPARSE, MASKED, DENSE, NORM, ACTIVATION, ADD, OTHER, LOSS, OPTIMIZER, DATA, ENGINE, PYTHON)

_PRODUCTS = (nn.Linear, nn.modules.conv._ConvNd, nn.Bilinear)
_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm)
_FUNCTIONS = {
    DENSE: "linear conv1d conv2d conv3d matmul mm bmm addmm baddbmm einsum bilinear scaled_dot_product_attention"
    " multi_head_attention_forward",
    NORM: "batch_norm layer_norm group_norm instance_norm rms_norm normalize",
    ACTIVATION: "relu relu6 gelu silu elu leaky_relu hardswish hardtanh mish sigmoid tanh softmax log_softmax softplus",
    ADD: "add sub",
}
_KIND_OF = {name: kind for kind, names in _FUNCTIONS.items() for name in names.split()}


def kind_of_module(module: nn.Module) -> str:
    """The kind of a module that calls no other; containers are asked for their functions instead."""
    if isinstance(module, SparseLayer):
        return SPARSE if module.kernel in names() and skips_zeros(module.kernel) else MASKED
    if isinstance(module, _PRODUCTS):
        return DENSE
    if isinstance(module, _NORMS) or type(module).__name__ == "RMSNorm":
        return NORM
    return ACTIVATION if type(module).__module__ == nn.modules.activation.__name__ else OTHER


def plain_name(function: object) -> str:
    """`add` for torch.add, Tensor.add_ and Tensor.__iadd__ alike."""
    name = getattr(function, "__name__", type(function).__name__).strip("_")
    for prefix in ("r", "i"):
        if name.startswith(prefix) and name[1:] in ("add", "sub", "matmul", "mul"):
            return name[1:]
    return name


def kind_of_function(name: str) -> str:
    """The kind of a torch function by its `plain_name`."""
    return _KIND_OF.get(name, OTHER)
