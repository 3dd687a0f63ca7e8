"""A linear layer with a sparse weight."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from spfde.kernels.epilogue import Epilogue
from spfde.kernels.spmm import spmm, spmm_with_epilogue
from spfde.nn.layer import SparseLayer
from spfde.nn.loading import check_dense


class SparseLinear(SparseLayer):
    """y = x W^T + b for a sparse W.

    Input [..., in_features], output [..., out_features].
    """

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
        layer = cls(linear.weight, linear.bias, mask, pattern)
        return layer.train(linear.training)

    @classmethod
    def at(cls, linear: nn.Linear, positions: Tensor, pattern: str) -> SparseLinear:
        """The layer that holds the blocks of `linear` at `positions`: ascending, as the pattern allows, unchecked."""
        return cls(linear.weight, linear.bias, None, pattern, positions=positions).train(linear.training)

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
        values = self.values if "transform" not in self._modules else self._effective()
        y = spmm(x, values, self.plan, self.bias, self._dispatch_key)
        if self._grad_probe is not None:
            self._attach_probe(x, y)
        return y

    def call_with_epilogue(self, x: Tensor, epilogue: Callable[[], Epilogue]) -> tuple[Tensor, bool]:
        """The output, and whether the epilogue is in it: see `spmm_with_epilogue`. For no transform and no probe."""
        y = spmm_with_epilogue(x, self.values, self.plan, epilogue, self._dispatch_key)
        return (spmm(x, self.values, self.plan, self.bias, self._dispatch_key), False) if y is None else (y, True)

    def to_dense(self) -> nn.Linear:
        """A torch.nn.Linear with the same outputs, zeros exact, and the same bias Parameter."""
        weight = self.dense_weight()
        linear = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        linear.weight = nn.Parameter(weight, self.values.requires_grad)
        linear.bias = self.bias
        return linear.train(self.training)

    def extra_repr(self) -> str:
        """What repr() shows."""
        return f"in_features={self.in_features}, out_features={self.out_features}, {self._shared_repr()}"
