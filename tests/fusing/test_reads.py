"""What a forward reads beside its arguments is read when it runs, and tracing leaves nothing behind anywhere."""

import copy
import functools
import gc
import math
import random
import sys
import threading
import types

import pytest
import torch
import torch.nn.functional as F
from fusing.networks import chains
from torch import fx, nn
from torch.utils.checkpoint import checkpoint

import spfde
from spfde.fusing.forward import is_fused

ALPHA, RATES, SETTINGS, _CACHE = 0.5, [0.5, 0.25], types.SimpleNamespace(alpha=0.5), {}


class Block(nn.Module):
    """conv, norm, activation, and what is done with them."""

    gain = 0.5

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU()
        self.alpha, self.skip, self.rates, self.by_name, self.config = 0.5, True, [0.5], {"a": 0.5}, SETTINGS
        self.scale, self.act, self.inner, self.optional, self.cache = torch.tensor(0.5), F.relu, Inner(), nn.Tanh(), {}
        self.register_buffer("buffer", torch.tensor(0.5))

    def chain(self, x):
        return self.relu(self.bn(self.conv(x)))


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.beta = 0.5

    def forward(self, x):
        return x * self.beta


def made(body, base=Block):
    torch.manual_seed(0)
    return type("Made", (base,), {"forward": lambda self, x: body(self, x)})().eval()


def images():
    return torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(0))


def branch(m, x):
    y = m.chain(x)
    return y + x if m.skip else y


NUMBERS = {
    "in arithmetic": (lambda m, x: m.chain(x) * (1 - 2 * m.alpha) + m.alpha, True),
    "in place": (lambda m, x: (lambda y: y.mul_(m.alpha))(m.chain(x) * 1), True),
    "as an argument": (lambda m, x: torch.add(x, m.chain(x), alpha=m.alpha), True),
    "of a child": (lambda m, x: m.chain(x) * m.inner.beta, True),
    "as a residual": (lambda m, x: m.bn(m.conv(x)) + m.alpha, True),
    "in a branch": (lambda m, x: m.chain(x) if m.alpha < 1 else x, False),
    "converted": (lambda m, x: m.chain(x) * math.sqrt(m.alpha), False),
    "as a key": (lambda m, x: m.chain(x) * {0.5: 2.0}.get(m.alpha, 4.0), False),
    "in a text": (lambda m, x: m.chain(x) * len(f"{m.alpha}"), False),
}


@pytest.mark.parametrize(("body", "stays"), NUMBERS.values(), ids=NUMBERS)
def test_a_number_that_is_annealed(body, stays):
    plain = made(body)
    model, called = spfde.fuse(copy.deepcopy(plain)), []
    assert is_fused(model)
    model.relu.register_forward_hook(lambda *_: called.append(1))  # which a fused chain does not call
    for value in (0.5, 0.75, 16.25):
        plain.alpha = model.alpha = plain.inner.beta = model.inner.beta = value
        torch.testing.assert_close(model(images()), plain(images()))
    assert not (called and stays)


READ = {
    "a number": (lambda m, x: x + m.alpha * m.chain(x), lambda m: setattr(m, "alpha", 1.0)),
    "a number becomes an integer": (lambda m, x: m.chain(x) * m.alpha, lambda m: setattr(m, "alpha", 2)),
    "a branch on a number": (lambda m, x: m.chain(x) if m.alpha < 1 else x, lambda m: setattr(m, "alpha", 1.0)),
    "a flag": (branch, lambda m: setattr(m, "skip", False)),
    "a list": (lambda m, x: m.chain(x) * m.rates[0], lambda m: m.rates.__setitem__(0, 2.0)),
    "a dictionary": (lambda m, x: m.chain(x) * m.by_name["a"], lambda m: m.by_name.update(a=2.0)),
    "a tensor": (lambda m, x: m.chain(x) * m.scale, lambda m: setattr(m, "scale", torch.tensor(2.0))),
    "a buffer": (lambda m, x: m.chain(x) * m.buffer, lambda m: m.buffer.fill_(2.0)),
    "a function": (lambda m, x: m.act(m.bn(m.conv(x))), lambda m: setattr(m, "act", torch.tanh)),
    "an attribute of its class": (lambda m, x: m.chain(x) * m.gain, lambda m: setattr(type(m), "gain", 2.0)),
    "the same on the instance": (lambda m, x: m.chain(x) * m.gain, lambda m: setattr(m, "gain", 2.0)),
    "one of a child": (lambda m, x: m.chain(x) * m.inner.beta, lambda m: setattr(m.inner, "beta", 2.0)),
    "the mode of a child": (lambda m, x: m.chain(x) if m.inner.training else x, lambda m: m.inner.train()),
    "a child that goes": (
        lambda m, x: m.chain(x) if m.optional is None else m.optional(m.chain(x)),
        lambda m: setattr(m, "optional", None),
    ),
    "whether there is one": (lambda m, x: m.chain(x) * getattr(m, "later", 1), lambda m: setattr(m, "later", 2)),
    "another activation": (lambda m, x: m.chain(x), lambda m: setattr(m, "relu", nn.SiLU())),
    "another norm": (lambda m, x: m.chain(x), lambda m: setattr(m, "bn", nn.GroupNorm(2, 4))),
    "a norm of all ranks": (lambda m, x: m.chain(x), lambda m: nn.SyncBatchNorm.convert_sync_batchnorm(m).eval()),
    "a forward of the activation": (lambda m, x: m.chain(x), lambda m: setattr(m.relu, "forward", torch.tanh)),
    "a forward of the norm": (lambda m, x: m.chain(x), lambda m: setattr(m.bn, "forward", torch.tanh)),
    "a configuration": (
        lambda m, x: m.chain(x) * m.config.alpha, lambda m: setattr(m, "config", types.SimpleNamespace(alpha=2))
    ),
}  # fmt: skip


@pytest.mark.parametrize(("body", "change"), READ.values(), ids=READ)
def test_what_is_read_is_read_when_the_forward_runs(body, change):
    plain = made(body)
    model = copy.deepcopy(plain)
    spfde.fuse(model)
    copies = [plain, model, copy.deepcopy(model)]
    torch.testing.assert_close(model(images()), plain(images()))
    try:
        for m in copies:
            change(m)
        for m in copies[1:]:
            torch.testing.assert_close(m(images()), plain(images()))
    finally:
        Block.gain = 0.5


def test_what_is_read_outside_is_read_when_the_forward_runs(monkeypatch):
    factor = 0.5

    def use(m, x):
        return m.chain(x) * factor

    plain = [
        made(use), made(lambda m, x: m.chain(x) * ALPHA), made(lambda m, x: m.chain(x) * RATES[0]),
        made(lambda m, x: m.chain(x) * SETTINGS.alpha),
    ]  # fmt: skip
    models = [spfde.fuse(copy.deepcopy(m)) for m in plain]
    monkeypatch.setattr(sys.modules[__name__], "ALPHA", 2.0)
    monkeypatch.setattr(sys.modules[__name__], "RATES", list(RATES))
    RATES[0] = 2.0
    monkeypatch.setattr(SETTINGS, "alpha", 2.0)
    factor = 2.0
    for model, m in zip(models, plain, strict=True):
        torch.testing.assert_close(model(images()), m(images()))


def keeps(m, x):
    if m.training or "b" not in m.cache:
        m.cache["b"] = m.scale * 2
    return m.chain(x) + m.cache["b"]


def keeps_outside(m, x):
    _CACHE["x"] = x
    return m.chain(x)


@functools.lru_cache
def by_key(x):
    return x


class Square(torch.autograd.Function):
    """A gradient of its own."""

    @staticmethod
    def forward(ctx, x):
        return x * x

    @staticmethod
    def backward(ctx, dy):
        return dy


def no_grad(m, x):
    with torch.no_grad():
        return m.chain(x)


def caught(m, x):
    try:
        m.cache["b"] = torch.ones(1)
    except Exception:
        return x
    return m.chain(x)


def helper(m, x):
    return m.chain(x) if isinstance(x, torch.Tensor) else x


STRANGER = nn.BatchNorm2d(4)
LEFT = {
    "changes self.cache": keeps,
    "changes the global _CACHE": keeps_outside,
    "keeps values by key": lambda m, x: m.chain(by_key(x)),
    "torch.autograd": lambda m, x: Square.apply(m.chain(x)),
    "calls torch.autograd.grad_mode": no_grad,
    "calls torch.autograd.grad_mode, by a decorator": torch.no_grad()(lambda m, x: m.chain(x)),
    "calls torch._compile": lambda m, x: checkpoint(m.relu, m.bn(m.conv(x)), use_reentrant=False),
    "registers hooks": lambda m, x: (m.inner.register_forward_hook(print), m.chain(x))[1],
    "makes a tensor of its own": caught,
    "asks isinstance": lambda m, x: helper(m, x),
    "that is not inside of it": lambda m, x: m.relu(STRANGER(m.conv(x))),
    "draws random numbers": lambda m, x: m.chain(x) if random.random() < 2 else x,
    "looks into a __dict__": lambda m, x: m.chain(x) * vars(m).get("alpha", 1),
    "sets attributes": lambda m, x: setattr(m, "alpha", 2.0) or m.chain(x),
    "cannot trace its forward": lambda m, x: m.chain(x) / 0 if x.sum() > 0 else x,
    "is or holds a SimpleNamespace that may change": lambda m, x: m.chain(x) * m.config.alpha,
}  # fmt: skip


@pytest.mark.parametrize(("reason", "body"), LEFT.items(), ids=LEFT)
def test_what_cannot_be_kept_is_left_alone_and_nothing_stays(reason, body):
    random.seed(0)
    model = nn.Sequential(made(body))
    before = {name: dict(vars(m)) for name, m in model.named_modules()}
    drawn, state, call, profile = random.getstate(), torch.get_rng_state(), nn.Module.__call__, sys.getprofile()
    assert reason.split(", by")[0] in spfde.fuse.report(model).rows[0].reason
    spfde.fuse(model)
    assert not is_fused(model[0])
    assert (nn.Module.__call__, sys.getprofile()) == (call, profile)
    assert random.getstate() == drawn and torch.equal(torch.get_rng_state(), state)
    assert model[0].cache == {} and _CACHE == {}
    spfde.unfuse(model)
    assert {name: dict(vars(m)) for name, m in model.named_modules()} == before
    assert by_key.cache_info().currsize == 0
    gc.collect()
    assert not any(issubclass(type(o), fx.Proxy) for o in gc.get_objects())


def test_unfuse_gives_the_very_model_back():
    model = nn.Sequential(made(branch), spfde.nn.FusedNormAct2d(4), nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()))
    handle = model[0].conv.register_forward_hook(lambda *_: None)
    before = [(type(m), dict(vars(m))) for m in model.modules()]
    spfde.unfuse(spfde.fuse(spfde.fuse(model)))
    assert [(type(m), dict(vars(m))) for m in model.modules()] == before
    handle.remove()


def test_threads_fuse_and_train_at_once():
    call, errors = nn.Module.__call__, []

    def work(fusing):
        try:
            for _ in range(8):
                model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3))
                if fusing:
                    assert chains(spfde.fuse(model)) == {"1": "norm+relu"}
                model(torch.randn(2, 3, 8, 8)).sum().backward()
        except Exception as error:
            errors.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=work, args=(fusing,)) for fusing in (True, True, False, False)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert errors == [] and nn.Module.__call__ is call


@pytest.mark.parametrize("name", ["a number", "a flag", "a list", "a child that goes", "another activation"])
def test_a_compiled_model_follows_too(name):
    torch._dynamo.reset()
    body, change = READ[name]
    plain = made(body)
    model = spfde.fuse(copy.deepcopy(plain))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images()), plain(images()))
    for m in (plain, model):
        change(m)
    torch.testing.assert_close(compiled(images()), plain(images()))
