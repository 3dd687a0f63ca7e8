"""`Prefix`: the frozen front of a model as one inference call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from spfde.freezing.block import FreezeBlock
from spfde.freezing.checks import check_blocks
from spfde.freezing.prefix.folded import CONVOLUTIONS, Folded
from spfde.freezing.prefix.front import Front, rewritten
from spfde.freezing.prefix.rewrite import Traces
from spfde.fusing.epilogue import hooked


class Prefix:
    """Runs the frozen front of a model without a graph, its convolutions folded with the norms behind them.

    The front is what is frozen without a gap from the first block on. Inside of `with prefix():` a frozen convolution,
    its norm, an addition and an activation are one call, on weights that the norm is multiplied into: copies, derived
    anew when something writes the originals. Parameters, buffers, `state_dict`, hooks and classes stay as they are, and
    outside of the block the model is untouched. A freeze or an unfreeze is seen at the next `with`.

    Outputs differ from those of the model itself by rounding alone. What cannot be folded runs as ever:
    `print(prefix)` says what and why.

    Args:
        model: the network in training.
        blocks: its blocks, from `spfde.freezing.blocks`.

    Raises:
        TypeError: `blocks` are not FreezeBlocks.
        ValueError: they are not those of `model` as it is now.
    """

    def __init__(self, model: nn.Module, blocks: Sequence[FreezeBlock]) -> None:
        check_blocks(blocks, model)
        self.model, self.blocks = model, tuple(blocks)
        self._traces = Traces()
        self._folded: dict[nn.Module, Folded] = {}
        self._front, self._seen = Front(), None
        self._active = False

    @property
    def frozen(self) -> tuple[FreezeBlock, ...]:
        """The blocks that are frozen now without a gap from the first one on."""
        count = next((i for i, block in enumerate(self.blocks) if not block.is_frozen), len(self.blocks))
        return self.blocks[:count]

    @property
    def boundary(self) -> str | None:
        """Name of the last block of the frozen front, None where nothing is frozen."""
        frozen = self.frozen
        return frozen[-1].name if frozen else None

    @contextmanager
    def __call__(self, indices: Tensor | None = None) -> Iterator[Prefix]:
        """Inside of it the model's front is one inference call. indices: int64 [n], the samples of the batch."""
        if self._active:
            raise RuntimeError("expected one `with prefix()` at a time, got one inside of another, try the outer alone")
        self.follow()
        forwards = {} if _has_any_global_hook() else self._front.forwards
        for module, forward in forwards.items():
            vars(module)["forward"] = forward
        self._active = True
        try:
            yield self
        finally:
            self._active = False
            for module, forward in forwards.items():
                if forward.before is None:
                    vars(module).pop("forward", None)
                else:
                    vars(module)["forward"] = forward.before

    def follow(self) -> None:
        """Takes note of what has frozen, thawed or been written since the last time."""
        frozen, modules = self.frozen, tuple(self.model.modules())
        seen = (len(frozen), tuple((m, m.training, hooked(m), vars(m).get("forward")) for m in modules))
        if seen != self._seen:
            members = {m for block in frozen for m in block.members}
            self._folded = {layer: kept for layer, kept in self._folded.items() if layer in members}
            self._front = rewritten(self.model, members, (), self._traces, self._folded)
            used = {step.folded.layer for chain in self._front.chains for step in chain.steps}
            self._folded = {layer: kept for layer, kept in self._folded.items() if layer in used}
            self._seen = seen
        for kept in self._folded.values():
            kept.refresh()

    def __str__(self) -> str:
        """What is folded, and what is not and why."""
        self.follow()
        frozen = self.frozen
        if not frozen:
            return "nothing is frozen from the first block on: the model runs as ever"
        names = {module: name or "the model" for name, module in self.model.named_modules()}
        members = {m for block in frozen for m in block.members}
        convolutions = [m for m in members if isinstance(m, CONVOLUTIONS)]
        lines = [f"{len(frozen)} of {len(self.blocks)} blocks, up to {frozen[-1].name}: {len(self._folded)} of "
                 f"{len(convolutions)} convolutions folded, in {len(self._front.chains)} calls"]  # fmt: skip
        for chain in self._front.chains:
            lines += [f"  {names[step.folded.layer]}  {step.text}" for step in chain.steps]
        lines += [f"  {names[module]} as ever: {why}" for module, why in self._front.reasons.items() if why]
        return "\n".join(lines)
