"""The pre-norm transformer block that the vision transformers and the GPT are made of."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """proj(softmax(q k^T / sqrt(dim / heads)) v) with q, k, v linear in x, head by head: [N, tokens, dim] to the same.

    Four plain linears and no packed one, so that each can be sparse by itself.
    """

    def __init__(self, dim: int, heads: int, causal: bool, bias: bool) -> None:
        super().__init__()
        self.q = nn.Linear(dim, dim, bias)
        self.k = nn.Linear(dim, dim, bias)
        self.v = nn.Linear(dim, dim, bias)
        self.proj = nn.Linear(dim, dim, bias)
        self.heads = heads
        self.causal = causal

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (linear(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for linear in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.proj(y.transpose(1, 2).flatten(2))

    def extra_repr(self) -> str:
        return f"heads={self.heads}, causal={self.causal}"


class MLP(nn.Module):
    """fc2(gelu(fc1(x))), four times as wide inside."""

    def __init__(self, dim: int, bias: bool) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim, bias)
        self.gelu = nn.GELU()
        self.fc2 = nn.Linear(4 * dim, dim, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.gelu(self.fc1(x)))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): [N, tokens, dim] to the same.

    Raises:
        ValueError: dim is not a multiple of heads.
    """

    def __init__(self, dim: int, heads: int, causal: bool = False, bias: bool = True, eps: float = 1e-6) -> None:
        super().__init__()
        if dim % heads:
            near = max(1, dim // heads) * heads
            raise ValueError(f"expected dim to be a multiple of heads, got {dim} and {heads}, try dim={near}")
        self.norm1 = nn.LayerNorm(dim, eps, bias=bias)
        self.attention = Attention(dim, heads, causal, bias)
        self.norm2 = nn.LayerNorm(dim, eps, bias=bias)
        self.mlp = MLP(dim, bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))
