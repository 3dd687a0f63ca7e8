"""The activations that a norm is fused with: as modules, functions and methods, by the names of `norm_act`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import fx, nn

from spfde.fusing.epilogue import hooked

MODULES: dict[type[nn.Module], str] = {
    nn.ReLU: "relu", nn.ReLU6: "relu6", nn.SiLU: "silu", nn.Hardswish: "hardswish", nn.GELU: "gelu", nn.Mish: "mish",
    nn.ELU: "elu", nn.Sigmoid: "sigmoid", nn.Hardsigmoid: "hardsigmoid", nn.Tanh: "tanh", nn.LeakyReLU: "leaky_relu",
}  # fmt: skip
# Those that kernels of layers have at their end as well.
IN_KERNELS = {
    F.relu: "relu", F.relu_: "relu", torch.relu: "relu", torch.relu_: "relu", F.relu6: "relu6", "relu": "relu",
    "relu_": "relu",
}  # fmt: skip
FUNCTIONS = {
    **IN_KERNELS, F.silu: "silu", F.hardswish: "hardswish", F.gelu: "gelu", F.mish: "mish", F.elu: "elu",
    torch.sigmoid: "sigmoid", F.sigmoid: "sigmoid", "sigmoid": "sigmoid", F.hardsigmoid: "hardsigmoid",
    torch.tanh: "tanh", F.tanh: "tanh", "tanh": "tanh",
}  # fmt: skip
# The same of timm, which are known by name, and what it calls the weights' norm with an activation inside.
_TIMM = {
    "Swish": "silu",
    "HardSwish": "hardswish",
    "GELU": "gelu",
    "Mish": "mish",
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
}


def name_of(module: nn.Module) -> str:
    """The name that `norm_act` has for what a module computes, "" if it has none or others see the module."""
    kind = type(module)
    act = MODULES.get(kind, "")
    if not act and kind.__module__.startswith("timm.layers.activations"):
        act = _TIMM.get(kind.__name__, "")
    if hooked(module) or getattr(module, "approximate", "none") != "none" or getattr(module, "alpha", 1.0) != 1.0:
        return ""
    return f"leaky_relu:{module.negative_slope}" if act == "leaky_relu" else act


def activation(node: fx.Node, value: fx.Node, module: nn.Module) -> str:
    """The name of the activation that `node` applies to `value`, empty if it is none that can be fused."""
    if not node.args or node.args[0] is not value or len(node.args) != 1 or node.kwargs.keys() - {"inplace"}:
        return ""
    if node.op == "call_module":
        return name_of(module.get_submodule(str(node.target)))
    return FUNCTIONS.get(node.target, "") if node.op in ("call_function", "call_method") else ""


def is_identity(node: fx.Node | None, module: nn.Module) -> bool:
    """Whether the node calls an nn.Identity that nobody looks into."""
    if node is None or node.op != "call_module" or len(node.args) != 1 or node.kwargs:
        return False
    called = module.get_submodule(str(node.target))
    return type(called) is nn.Identity and not hooked(called)
