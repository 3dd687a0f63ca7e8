"""nn.MultiheadAttention with layers of their own for its projections, so that each may be stored sparse."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Proxy

from spfde.nn.guard import guarded
from spfde.nn.layer import SparseLayer
from spfde.nn.shell import shell_of

PARTS = ("q", "k", "v")
PACKED = ("in_proj_weight", "in_proj_bias", *(f"{part}_proj_weight" for part in PARTS))


class SparseMultiheadAttention(nn.MultiheadAttention):
    """softmax(Q K^T / sqrt(d)) V of heads, as nn.MultiheadAttention, projected by q_proj, k_proj, v_proj and out_proj.

    Each is an nn.Linear or a sparse layer; the packed `in_proj_weight` is only made where it is read. torch's fast
    paths of inference, which would multiply by dense weights, leave it alone.
    """

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        nn.Module.__init__(self)
        self.__dict__["_shell"] = shell = shell_of(attention)  # no submodule
        shell._modules = {}
        self.embed_dim, self.num_heads, self.head_dim = attention.embed_dim, attention.num_heads, attention.head_dim
        self.kdim, self.vdim, self.batch_first = attention.kdim, attention.vdim, attention.batch_first
        self.dropout, self.add_zero_attn = attention.dropout, attention.add_zero_attn
        for part, (weight, bias) in zip(PARTS, _split(attention), strict=True):
            linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
            linear.weight = nn.Parameter(weight)
            linear.bias = None if bias is None else nn.Parameter(bias, attention.in_proj_bias.requires_grad)
            self.add_module(f"{part}_proj", linear)
        self.out_proj = attention.out_proj
        self.bias_k, self.bias_v = attention.bias_k, attention.bias_v
        self.training = attention.training

    # What torch's transformer layers ask before they take a fast path: not of this module.
    _qkv_same_embed_dim = False
    replaced = PACKED

    @property
    def is_sparse(self) -> bool:
        """Whether one of the projections that were packed is stored sparse."""
        return any(isinstance(layer, SparseLayer) for layer in self.projections)

    @property
    def projections(self) -> tuple[nn.Module, nn.Module, nn.Module]:
        """q_proj, k_proj and v_proj."""
        return self.q_proj, self.k_proj, self.v_proj

    @property
    def in_proj_weight(self) -> Tensor | None:
        """The three weights in one [3 * embed_dim, embed_dim], made anew at every reading; None where sizes differ."""
        weights = [layer.weight for layer in self.projections]
        if len({weight.shape[1] for weight in weights}) > 1:
            return None
        return guarded(torch.cat([weight + 0 for weight in weights]))

    @property
    def in_proj_bias(self) -> Tensor | None:
        """The three biases in one [3 * embed_dim], made anew at every reading, or None."""
        biases = [layer.bias for layer in self.projections]
        return None if biases[0] is None else torch.cat(biases)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As torch.nn.MultiheadAttention.forward: the output, and the attention weights where they are wanted."""
        if isinstance(query, Proxy) and hasattr(query.tracer, "path_of_module"):
            keywords = dict(
                key_padding_mask=key_padding_mask, need_weights=need_weights, attn_mask=attn_mask,
                average_attn_weights=average_attn_weights, is_causal=is_causal,
            )  # fmt: skip
            path = query.tracer.path_of_module(self)
            return query.tracer.create_proxy("call_module", path, (query, key, value), keywords)
        batched = query.dim() == 3
        _check(query, key, value, attn_mask, is_causal)
        if not batched:
            query, key, value = query.unsqueeze(0), key.unsqueeze(0), value.unsqueeze(0)
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)
        q, k, v = self.q_proj(query), self.k_proj(key), self.v_proj(value)
        k, v = self._extended(k, v)
        more = k.shape[1] - key.shape[1]
        q, k, v = (self._heads(part) for part in (q, k, v))
        mask = _mask(q, k, key_padding_mask, attn_mask, more, is_causal and not need_weights)
        causal = is_causal and mask is None and not need_weights
        rate = self.dropout if self.training else 0.0
        if need_weights:
            weights = torch.matmul(q * self.head_dim**-0.5, k.mT)
            weights = torch.softmax(weights if mask is None else weights + mask, -1)
            weights = F.dropout(weights, rate) if rate else weights
            y = torch.matmul(weights, v)
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            y, weights = F.scaled_dot_product_attention(q, k, v, mask, rate, causal), None
        y = self.out_proj(y.transpose(1, 2).reshape(q.shape[0], q.shape[2], self.embed_dim))
        if not batched:
            return y.squeeze(0), None if weights is None else weights.squeeze(0)
        return (y if self.batch_first else y.transpose(0, 1)), weights

    def _extended(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values with the learnt one and the one of zeros behind them, as the options say."""
        if self.bias_k is not None:
            k = torch.cat([k, self.bias_k.expand(len(k), -1, -1)], 1)
            v = torch.cat([v, self.bias_v.expand(len(v), -1, -1)], 1)
        if self.add_zero_attn:
            k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
        return k, v

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.num_heads, self.head_dim).transpose(1, 2)

    def packed(self) -> nn.MultiheadAttention:
        """The nn.MultiheadAttention with the same outputs; the projections are dense by now."""
        attention = copy.deepcopy(self._shell)
        weights = [layer.weight for layer in self.projections]
        trained, biases = weights[0].requires_grad, [layer.bias for layer in self.projections]
        with torch.no_grad():
            if attention._qkv_same_embed_dim:
                attention.in_proj_weight = nn.Parameter(torch.cat(weights), trained)
            else:
                for part, weight in zip(PARTS, weights, strict=True):
                    setattr(attention, f"{part}_proj_weight", weight)
            if biases[0] is not None:
                attention.in_proj_bias = nn.Parameter(torch.cat(biases), biases[0].requires_grad)
        attention.out_proj, attention.bias_k, attention.bias_v = self.out_proj, self.bias_k, self.bias_v
        attention.training = self.training
        return attention

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors):
        """A dense checkpoint has the projections packed."""
        for name, tensors in unpacked({name: state_dict.get(prefix + name) for name in PACKED}).items():
            state_dict.pop(prefix + name)
            state_dict.update({prefix + key: tensor for key, tensor in tensors.items()})
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unexpected, errors)

    def __setstate__(self, state: dict) -> None:
        nn.Module.__setstate__(self, state)


def unpacked(packed: Mapping[str, Tensor | None]) -> dict[str, dict[str, Tensor]]:
    """What a packed tensor of nn.MultiheadAttention is in the names of the projections, by its name."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in packed.items():
        if tensor is None:
            continue
        if name.startswith("in_proj"):
            kind = name.rpartition("_")[2]
            found[name] = {f"{p}_proj.{kind}": t for p, t in zip(PARTS, tensor.chunk(3), strict=True)}
        else:
            found[name] = {f"{name[0]}_proj.weight": tensor}
    return found


def unpackable(attention: nn.Module, owners: Mapping[int, Iterable[str]]) -> bool:
    """Whether an nn.MultiheadAttention computes as its class does, and trains a projection that is its own.

    owners: the names of each Parameter, by its id.
    """
    if type(attention) is not nn.MultiheadAttention or {"forward", "train"} & vars(attention).keys():
        return False
    weights = [attention._parameters.get(name) for name in PACKED if name != "in_proj_bias"]
    weights = [weight for weight in weights if weight is not None]
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return (
        bool(weights)
        and all(w.requires_grad and w.is_floating_point() and not w.is_meta for w in weights)
        and all(len(list(owners[id(weight)])) == 1 for weight in weights)
        and not any(getattr(attention, name) for name in hooks)
    )


def _split(attention: nn.MultiheadAttention) -> list[tuple[Tensor, Tensor | None]]:
    """Weight and bias of each projection."""
    with torch.no_grad():
        packed, bias = attention._parameters.get("in_proj_weight"), attention.in_proj_bias
        apart = [attention._parameters.get(f"{part}_proj_weight") for part in PARTS]
        weights = apart if packed is None else packed.chunk(3)
        biases = [None] * 3 if bias is None else bias.chunk(3)
        return [(w.clone(), None if b is None else b.clone()) for w, b in zip(weights, biases, strict=True)]


def _check(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, is_causal: bool) -> None:
    if query.is_nested or query.dim() not in (2, 3) or not query.dim() == key.dim() == value.dim():
        raise ValueError(
            "expected query, key and value [batch, length, features] or [length, features], got "
            f"{query.dim()}, {key.dim()} and {value.dim()} dimensions{' (nested)' if query.is_nested else ''}, try "
            "padded batches with key_padding_mask"
        )
    if is_causal and attn_mask is None:
        raise RuntimeError("expected attn_mask with is_causal, a hint alone, got none, try passing the mask")


def _mask(q: Tensor, k: Tensor, padding: Tensor | None, mask: Tensor | None, more: int, causal: bool) -> Tensor | None:
    """What is added to the scores [batch, heads, queries, keys], or None. more: keys that nothing masks.

    causal: the mask is known to be the causal one.
    """
    if causal and padding is None and not more:
        return None
    parts = []
    if mask is not None:
        mask = _added(mask, q)
        mask = mask.view(len(q), -1, *mask.shape[1:]) if mask.dim() == 3 else mask
        parts.append(F.pad(mask, (0, more)))
    if padding is not None:
        parts.append(F.pad(_added(padding, q), (0, more))[:, None, None])
    return sum(parts[1:], parts[0]) if parts else None


def _added(mask: Tensor, like: Tensor) -> Tensor:
    """A mask as torch takes it, true where nothing is seen, as what is added to the scores."""
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill_(mask, float("-inf"))
