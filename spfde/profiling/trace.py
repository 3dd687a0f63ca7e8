"""Follows one training step through the modules of a model, forward and backward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from spfde.profiling.kinds import ENGINE, kind_of_function, kind_of_module, plain_name
from spfde.profiling.timeline import PYTHON, Bucket, Timeline

FORWARD, BACKWARD = "forward", "backward"


class _Functions(TorchFunctionMode):
    """Gives each torch function that a container calls its bucket."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.trace = trace

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = plain_name(func)
        if name in ("get", "set"):  # an attribute such as x.shape
            return func(*args, **(kwargs or {}))
        timeline = self.trace.timeline
        timeline.stop()
        bucket = timeline.innermost._replace(op=name, kind=kind_of_function(name))
        timeline.push(bucket)
        timeline.start()
        try:
            result = func(*args, **(kwargs or {}))
        finally:
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
        try:
            yield
        finally:
            self._listen(False)
            for handle in handles:
                handle.remove()

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Counts the block as the forward pass."""
        with self.timeline.within(Bucket(FORWARD, "", "", PYTHON)):
            yield

    @contextmanager
    def backward(self) -> Iterator[None]:
        """Counts the block as the backward pass."""
        with self.timeline.within(Bucket(BACKWARD, "", "", ENGINE)):
            yield
        self._nodes.clear()

    def own(self, outputs: Any, bucket: Bucket) -> None:
        """Gives the nodes that lead to `outputs`, and belong to none yet, to the backward of `bucket`."""
        bucket = bucket._replace(phase=BACKWARD)
        found = [t.grad_fn for t in tensors_in(outputs)]
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

        def enter(*_: Any) -> None:
            timeline.stop()
            kind = kind_of_module(module) if leaf else PYTHON
            timeline.push(Bucket(FORWARD, name, op, kind))
            self._listen(not leaf)
            timeline.start()

        def leave(_: nn.Module, args: Any, output: Any) -> None:
            timeline.stop()
            bucket = timeline.innermost
            if leaf:
                bucket = bucket._replace(kind=kind_of_module(module))  # a sparse layer knows its kernel by now
            self.own(output, bucket)
            timeline.pop()
            self._listen(timeline.innermost.layer != "" or timeline.innermost.op != "")
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


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors of a tensor, or of tuples, lists and dicts of them."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, tuple | list):
        return []
    return [tensor for item in value for tensor in tensors_in(item)]
