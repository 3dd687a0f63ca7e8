"""What a traced forward sees in place of its module: copies that tell of calls and reads, and that nobody else sees."""

from __future__ import annotations

import enum
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

INTERNAL = frozenset(vars(nn.Module())) | {"_compiled_call_impl"}
_FIXED = (
    bool, int, float, complex, str, bytes, type(None), type(...), range, slice, type, enum.Enum, torch.dtype,
    torch.device, torch.memory_format, torch.layout, torch.Size, types.FunctionType, types.BuiltinFunctionType,
    types.ModuleType, torch._ops.OpOverload, torch._ops.OpOverloadPacket,
)  # fmt: skip


class Untraceable(Exception):
    """A forward that must not be replaced by its trace; the message says why."""


class Tracer(Protocol):
    """What the stand-ins tell of, and what makes the proxies that they hand out."""

    def tensor(self, path: str) -> Any: ...
    def called(self, module: nn.Module, path: str, *args: Any, **kwargs: Any) -> Any: ...
    def read(self, path: str, name: str, value: Any) -> Any: ...
    def found(self, path: str, where: str, name: str, there: bool) -> None: ...
    def missed(self, path: str, name: str) -> None: ...
    def counted(self, path: str, count: int) -> None: ...


@dataclass(frozen=True)
class StandIn:
    """The copy of one module, and where in the tree it is; copied: names of its dictionaries of hooks and the like."""

    path: str
    original: nn.Module
    copy: nn.Module

    @property
    def copied(self) -> list[str]:
        return [name for name, value in vars(self.original).items() if _holds_hooks(name, value)]


def plain(value: Any) -> tuple[Any, Any]:
    """A copy of the value for the forward to read, and one to compare with afterwards; fixed values are themselves.

    Raises:
        Untraceable: it is or holds what may change without a trace.
    """
    if isinstance(value, _FIXED):
        return value, value
    if type(value) is partial:
        plain((value.func, value.args, value.keywords))
        return value, value
    if type(value) in (list, tuple, set, frozenset):
        pairs = [plain(item) for item in value]
        return tuple(type(value)(pair[i] for pair in pairs) for i in (0, 1))
    if type(value) in (dict, OrderedDict):
        items = {key: plain(item) for key, item in value.items()}
        return tuple(type(value)((key, pair[i]) for key, pair in items.items()) for i in (0, 1))
    raise Untraceable(f"is or holds a {type(value).__name__}")


def same(value: Any, other: Any) -> bool:
    """Whether two of `plain` are alike, by identity of what they hold: stand-ins are never asked."""
    if value is other:
        return True
    if type(value) is not type(other) or not isinstance(value, list | tuple | set | frozenset | dict):
        return False
    if len(value) != len(other):
        return False
    if isinstance(value, dict):
        pairs = zip(value.items(), other.items(), strict=True)
        return all(k is j and same(v, w) for (k, v), (j, w) in pairs)
    if isinstance(value, set | frozenset):
        return {id(item) for item in value} == {id(item) for item in other}
    return all(map(same, value, other))


def restore(value: Any, before: Any) -> None:
    """Gives a list, dictionary or set back what it held."""
    if isinstance(value, list | dict | set) and not same(value, before):
        value.clear()
        value.extend(before) if isinstance(value, list) else value.update(before)


def stand_ins(module: nn.Module, tracer: Tracer, training: bool) -> list[StandIn]:
    """Copies of the module, which is the first, and of all inside it, of the same classes; in the mode `training`.

    They share nothing that a forward can change: what is called is a node, what is read goes through the tracer.
    """
    found = [StandIn(path, m, object.__new__(type(m))) for path, m in module.named_modules()]
    copies = {id(one.original): one.copy for one in found}
    for one in found:
        original, root = one.original, one.original is module
        state = {key: value for key, value in vars(original).items() if key in INTERNAL}
        state.update((key, state[key].copy()) for key in one.copied)
        mode = training if original.training == module.training else state.pop("training")
        read = {name: value for name, value in vars(original).items() if name not in INTERNAL}
        children = {name: None if m is None else copies[id(m)] for name, m in original._modules.items()}
        state["_parameters"] = _Names(tracer, one.path, original, children, read if root else read | {"training": mode})
        state["_buffers"] = _Tensors(tracer, one.path, original._buffers)
        state["_modules"] = _Children(tracer, one.path, children)
        state["_compiled_call_impl"] = None if root else partial(tracer.called, original, one.path)
        state.pop("training", None)
        vars(one.copy).update(state, **({"training": training} if root else {}))
    return found


def _holds_hooks(name: str, value: Any) -> bool:
    return name in INTERNAL - {"_parameters", "_buffers", "_modules"} and isinstance(value, dict | set)


def on_the_class(module: nn.Module) -> Iterator[str]:
    """Names of attributes that Python finds without asking nn.Module: on the class, and no methods there."""
    for cls in type(module).__mro__:
        if cls.__module__.split(".")[0] != "torch":
            yield from (name for name, value in vars(cls).items() if not hasattr(value, "__get__") and name[:2] != "__")
    yield from (name for name in vars(module) if name not in INTERNAL and hasattr(type(module), name))


class _Tensors(dict):
    """Parameters or buffers of a stand-in, made proxies when they are looked at."""

    def __init__(self, tracer: Tracer, path: str, tensors: dict[str, Tensor | None]) -> None:
        super().__init__(tensors)
        self._tracer, self._path = tracer, path

    def __getitem__(self, name: str) -> Any:
        there = super().__getitem__(name) is not None
        return self._tracer.tensor(join(self._path, name)) if there else None

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self else default  # noqa: SIM401

    def items(self):
        return [(name, self[name]) for name in self]

    def values(self):
        return [self[name] for name in self]


class _Names(_Tensors):
    """The parameters, and all else that nn.Module.__getattr__ is asked for, since it looks here first."""

    def __init__(
        self,
        tracer: Tracer,
        path: str,
        original: nn.Module,
        children: dict[str, nn.Module | None],
        read: dict[str, Any],
    ) -> None:
        super().__init__(tracer, path, original._parameters)
        self._original, self._children, self._plain = original, children, read

    def __contains__(self, name: object) -> bool:
        known = (self._plain, self._original._buffers, self._children)
        if super().__contains__(name) or any(name in names for names in known):
            return True
        self._tracer.missed(self._path, str(name))
        return False

    def __getitem__(self, name: str) -> Any:
        tracer, path = self._tracer, self._path
        if name in self._plain:
            value = self._plain[name]
            if isinstance(value, Tensor):
                tracer.found(path, "", name, True)
                return tracer.tensor(join(path, name))
            return tracer.read(path, name, value)
        kinds = {"_buffers": self._original._buffers, "_modules": self._children}
        where = next((kind for kind, names in kinds.items() if name in names), "_parameters")
        there = getattr(self._original, where)[name] is not None
        tracer.found(path, where, name, there)
        if where == "_modules":
            return self._children[name]
        return tracer.tensor(join(path, name)) if there else None


class _Children(dict):
    """The children of a stand-in; how many they are is noted when it matters."""

    def __init__(self, tracer: Tracer, path: str, children: dict[str, nn.Module | None]) -> None:
        super().__init__(children)
        self._note: Callable[[], None] = partial(tracer.counted, path, len(children))

    def __iter__(self):
        self._note()
        return super().__iter__()

    def __len__(self) -> int:
        self._note()
        return super().__len__()

    def items(self):
        self._note()
        return super().items()

    def values(self):
        self._note()
        return super().values()


def join(path: str, name: str) -> str:
    """The path of what is `name` inside the module at `path`."""
    return f"{path}.{name}" if path else name
