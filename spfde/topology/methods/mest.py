"""MEST's elastic mutation (EM, EM&S): drop the least important weights, grow as many at random."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from spfde.topology.base import Topology
from spfde.topology.layers import LayerState
from spfde.topology.options import option
from spfde.topology.schedule import stairs


class MEST(Topology):
    """Drops the stored weights with the lowest |w| + lam |dL/dw| and grows as many at random, layer by layer.

    EM: the count per layer never changes; growth draws from everything that was not kept, so a dropped weight may come
    back, at value 0. EM&S (soft=True): an update prunes to the target count, then grows to (1 + moved share) times it:
    a layer trains above its target until the share is 0, and ends exactly at it. Blocks move whole, by the sum of their
    scores; weights stay in their group where the pattern counts in groups (n:m, which refuses soft as it fixes its
    count), in their output where it counts per output (fan-in). The moved share halves at 9/16 of the training and ends
    at 12/16. Source: MEST (2110.14032), whose authors' own default is lam = 0.
    """

    reset_regrown = True
    sharded = True
    lam: float = option(0.0, "[0, inf)", "weight of the gradient's magnitude, as `values.grad` has it after the step")
    soft: bool = option(False, None, "EM&S, the soft memory bound: layers train above their target")

    def check_options(self) -> None:
        if self.soft:
            self.refused = ("n:m",)

    def setup(self) -> None:
        if self.soft:
            self.reserve({name: self._bound(name, 0) for name in self.layers})

    def reads_gradient(self) -> bool:
        return self.lam > 0

    def drop_share(self, step: int) -> float:
        return stairs(step, self.drop_fraction, self.total_steps)

    def score(self, layer: LayerState) -> Tensor:
        values = layer.module.values
        score = values.detach().abs()
        if self.lam:
            if values.grad is None:
                raise ValueError(
                    "expected gradients at an update (lam > 0), got none, try calling topology.step() before "
                    "optimizer.zero_grad()"
                )
            score = score + self.lam * values.grad.abs()
        return score.sum((1, 2))[: layer.nnz]

    def keep_slots(self, layer: LayerState, score: Tensor) -> Tensor:
        if not self.soft:
            return super().keep_slots(layer, score)
        return layer.highest(score, min(layer.nnz, self.target[layer.name]))

    def counts(self, layers: Mapping[str, LayerState], kept: Mapping[str, Tensor]) -> dict[str, int]:
        if not self.soft:
            return super().counts(layers, kept)
        return {name: min(self._bound(name, self.steps_done), layer.grid.size) for name, layer in layers.items()}

    def _bound(self, name: str, step: int) -> int:
        """The count that an update after `step` grows to."""
        return self.target[name] + int(self.drop_share(step) * self.target[name])
