"""A linear layer with a sparse weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from spfde.kernels.epilogue import Epilogue
from spfde.kernels.spmm import spmm, spmm_with_epilogue
from spfde.nn.indexed import Stored
from spfde.nn.layer import SparseLayer
from spfde.nn.lazy import LazyWeight
from spfde.nn.loading import check_dense
from spfde.nn.shell import filled, shell_of
from spfde.sparse.drawn import random_positions
from spfde.sparse.pattern import Pattern

PLAIN = (nn.Linear, NonDynamicallyQuantizableLinear)  # the latter is nn.MultiheadAttention's out_proj


class SparseLinear(SparseLayer):
    """y = x W^T + b for a sparse W.

    Input [..., in_features], output [..., out_features].
    """

    _shell: nn.Module | None = None  # of a dense layer that is no plain nn.Linear

    def __init__(
        self,
        in_features: int,
        out_features: int,
        sparsity: float = 0.9,
        *,
        bias: bool = True,
        pattern: str = "unstructured",
        seed: int | torch.Generator = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """A layer that is born sparse: no dense weight and no mask is ever made.

        round((1 - sparsity) * blocks) blocks, at least 1 unless sparsity is 1, at places drawn from `seed` (or a
        generator of the CPU), every set equally likely. Values are uniform in +-1 / sqrt(f) for f stored weights an
        output on average, so that outputs have the variance of an nn.Linear's; the bias is that of an nn.Linear.

        Args:
            pattern: "unstructured", "block:RxC", "fan-in" or "channel".

        Raises:
            ValueError: a size is not positive, sparsity is outside [0, 1], or the pattern is unknown or n:m.
        """
        if min(in_features, out_features) < 1 or not 0 <= sparsity <= 1:
            raise ValueError(
                "expected in_features and out_features of 1 or more and sparsity in [0, 1], got "
                f"{in_features}, {out_features} and {sparsity}, try SparseLinear(512, 512, 0.9)"
            )
        generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
        rule, shape, dtype = Pattern.parse(pattern), (out_features, in_features), dtype or torch.get_default_dtype()
        grid = rule.grid(shape)
        count = max(round((1 - sparsity) * grid.size), 0 if sparsity == 1 else 1)
        positions = random_positions(rule, grid, count, generator)
        blocks = _uniform((count, *grid.block), max(1, count * prod(grid.block)) / out_features, generator, dtype)
        if grid.ragged:
            blocks = blocks.masked_fill_(grid.places(positions) == grid.weights, 0)
        offset = _uniform((out_features,), in_features, generator, dtype).to(device) if bias else None
        stored = Stored(shape, positions.to(device), blocks.to(device))
        super().__init__(stored, None if offset is None else nn.Parameter(offset), pattern)

    @classmethod
    def from_dense(cls, linear: nn.Linear, mask: Tensor | None = None, pattern: str = "unstructured") -> SparseLinear:
        """The layer with the weights of `linear` that `mask` keeps (its nonzeros if None) and the same bias Parameter.

        The weights are copied: what else uses the dense one (tied weights) is not followed. Hooks are not taken over.

        Raises:
            ValueError: its weight is no plain Parameter with data, the mask's shape or dtype differs from the weight's,
                the pattern is unknown, or the mask (or the nonzeros) violate it: the first such place is named.
            TypeError: `linear` is not a torch.nn.Linear, or computes something else than one.
        """
        check_dense(linear, nn.Linear)
        return cls._stored(linear, Stored.of(linear.weight, mask, pattern), pattern)

    @classmethod
    def at(cls, linear: nn.Module, positions: Tensor, pattern: str) -> SparseLinear:
        """The layer that holds the blocks of `linear` at `positions`: ascending, as the pattern allows, unchecked."""
        weight = linear.weight.mT if cls.turned else linear.weight
        return cls._stored(linear, Stored.of(weight, None, pattern, positions=positions), pattern)

    @classmethod
    def _stored(cls, linear: nn.Module, stored: Stored, pattern: str) -> SparseLinear:
        layer = cls.__new__(cls)
        SparseLayer.__init__(layer, replace(stored, trained=linear.weight.requires_grad), linear.bias, pattern)
        if type(linear) not in PLAIN:
            layer.__dict__["_shell"] = shell_of(linear)  # no submodule
        return layer.train(linear.training)

    @property
    def in_features(self) -> int:
        """Size of an input sample."""
        return self.shape[1]

    @property
    def out_features(self) -> int:
        """Size of an output sample."""
        return self.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., in_features]. Returns [..., out_features]."""
        if type(x) is not Tensor and (node := self._traced(x)) is not None:
            return node
        return self.multiply(x, self.bias)

    def multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x W^T plus any bias: `forward`, and what a parent computes with `weight` by itself."""
        if "permutation" in self._modules and (outer := self._outer()) is not None:
            return outer(x, bias, self._product)
        return self._product(x, bias)

    def _product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        values = self.values if "transform" not in self._modules else self._effective()
        y = spmm(x, values, self.plan, bias, self._dispatch_key)
        if self._grad_probe is not None:
            self._attach_probe(x, y)
        return y

    def _read_inside(self) -> Tensor:
        return LazyWeight.of(self, self.turned)

    def call_with_epilogue(self, x: Tensor, epilogue: Callable[[], Epilogue]) -> tuple[Tensor, bool]:
        """The output, and whether the epilogue is in it: see `spmm_with_epilogue`. For no transform and no probe."""
        y = spmm_with_epilogue(x, self.values, self.plan, epilogue, self._dispatch_key)
        return (spmm(x, self.values, self.plan, self.bias, self._dispatch_key), False) if y is None else (y, True)

    def to_dense(self) -> nn.Module:
        """A torch.nn.Linear, or the kind of layer it was made of, with the same outputs and the same bias Parameter.

        Zeros are exact.
        """
        shell = self._shell
        if shell is None:
            shell = shell_of(nn.Linear(self.in_features, self.out_features, bias=False, device="meta"))
        return filled(shell, self.dense_weight(), self.values.requires_grad, self.bias, self.training)

    def extra_repr(self) -> str:
        """What repr() shows."""
        return f"in_features={self.in_features}, out_features={self.out_features}, {self._shared_repr()}"


class SparseConv1D(SparseLinear):
    """y = x W + b for a sparse W [inputs, outputs]: transformers' Conv1D, the linear layer of GPT-2.

    Patterns count outputs and inputs as those of SparseLinear do; `mask()` and `dense_weight()` are [inputs, outputs].
    """

    turned = True


def _uniform(shape: Sequence[int], fan_in: float, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype).uniform_(-(fan_in**-0.5), fan_in**-0.5, generator=generator)
