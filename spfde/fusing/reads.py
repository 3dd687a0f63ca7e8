"""What a traced forward has read beside its arguments, and the question whether all of it still is as it was."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn


class Reads:
    """Collects expressions that hold as long as a trace does. They name paths, so that no module is held."""

    def __init__(self) -> None:
        self._own: dict[str, None] = {}
        self._values: list[Any] = []
        self._outside: list[tuple[Callable[[], Any], Any]] = []

    def attribute(self, path: str, name: str, value: Any) -> None:
        """The module at `path` has an attribute `name` of this value."""
        where = f"{_module(path)}.{name}"
        if value is None or isinstance(value, bool):
            self._own[f"{where} is {value}"] = None
        else:
            self._values.append(value)
            self._own.setdefault(f"_equal({where}, _values[{len(self._values) - 1}])")

    def typed(self, path: str, name: str, kind: type) -> None:
        """The module at `path` has an attribute `name` of just this type, int or float."""
        self._own[f"type({_module(path)}.{name}) is {kind.__name__}"] = None

    def found(self, path: str, where: str, name: str, there: bool) -> None:
        """The module at `path` has something `name` among its `where`, or None; "": a tensor as an attribute."""
        if not where:
            self._own[f"isinstance({_module(path)}.{name}, _Tensor)"] = None
        else:
            self._own[f"{_module(path)}.{where}[{name!r}] is {'not ' if there else ''}None"] = None

    def missed(self, path: str, name: str) -> None:
        """The module at `path` has no attribute `name`."""
        self._own[f"not hasattr({_module(path)}, {name!r})"] = None

    def counted(self, path: str, count: int) -> None:
        """The module at `path` has `count` children."""
        self._own[f"len({_module(path)}._modules) == {count}"] = None

    def outside(self, again: Callable[[], Any], value: Any) -> None:
        """`again()` is this value."""
        self._outside.append((again, value))

    def compiled(self) -> Callable[[nn.Module], bool] | None:
        """Whether a module, and the world around it, is as it was; None where nothing has been read."""
        if not self._own and not self._outside:
            return None
        names = {"_values": tuple(self._values), "_equal": _equal, "_Tensor": Tensor}
        own = eval(f"lambda self: {' and '.join(self._own) or 'True'}", names)
        outside = tuple(self._outside)
        if not outside:
            return own
        return lambda module: own(module) and all(_equal(again(), value) for again, value in outside)


def built_of(
    parts: Mapping[str, type[nn.Module]], unchanged: Callable[[nn.Module], bool] | None
) -> Callable[[nn.Module], bool] | None:
    """`unchanged`, and whether the modules at these paths still are of these types and run the forwards of these."""
    if not parts:
        return unchanged
    names = {f"_kind{i}": kind for i, kind in enumerate(parts.values())}
    same = [f"type({_module(path)}) is _kind{i}" for i, path in enumerate(parts)]
    own = [f"'forward' not in {_module(path)}.__dict__" for path in parts]
    built = eval(f"lambda self: {' and '.join([*same, *own])}", names)
    return built if unchanged is None else lambda module: built(module) and unchanged(module)


def item(space: dict[str, Any], name: str) -> Callable[[], Any]:
    """What reads the item anew."""
    return lambda: space.get(name)


def content(cell: types.CellType) -> Callable[[], Any]:
    """What reads the variable anew."""
    return lambda: cell.cell_contents


def attribute(owner: Any, name: str) -> Callable[[], Any]:
    """What reads the attribute anew."""
    return lambda: getattr(owner, name, None)


def _module(path: str) -> str:
    return "self" + "".join(f"._modules[{name!r}]" for name in path.split(".") if name)


def _equal(value: Any, before: Any) -> bool:
    return value is before or (type(value) is type(before) and bool(value == before))
