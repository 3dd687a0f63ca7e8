"""Norms that have their activation inside, as timm's BatchNormAct2d: one call of both, whoever calls them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from spfde.fusing.activations import name_of
from spfde.fusing.epilogue import hooked
from spfde.nn.norm import FusedNormAct2d

_KINDS = ("timm.layers.norm_act.BatchNormAct2d",)  # by name: nothing is imported for it


def act_inside(norm: nn.Module) -> str:
    """The activation that such a norm applies, "none" for none, "" if it is no such norm or does something else."""
    kind = type(norm)
    if f"{kind.__module__}.{kind.__qualname__}" not in _KINDS or hooked(norm):
        return ""
    drop, act = norm._modules.get("drop"), norm._modules.get("act")
    if type(drop) is not nn.Identity or hooked(drop) or act is None:
        return ""
    return "none" if type(act) is nn.Identity and not hooked(act) else name_of(act)


@dataclass
class NormWithAct:
    """The forward of such a norm, in the instance's `__dict__`: each call asks what the norm has inside."""

    module: nn.Module

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        act = "" if args or kwargs else act_inside(self.module)
        if not act:
            return type(self.module).forward(self.module, x, *args, **kwargs)
        return FusedNormAct2d.forward(self.module, x, None, act)  # type: ignore[arg-type]


def is_joined(norm: nn.Module) -> bool:
    """Whether the norm's forward is such a one."""
    return isinstance(vars(norm).get("forward"), NormWithAct)
