"""A small decoder-only language model: GPT-2 (Radford et al. 2019), and the size of nanoGPT's character model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spfde.models.common import check_counts
from spfde.models.transformer import Block


class GPT(nn.Module):
    """Tokens [N, T] (int64, T <= context) through `depth` causal blocks to the next token's logits [N, T, vocab_size].

    Weights start as GPT-2's: N(0, 0.02²), biases 0, the linears that end a residual branch smaller by sqrt(2 depth).
    No dropout. Parameters: 124,439,808 (GPT-2: dim 768, depth 12, 12 heads, vocabulary 50257, context 1024),
    10,745,088 (mini: dim 384, depth 6, 6 heads, vocabulary 65, context 256, no biases; without positions 10,646,784).

    `head` shares its weight with `token` unless `tied` is False. A tied weight stays dense in spfde.sparsify. A tied
    `token` is not frozen with the first block, it stays active with the head.

    Args:
        dim: width of a token.
        depth: number of blocks.
        heads: attention heads, a divisor of dim.
        vocab_size: number of tokens.
        context: longest sequence.
        bias: whether linears and norms have biases (the head has none).
        tied: whether head and token embedding share one weight.

    Raises:
        ValueError: a size below 1, dim not a multiple of heads; in forward, a sequence longer than context.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int,
        vocab_size: int = 50257,
        context: int = 1024,
        bias: bool = True,
        tied: bool = True,
    ) -> None:
        super().__init__()
        check_counts(dim=dim, depth=depth, heads=heads, vocab_size=vocab_size, context=context)
        self.context = context
        self.token = nn.Embedding(vocab_size, dim)
        self.position = nn.Parameter(torch.zeros(context, dim))
        self.blocks = nn.Sequential(*(Block(dim, heads, causal=True, bias=bias, eps=1e-5) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim, bias=bias)
        self.head = nn.Linear(dim, vocab_size, bias=False)
        if tied:
            self.head.weight = self.token.weight
        self._start(depth)

    def _start(self, depth: int) -> None:
        nn.init.normal_(self.position, std=0.02)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                ends_branch = name.endswith(("attention.proj", "mlp.fc2"))
                nn.init.normal_(module.weight, std=0.02 / (2 * depth) ** 0.5 if ends_branch else 0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        check_length(tokens, self.context)
        x = self.token(tokens) + self.position[: tokens.shape[1]]
        return self.head(self.norm(self.blocks(x)))


@torch.fx.wrap  # not to be traced into: it asks for sizes
def check_length(tokens: Tensor, context: int) -> None:
    """Refuse what is not [N, T] with T <= context.

    Raises:
        ValueError: it is not.
    """
    if tokens.ndim != 2 or tokens.shape[1] > context:
        raise ValueError(
            f"expected tokens [n, t] with t <= {context}, got {list(tokens.shape)}, try context={tokens.shape[-1]}"
        )
