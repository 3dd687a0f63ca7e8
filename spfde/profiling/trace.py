"""Follows one training step through the modules of a model, forward and backward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode

from spfde._modules import tensors
from spfde.profiling.kinds import DATA, ENGINE, LOSS, OPTIMIZER, kind_of_function, kind_of_module, plain_name
from spfde.profiling.timeline import BACKWARD, FORWARD, PYTHON, Bucket, Timeline

# What counts where nothing that is followed runs.
KIND_OF_PHASE = {"data": DATA, FORWARD: PYTHON, "loss": LOSS, BACKWARD: ENGINE, "optimizer": OPTIMIZER}


class _Functions(TorchFunctionMode):
    """Gives each torch function that a container or the loss calls its bucket."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.trace = trace

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, timeline = plain_name(func), self.trace.timeline
        if name in ("get", "set"):  # an attribute such as x.shape
            return func(*args, **(kwargs or {}))
        timeline.stop()
        outer = timeline.innermost
        bucket = outer._replace(op=name, kind=LOSS if outer.kind == LOSS else kind_of_function(name))
        timeline.push(bucket)
        timeline.start()
        result = func(*args, **(kwargs or {}))
        if next(tensors(result), None) is None:  # a question such as x.size(0), not an op
            timeline.pop()
            timeline.push(outer)
        timeline.stop()
        timeline.pop()
        self.trace.own(result, bucket)
        timeline.start()
        return result


class Trace:
    """The buckets of a model's modules and of the autograd nodes that they make.

    A module without children is a bucket of its own. In one with children, what no child and no torch function did is
    Python. A node belongs to whatever made it; what lies between two nodes is the autograd engine, which also sums the
    gradients of what was used twice.
    """

    def __init__(self, timeline: Timeline) -> None:
        self.timeline = timeline
        self._functions = _Functions(self)
        self._listening = False
        self._nodes: set[Any] = set()

    @contextmanager
    def of(self, model: nn.Module) -> Iterator[None]:
        """Follows the modules of `model` inside the block."""
        handles = []
        for name, module in model.named_modules():
            enter, leave = self._hooks_of(name, module)
            handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
        self.timeline.start()
        try:
            yield
        finally:
            self._listen(False)
            for handle in handles:
                handle.remove()
            self._nodes.clear()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Counts the block as a phase of the step."""
        with self.timeline.within(Bucket(name, "", "", KIND_OF_PHASE[name])):
            self._listen(name == "loss")
            yield
            self._listen(False)

    def own(self, outputs: Any, bucket: Bucket) -> None:
        """Gives the nodes that lead to `outputs`, and belong to none yet, to the backward of `bucket`."""
        bucket = bucket._replace(phase=BACKWARD)
        found = [t.grad_fn for t in tensors(outputs)]
        while found:
            node = found.pop()
            if node is not None and node not in self._nodes:
                self._nodes.add(node)
                self._follow(node, bucket)
                found += [parent for parent, _ in node.next_functions]

    def _follow(self, node: Any, bucket: Bucket) -> None:
        timeline = self.timeline

        def enter(*_: Any) -> None:
            timeline.stop()
            timeline.push(bucket)
            timeline.start()

        def leave(*_: Any) -> None:
            timeline.stop()
            timeline.pop()
            timeline.start()

        node.register_prehook(enter)
        node.register_hook(leave)

    def _hooks_of(self, name: str, module: nn.Module) -> tuple[Any, Any]:
        timeline, op = self.timeline, type(module).__name__
        leaf = next(module.children(), None) is None
        outer: list[bool] = []

        def enter(*_: Any) -> None:
            timeline.stop()
            timeline.push(Bucket(timeline.innermost.phase, name, op, kind_of_module(module) if leaf else PYTHON))
            outer.append(self._listening)
            self._listen(not leaf)
            timeline.start()

        def leave(_: nn.Module, args: Any, output: Any) -> None:
            timeline.stop()
            self.own(output, timeline.innermost)
            timeline.pop()
            self._listen(outer.pop())
            timeline.start()

        return enter, leave

    def _listen(self, wanted: bool) -> None:
        """Torch functions are followed in containers only: inside a layer they are the layer."""
        if wanted != self._listening:
            self._listening = wanted
            if wanted:
                self._functions.__enter__()
            else:
                self._functions.__exit__(None, None, None)
