"""The graph of one module's own forward, and what of it was read: nothing is patched, no other thread can see it.

torch.fx.symbolic_trace replaces nn.Module.__call__ for the whole process. Here the forward is given a stand-in for its
module instead, and a profile function of this thread alone follows which code it reaches.
"""

from __future__ import annotations

import dis
import inspect
import random
import sys
import sysconfig
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import GraphAppendingTracer

from spfde.fusing.reads import Reads, attribute, content, item
from spfde.fusing.recorded import Number, OnlyRecorded, Recorded, computed, profiled
from spfde.fusing.stand_in import StandIn, Untraceable, join, on_the_class, plain, restore, same, stand_ins

# What a trace would settle once and for all, and where modes are set and gradients made that a trace does not show.
_UNSTABLE = {"isinstance", "type", "is_tensor", "is_grad_enabled", "is_autocast_enabled", "is_inference_mode_enabled"}
_DICTIONARIES = {"vars", "__dict__"}
_MODES = ("torch.autograd", "torch.amp", "torch.utils.checkpoint", "torch._compile", "torch.random")
_TORCH, _OURS = f"{Path(torch.__file__).parent}/", f"{Path(__file__).parent}/"
_STDLIB = f"{sysconfig.get_paths()['stdlib']}/"
_SETTERS = {
    getattr(nn.Module, name).__code__
    for name in ("__setattr__", "__delattr__", "register_buffer", "register_parameter", "add_module")
}
_CALL = nn.Module._call_impl.__code__


@dataclass(frozen=True)
class Traced:
    """A graph, and whether it still is the one of a module: None where it always is."""

    graph: fx.Graph
    unchanged: Callable[[nn.Module], bool] | None


def trace(module: nn.Module, training: bool) -> Traced:
    """The graph of the module's own forward, as its class defines it, in the given mode.

    Raises:
        Untraceable: torch.fx cannot follow, or what it follows would not always hold.
    """
    forward = type(module).forward  # with its decorators: one may be torch.no_grad
    parameters = list(inspect.signature(forward).parameters.values())
    if any(p.kind != p.POSITIONAL_OR_KEYWORD or p.default is not p.empty for p in parameters):
        raise Untraceable("its forward has optional arguments")
    names = [p.name for p in parameters[1:]]
    try:
        return _traced(_Tracer(module, training), forward, names)
    except Untraceable:  # perhaps it needs the numbers themselves
        return _traced(_Tracer(module, training, numbers=False), forward, names)


def _traced(tracer: _Tracer, forward: Callable[..., Any], names: list[str]) -> Traced:
    try:
        tracer.run(forward, names)
    except Exception as error:
        if isinstance(tracer.problem or error, Untraceable):
            raise tracer.problem or error from None
        problem = (str(error) or type(error).__name__).splitlines()[0]
        raise Untraceable(f"torch.fx cannot trace its forward: {problem}") from error
    return Traced(tracer.graph, tracer.reads.compiled())


class _Tracer(GraphAppendingTracer):
    """Every module called is a leaf, no tensor is a constant, and what else the forward reads is in `reads`."""

    def __init__(self, module: nn.Module, training: bool, numbers: bool = True) -> None:
        """numbers: read numbers when the forward runs, instead of asking at each call whether they are as they were."""
        super().__init__(fx.Graph())
        self.module, self.training, self.numbers, self.reads = module, training, numbers, Reads()
        self.problem: Untraceable | None = None
        self.handed: list[tuple[str, Any, Any]] = []  # reason, what the forward may have changed, what it was
        self.read_before: dict[tuple[str, str], Any] = {}
        self.outside: list[tuple[str, Any, Any]] = []  # of what no copy is made: its name, itself, what it was
        self.around: list[types.FunctionType] = []  # variables around a function that are functions
        self.names: set[str] = set()
        self.seen: set[types.CodeType] = set()

    def run(self, forward: Callable[..., Any], arguments: list[str]) -> None:
        self.copies = stand_ins(self.module, self, self.training)
        self.ids = {id(one.copy) for one in self.copies}
        eager = [(one, name, value) for one in self.copies for name, value in self._lay_out(one)]
        before = [dict(vars(one.copy)) for one in self.copies]
        given = [self.create_proxy("placeholder", name, (), {}) for name in arguments]
        try:
            with profiled(self._profile), OnlyRecorded(self):
                result = forward(self.copies[0].copy, *given)
        finally:
            changed = [what for what, value, original in self.outside if not same(value, original)]
            for _, value, original in self.outside:
                restore(value, original)
        if self.problem is None and changed:
            self.refuse(f"its forward changes {changed[0]}")
        if self.problem is not None:
            raise self.problem
        for one, state in zip(self.copies, before, strict=True):
            now = vars(one.copy)
            if now.keys() != state.keys() or any(now[key] is not value for key, value in state.items()):
                raise Untraceable("its forward sets attributes")
            if not all(same(now[key], vars(one.original)[key]) for key in one.copied):
                raise Untraceable("its forward registers hooks")
        for reason, value, original in self.handed:
            if not same(value, original):
                raise Untraceable(reason)
        if self.names & _DICTIONARIES:
            raise Untraceable("its forward looks into a __dict__")
        for one, name, value in eager:
            if name in self.names:
                self.reads.attribute(one.path, name, self._plain(one.path, name, value)[1])
        self.create_node("output", "output", (self.create_arg(result),), {})

    def _lay_out(self, one: StandIn) -> Iterator[tuple[str, Any]]:
        """Puts copies of the attributes that Python finds on the class in its way: no stand-in sees them read."""
        original = one.original
        for name in dict.fromkeys(on_the_class(original)):
            value = getattr(original, name)
            if isinstance(value, Tensor | nn.Module) or (name == "forward" and not inspect.isroutine(value)):
                continue
            try:
                handed, kept = plain(value)
            except Untraceable:  # told if it is read
                yield name, value
                continue
            vars(one.copy)[name] = handed
            self.handed.append((f"its forward changes self.{join(one.path, name)}", handed, kept))
            yield name, value

    def _plain(self, path: str, name: str, value: Any) -> tuple[Any, Any]:
        try:
            return plain(value)
        except Untraceable as problem:
            raise self.refuse(f"its forward reads self.{join(path, name)}, which {problem} that may change") from None

    # ---- what the stand-ins ask ----

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return Recorded(node, self)

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, Tensor):
            raise self.refuse("its forward makes a tensor of its own")
        return super().create_arg(a)

    def tensor(self, path: str) -> fx.Proxy:
        return self.create_proxy("get_attr", path, (), {})

    def called(self, module: nn.Module, path: str, *args: Any, **kwargs: Any) -> fx.Proxy:
        if type(module).__call__ is not nn.Module.__call__:
            raise self.refuse(f"its forward calls a {type(module).__name__}, whose class has a __call__ of its own")
        return self.create_proxy("call_module", path, args, kwargs)

    def create_proxy(self, kind, target, args, kwargs, *rest, **more) -> fx.Proxy:
        made = super().create_proxy(kind, target, args, kwargs, *rest, **more)
        number = computed(target, args) if kind == "call_function" and not kwargs else None
        return made if number is None else Number(made.node, self, *number)

    def read(self, path: str, name: str, value: Any) -> Any:
        if self.numbers and type(value) in (int, float):
            self.reads.typed(path, name, type(value))
            return Number(self.tensor(join(path, name)).node, self, value, frozenset([(path, name, value)]))
        if (path, name) not in self.read_before:
            handed, original = self._plain(path, name, value)
            self.reads.attribute(path, name, original)
            self.handed.append((f"its forward changes self.{join(path, name)}", handed, original))
            self.read_before[path, name] = handed
        return self.read_before[path, name]

    def found(self, path: str, where: str, name: str, there: bool) -> None:
        self.reads.found(path, where, name, there)

    def missed(self, path: str, name: str) -> None:
        self.reads.missed(path, name)

    def counted(self, path: str, count: int) -> None:
        self.reads.counted(path, count)

    def refuse(self, reason: str) -> Untraceable:
        """The exception to raise; it counts also where the forward catches it."""
        self.problem = self.problem or Untraceable(reason)
        return self.problem

    # ---- what code is reached, in this thread ----

    def _profile(self, frame: types.FrameType, event: str, arg: Any) -> None:
        if event == "c_call":
            owner = getattr(arg, "__self__", None)
            if isinstance(owner, random.Random) or str(type(owner).__module__).startswith("numpy.random"):
                raise self.refuse("its forward draws random numbers")
        elif event == "call":
            self._enter(frame)

    def _enter(self, frame: types.FrameType) -> None:
        code, file, inside = frame.f_code, frame.f_code.co_filename, str(frame.f_globals.get("__name__"))
        if file.startswith(_OURS):
            return
        if inside == "random":
            raise self.refuse("its forward draws random numbers")
        if file.startswith(_TORCH):
            self._enter_torch(frame, inside)
        elif code not in self.seen and (not file.startswith((_STDLIB, "<frozen")) or "site-packages" in file):
            self.seen.add(code)
            asks = _UNSTABLE.intersection(code.co_names)
            if asks:
                raise self.refuse(f"its forward asks {' and '.join(sorted(asks))}")
            if any(op.opname in ("STORE_GLOBAL", "DELETE_GLOBAL") for op in dis.get_instructions(code)):
                raise self.refuse("its forward sets globals")
            self.names.update(code.co_names)
            self._outside(code, frame)

    def _enter_torch(self, frame: types.FrameType, inside: str) -> None:
        if inside.startswith(_MODES):
            raise self.refuse(f"its forward calls {inside}")
        owner = frame.f_locals.get("self") if frame.f_code is _CALL or frame.f_code in _SETTERS else None
        if owner is None:
            return
        ours = id(owner) in self.ids
        if frame.f_code is not _CALL and ours:
            raise self.refuse("its forward sets attributes")
        slice_of_ours = not ours and {id(child) for child in vars(owner)["_modules"].values()} <= self.ids
        if frame.f_code is _CALL and not ours and not (slice_of_ours and isinstance(owner, nn.Sequential)):
            raise self.refuse(f"its forward calls a {type(owner).__name__} that is not inside of it")

    def _outside(self, code: types.CodeType, frame: types.FrameType) -> None:
        """Notes the globals and the variables around the function that its code names."""
        for name in code.co_names:
            if name in frame.f_globals:
                value = frame.f_globals[name]
                self._note(value, item(frame.f_globals, name), code.co_names, f"the global {name}", 3)
        for name in code.co_freevars:
            if name not in frame.f_locals:
                continue
            value = frame.f_locals[name]
            for function in self._functions(code):
                cell = function.__closure__[code.co_freevars.index(name)]
                self._note(value, content(cell), code.co_names, f"the variable {name}", 3)
            if isinstance(value, types.FunctionType):
                self.around.append(value)

    def _functions(self, code: types.CodeType) -> Iterator[types.FunctionType]:
        """The functions of this code that outlive the call: of the modules, their classes and files, or met before."""
        for original in (one.original for one in self.copies):
            file = vars(sys.modules.get(type(original).__module__, object))
            for space in (vars(original), *map(vars, type(original).__mro__), file):
                met = (inspect.unwrap(f) for f in list(space.values()) if isinstance(f, types.FunctionType))
                yield from (f for f in met if f.__code__ is code)
        yield from (f for f in self.around if f.__code__ is code)

    def _note(self, value: Any, again: Callable[[], Any], names: tuple[str, ...], what: str, depth: int) -> None:
        if isinstance(value, type | types.ModuleType) or (hasattr(value, "__dict__") and not callable(value)):
            inside = vars(value)
            if depth and not str(inside.get("__name__", type(value).__module__)).startswith(("torch", "builtins")):
                for name in names:
                    if name in inside and not name.startswith("__"):
                        deeper = attribute(value, name)
                        self._note(inside[name], deeper, names, f"{what}.{name}", depth - 1)
            return
        if callable(value):
            return
        try:
            _, original = plain(value)
        except Untraceable:
            if isinstance(value, list | dict | set):
                raise self.refuse(f"its forward reads {what}, which may change") from None
            return
        self.reads.outside(again, original)
        self.outside.append((what, value, original))
