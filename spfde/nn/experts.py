"""A mixture of experts with a layer for every expert's projections, so that each may be stored sparse."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from spfde.nn.layer import SparseLayer
from spfde.nn.shell import shell_of

UP, DOWN = ("gate_up_proj", "up_proj"), "down_proj"
OPTIONS = ("has_gate", "has_bias", "is_transposed", "num_experts")


class SparseExperts(nn.Module):
    """The experts of a transformers model (Mixtral's, Qwen's, gpt-oss's): `gate_up_proj[e]` and `down_proj[e]` of each.

    Each projection is an nn.Linear or a sparse layer; the packed Parameter [experts, outputs, inputs] (gpt-oss: inputs,
    outputs) is no more. Experts run one after the other over the tokens that were sent to them, whatever
    `experts_implementation` the config names: the grouped products of the others are dense.
    """

    def __init__(self, experts: nn.Module) -> None:
        super().__init__()
        self.__dict__["_shell"] = shell = shell_of(experts)  # no submodule
        shell.__dict__["config"] = experts.config
        self.num_experts: int = experts.num_experts
        self.up = UP[0] if experts.has_gate else UP[1]
        for name in (self.up, DOWN):
            self.add_module(name, nn.ModuleList(_linears(experts, name)))
        self.training = experts.training

    @property
    def replaced(self) -> tuple[str, ...]:
        """The names of the packed Parameters that the layers stand for."""
        names = (self.up, DOWN)
        return names + tuple(f"{name}_bias" for name in names) if self._shell.has_bias else names

    @property
    def is_sparse(self) -> bool:
        """Whether one of the projections is stored sparse."""
        return any(isinstance(layer, SparseLayer) for layer in self.modules())

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """The weighted sum of the experts' outputs.

        hidden_states: [tokens, features]. top_k_index: [tokens, k] experts of each token; what is no expert of this
        module is left out. top_k_weights: [tokens, k]. Returns [tokens, features].
        """
        experts, out = self._shell, torch.zeros_like(hidden_states)
        act = experts._apply_gate if experts.has_gate else experts.act_fn
        ups, downs = self._modules[self.up], self._modules[DOWN]
        for expert in top_k_index.unique().tolist():
            if expert >= self.num_experts:
                continue
            token, place = torch.where(top_k_index == expert)
            y = downs[expert](act(ups[expert](hidden_states[token])))
            out.index_add_(0, token, (y * top_k_weights[token, place, None]).to(out.dtype))
        return out

    def packed(self) -> nn.Module:
        """The module that was taken apart, with the same outputs; the projections are dense by now."""
        experts = copy.deepcopy(self._shell, {id(self._shell.config): self._shell.config})
        for name in (self.up, DOWN):
            layers = list(self._modules[name])
            weights = [layer.weight.mT if experts.is_transposed else layer.weight for layer in layers]
            with torch.no_grad():
                setattr(experts, name, nn.Parameter(torch.stack(weights), layers[0].weight.requires_grad))
                if experts.has_bias:
                    biases = [layer.bias for layer in layers]
                    setattr(experts, f"{name}_bias", nn.Parameter(torch.stack(biases), biases[0].requires_grad))
        return experts.train(self.training)

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors):
        """A dense checkpoint has the projections packed."""
        for name in self.replaced:
            packed = state_dict.pop(prefix + name, None)
            if packed is None:
                continue
            name, kind = (name[: -len("_bias")], "bias") if name.endswith("_bias") else (name, "weight")
            turned = kind == "weight" and self._shell.is_transposed
            for expert, part in enumerate(packed):
                state_dict[f"{prefix}{name}.{expert}.{kind}"] = part.mT if turned else part
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unexpected, errors)

    def extra_repr(self) -> str:
        """What repr() shows."""
        return f"{type(self._shell).__name__}, num_experts={self.num_experts}"


def divisible(experts: nn.Module, owners: Mapping[int, Iterable[str]]) -> bool:
    """Whether a module is such experts, computes as its class does, and trains weights that are its own.

    owners: the names of each Parameter, by its id.
    """
    # What transformers' decorator of experts sets; one with a norm behind every expert computes something else.
    options = [getattr(experts, name, None) for name in OPTIONS]
    if None in options or not hasattr(type(experts).forward, "__wrapped__") or "forward" in vars(experts):
        return False
    if getattr(experts, "has_post_expert_norm", False) or not hasattr(experts, "config"):
        return False
    up = UP[0] if experts.has_gate else UP[1]
    names = {up, DOWN, *((f"{up}_bias", f"{DOWN}_bias") if experts.has_bias else ())}
    weights = [experts._parameters.get(name) for name in (up, DOWN)]
    inside = [*experts.parameters(), *experts.buffers()]
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return (
        set(experts._parameters) == names
        and len(inside) == len(names)
        and all(w is not None and w.dim() == 3 and len(w) == experts.num_experts for w in weights)
        and all(w.requires_grad and w.is_floating_point() and not w.is_meta for w in weights)
        and all(len(list(owners[id(weight)])) == 1 for weight in weights)
        and not any(getattr(experts, name) for name in hooks)
    )


def _linears(experts: Any, name: str) -> Iterator[nn.Linear]:
    """The projection of each expert as a layer; its weight is a part of the packed one's memory."""
    packed, biases = getattr(experts, name), getattr(experts, f"{name}_bias", None)
    for expert, part in enumerate(packed.detach()):
        weight = part.mT if experts.is_transposed else part
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        linear.weight = nn.Parameter(weight)
        if experts.has_bias:
            linear.bias = nn.Parameter(biases[expert].detach().clone(), biases.requires_grad)
        yield linear.train(experts.training)
