"""Methods and inits by name: their options, what is refused, and ones that were not written here."""

import inspect

import pytest
import torch
from topology.networks import OPTIMIZERS, net, train_step
from torch import nn

import spfde
from spfde import topology
from spfde.topology import INITS, METHODS, option


@pytest.fixture
def registries():
    """Whatever a test registers is gone afterwards."""
    before = dict(METHODS), dict(INITS)
    yield
    for registry, old in zip((METHODS, INITS), before, strict=True):
        registry.clear()
        registry.update(old)


def built(name, **arguments):
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    return topology.create(name, model, optimizer, **{"total_steps": 9, **arguments}), model, optimizer


# ---- options --------------------------------------------------------------------------------------------------------

WRONG = {float: (-1.0, float("nan"), "much", True), int: (0, 1.5, True), bool: (1, "yes"), str: ("greedy", 3)}


@pytest.mark.parametrize("name", METHODS)
def test_every_option_is_checked_by_name_before_anything_changes(name):
    for own, declared in METHODS[name].options().items():
        assert getattr(built(name)[0], own) == declared.default
        for value in WRONG[declared.kind]:
            model = net()
            state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
            with pytest.raises(ValueError, match=f"expected {own}"):
                topology.create(name, model, OPTIMIZERS["sgd"](model.parameters()), total_steps=9, **{own: value})
            assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", METHODS)
def test_the_frame_is_checked_and_what_a_method_lacks_is_refused(name):
    drop = "drop_fraction in .0, 1." if METHODS[name].default_drop is not None else "no drop_fraction"
    wrong = [({"every": 0}, "every >= 1"), ({"total_steps": 0}, "total_steps >= 1"), ({"drop_fraction": 1.5}, drop)]
    for arguments, words in [*wrong, ({"temprature": 1.0}, f"option of {METHODS[name].__name__}.*'temprature'")]:
        with pytest.raises(ValueError, match=words):
            built(name, **arguments)


@pytest.mark.parametrize(
    "options", [{"total_steps": 10.5}, {"total_steps": "10"}, {"every": 2.0}, {"every_epochs": True}]
)
def test_steps_that_are_no_integers_are_refused(options):
    model = net()
    with pytest.raises(TypeError, match=f"expected {next(iter(options))} to be an integer, got .*, try int"):
        topology.SET(model, OPTIMIZERS["sgd"](model.parameters()), **{"total_steps": 10, **options})
    with pytest.raises(TypeError, match="expected an optimizer, got list, try torch.optim.SGD"):
        topology.SET(model, list(model.parameters()), total_steps=10)


def test_options_at_the_ends_of_their_intervals():
    assert built("rigl", end=1.0)[0].end == 1.0 and built("gmp", begin=0, end=1)[0].begin == 0
    for name, arguments in [("rigl", {"end": 0.0}), ("srigl", {"gamma": 1.01}), ("snfs", {"beta": 1.0})]:
        with pytest.raises(ValueError, match=f"expected {next(iter(arguments))} in"):
            built(name, **arguments)
    with pytest.raises(ValueError, match="begin < end"):
        built("gmp", begin=0.5, end=0.5)


@pytest.mark.parametrize("name", METHODS)
def test_signature_and_help_show_a_methods_own_options(name):
    method = METHODS[name]
    shown = inspect.signature(method).parameters
    assert list(shown)[:4] == ["model", "optimizer", "total_steps", "every"]
    assert ("drop_fraction" in shown) == (method.default_drop is not None)
    assert shown["every"].default == method.default_every
    for own, declared in method.options().items():
        assert shown[own].kind is inspect.Parameter.KEYWORD_ONLY and shown[own].default == declared.default
        assert f"{own}: {declared.help}" in method.__doc__


# ---- from outside ---------------------------------------------------------------------------------------------------


class Cyclic(topology.Topology):
    """Drops the smallest |w| every second update and any weight in between, and grows next to what is stored."""

    default_drop = 0.2
    reach: int = option(1, "[1, 8]", "how far from a stored weight it grows")

    def setup(self):
        self.updates = 0

    def score(self, layer):
        self.updates += 1
        return super().score(layer) if self.updates % 2 else torch.rand(layer.nnz, generator=self.generator)

    def grow(self, layer, kept, need):
        near = torch.zeros(layer.grid.size)
        for shift in range(1, self.reach + 1):
            near[(kept + shift).clamp(max=layer.grid.size - 1)] += 1
        return topology.moves.highest([(0, near)], layer.group, kept, need)[0]

    def own_state(self):
        return {"updates": self.updates}

    def load_own_state(self, state):
        self.updates = state["updates"]


class Outgoing:
    """|w| times the sum of |w| of the output it leads to."""

    needs = "weights"

    def scores(self, context, budget):
        totals = {name: w.abs().flatten(1).sum(1).view(-1, *[1] * (w.dim() - 1)) for name, w in context.weights.items()}
        return budget.blocks({name: w.abs() * totals[name] for name, w in context.weights.items()})


def test_a_method_from_outside_trains_by_class_and_by_name(registries):
    topology.register("cyclic", Cyclic)
    topology.register("cyclic", Cyclic)
    states = []
    for make in (Cyclic, lambda *args, **kw: topology.create("cyclic", *args, **kw)):
        model = net()
        optimizer = OPTIMIZERS["sgd"](model.parameters())
        moves = make(model, optimizer, total_steps=12, every=3, seed=2, reach=2)
        counts = {name: layer.nnz for name, layer in moves.layers.items()}
        moved = []
        for step in range(12):
            train_step(model, optimizer, step)
            moved.append(moves.step())
        assert moved == [False, False, True] * 3 + [False] * 3
        assert {name: layer.nnz for name, layer in moves.layers.items()} == counts
        states.append(model.state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    assert list(Cyclic.options()) == ["reach"] and "reach" in inspect.signature(Cyclic).parameters
    with pytest.raises(ValueError, match="expected reach"):
        built("cyclic", reach=9)


def test_an_init_from_outside_by_instance_and_by_name(registries):
    topology.register_init("outgoing", Outgoing())
    masks = []
    for init in (Outgoing(), "outgoing"):
        torch.manual_seed(0)
        layer = nn.Linear(6, 4)
        with torch.no_grad():
            layer.weight[1] *= 100
        masks.append(spfde.sparsify(layer, 0.75, init=init).mask())
    assert torch.equal(*masks) and masks[0][1].all()
    with pytest.raises(ValueError, match="no data"):
        spfde.sparsify(nn.Linear(6, 4), 0.5, init="outgoing", data=(1, 2))


def test_an_option_may_not_hide_a_part_of_the_frame():
    with pytest.raises(TypeError, match="option 'grow' of Odd"):
        type("Odd", (topology.Topology,), {"grow": option(1, "[1, 8]", "hides a rule")})


def test_names_are_taken_once_and_kinds_are_checked(registries):
    with pytest.raises(ValueError, match="rigl"):
        topology.register("rigl", Cyclic)
    with pytest.raises(ValueError, match="snip"):
        topology.register_init("snip", Outgoing())
    for wrong in (object, Cyclic.__init__, None):
        with pytest.raises(TypeError, match="Topology"):
            topology.register("wrong", wrong)
    for wrong in (Outgoing, object(), "snip"):
        with pytest.raises(TypeError, match="Init"):
            topology.register_init("wrong", wrong)
    with pytest.raises(ValueError, match="topology to be one of.*try 'rigl'"):
        built("rigel")
