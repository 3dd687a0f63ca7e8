"""Every way that masks are born and move, from a recipe: what it names, what it refuses, and that it goes on."""

import dataclasses

import pytest
import torch
from torch.nn import functional
from train.runs import bits, figures, last_state, recipe, same, stop_within

from spfde import models, sparsify
from spfde.nn import SparseLayer
from spfde.sieving.shuffle import shuffled
from spfde.topology import INITS, METHODS, option
from spfde.train import Recipe, build, fit
from spfde.train.build import sparsified
from spfde.train.data import epoch_seed, source
from spfde.train.recipe.defaults import choices

OPTIONS = {"mest": {"soft": True}, "itop": {"growth": "gradient"}, "dst-ee": {"exploration": 0.1}}
CASES = [(name, {}) for name in (*METHODS, "static")] + list(OPTIONS.items())
FIELDS = {"epochs": 4, "batch_size": 16, "freeze": 0.1}


def identity(case) -> str:
    return case if isinstance(case, str) else "-".join(case) or "default"


def test_every_method_has_a_name_and_its_own_share():
    for name, kind in METHODS.items():
        assert kind.__name__.lower() == name.replace("-", "")
        expected = 0.2 if name == "mest" else kind.default_drop
        assert Recipe(topology=name).drop_fraction == expected
    assert Recipe().topology == "mest" and Recipe(method="dense").topology is None


@pytest.mark.parametrize(("name", "options"), CASES, ids=identity)
def test_a_run_stopped_within_an_epoch_goes_on_to_the_same_bits(name, options, task, tmp_path):
    fields = {**FIELDS, "topology": name, **options}
    whole = task.fit(recipe(out=tmp_path / "whole", **fields))
    # In the third epoch masks have moved twice, and the next step but one moves them again.
    stop_within(2, 3, tmp_path / "parts", fit=task.fit, fields=fields)
    parts = task.fit(recipe(out=tmp_path / "parts", **fields), resume=True)
    assert same(last_state(tmp_path / "parts"), last_state(tmp_path / "whole"))
    assert same(bits(parts.model), bits(whole.model))
    assert [figures(e) for e in parts.epochs] == [figures(e) for e in whole.epochs]
    told = [event.text for record in whole.epochs for event in record.events if event.kind == "topology"]
    assert bool(told) == (name != "static")
    assert all(text.startswith(f"{METHODS[name].__name__} moved ") for text in told)
    assert whole.epochs[-1].sparsity == pytest.approx(0.7, abs=0.01)


def test_the_soft_bound_and_gradual_pruning_train_above_their_target(task):
    for name, options in (("mest", {"soft": True}), ("gmp", {}), ("gap", {})):
        first, *_, last = task.fit(recipe(topology=name, **FIELDS, **options)).epochs
        assert first.sparsity < last.sparsity - 0.02


def test_what_is_trimmed_at_the_end_is_told_as_such(task):
    fields = {"epochs": 4, "interval": 2, "batch_size": 16, "freeze": 0, "sieve": 0}
    records = task.fit(recipe(topology="mest", soft=True, **fields)).epochs
    *_, grown, trimmed = [event.text for record in records for event in record.events]
    assert grown.startswith("MEST moved ") and trimmed.startswith("MEST trimmed ")


def test_gradual_pruning_starts_from_the_networks_own_weights(task):
    model = task.model()
    dense = model.layer2[0].conv1.weight.detach().clone()
    sparse = sparsified(model, recipe(topology="gmp"), source(task.train)).layer2[0].conv1
    assert torch.equal(sparse.dense_weight(), dense) and sparse.mask().all()


def test_gradual_pruning_ends_at_the_recipes_densities(task):
    fields = {**FIELDS, "distribution": "erk", "sparsity": 0.7}
    ends = [task.fit(recipe(topology=name, **fields)).epochs[-1].layers for name in ("gmp", "rigl")]
    assert ends[0] == ends[1] and len(set(ends[0].values())) > 2


def test_no_drop_fraction_means_fixed_masks(task):
    for options in ({"topology": "rigl", "drop_fraction": 0.0}, {"topology": "static"}):
        result = task.fit(recipe(**FIELDS, **options))
        assert not [event for record in result.epochs for event in record.events if event.kind == "topology"]


@pytest.mark.parametrize(
    ("fields", "refused"),
    [
        ({"topology": "gmp", "drop_fraction": 0.1}, "drop_fraction"),
        ({"topology": "static", "drop_fraction": 0.1}, "drop_fraction"),
        ({"topology": "rigl", "soft": True}, "soft"),
        ({"growth": "gradient"}, "growth"),
        ({"exploration": 0.1}, "exploration"),
        ({"method": "dense", "topology": "rigl"}, "topology"),
        ({"method": "dense", "init": "snip"}, "init"),
        ({"topology": "gmp", "init": "snip"}, "init"),
        ({"topology": "gmp", "distribution": "global"}, "distribution 'uniform' or 'erk'"),
        ({"topology": "gmp", "topology_options": {"distribution": "erk"}}, "topology_options"),
        ({"topology": "dstee"}, "topology .*, try 'dst-ee'$"),
        ({"init": "iter_snip"}, "init .*, try 'iter-snip'$"),
        ({"pattern": "block"}, "pattern"),
    ],
)
def test_what_a_choice_does_not_have_is_refused(fields, refused):
    with pytest.raises(ValueError, match=f"expected {refused}"):
        Recipe(**fields)


def test_a_pattern_that_a_method_has_no_meaning_for_is_refused_by_name(task):
    with pytest.raises(ValueError, match="DeepR"):
        task.fit(recipe(topology="deepr", pattern="block:4x1"))


def test_a_registered_method_and_its_options_have_names_in_a_recipe(task, monkeypatch):
    class Mine(METHODS["set"]):
        keep: float = option(0.5, "(0, 1]", "share that is never dropped")

        def drop_share(self, step):
            return self.drop_fraction * (1 - self.keep)

    monkeypatch.setitem(METHODS, "mine", Mine)
    with pytest.raises(ValueError, match="keep"):
        Recipe(topology="mine", topology_options={"keep": 2.0})
    with pytest.raises(ValueError, match="keep"):
        Recipe(topology="rigl", topology_options={"keep": 0.5})
    moved = [
        task.fit(recipe(**FIELDS, topology="mine", topology_options={"keep": keep})).epochs[0].events[-1].text
        for keep in (0.5, 0.9)
    ]
    few, many = (int(text.split()[2]) for text in reversed(moved))
    assert Recipe(topology="mine").drop_fraction == Mine.default_drop and 0 < few < many


def test_the_baseline_of_any_method_is_the_same_dense_run():
    for name, options in CASES:
        assert Recipe(topology=name, **options).baseline() == Recipe(method="dense")
    assert all(getattr(Recipe(method="dense"), name) is None for own in choices("topology").values() for name in own)


def test_a_settled_recipe_can_be_replaced_field_by_field():
    for name, options in CASES:
        settled = Recipe(topology=name, **options)
        assert dataclasses.replace(settled, seed=1).to_dict() == {**settled.to_dict(), "seed": 1}


@pytest.mark.parametrize("pattern", ["block:4x1", "2:4", "fan-in", "channel"])
def test_every_pattern_trains(pattern, task):
    whole = Recipe(
        pattern=pattern, epochs=2, batch_size=16, freeze=0, sieve=0, sparsity=None if ":4" in pattern else 0.5
    )
    result = task.fit(whole)
    assert {layer.pattern for layer in result.model.modules() if isinstance(layer, SparseLayer)} == {pattern}


def test_a_pattern_fixes_the_sparsity_that_is_left_out():
    assert Recipe(pattern="1:4").sparsity == 0.75 and Recipe(pattern="2:4").sparsity == 0.5
    assert Recipe(pattern="2:4", sparsity=0).sparsity == 0 and Recipe(pattern="2:4", method="dense").sparsity == 0


@pytest.mark.parametrize("init", [name for name, init in INITS.items() if init.needs != "weights"])
def test_an_init_sees_batches_that_the_seed_decides(init, task, monkeypatch):
    def mask(seed, **options):
        chosen = Recipe(init=init, sparsity=0.8, seed=seed, batch_size=16, label_smoothing=0.1, **options)
        model = sparsified(task.model(), chosen, source(task.train))
        return {name: layer.mask() for name, layer in model.named_modules() if isinstance(layer, SparseLayer)}

    monkeypatch.setattr(build, "SHOWN", 32)
    first = shuffled(torch.arange(90), epoch_seed(3, 0))[:32].view(2, 16)
    data = [(task.train.images[batch], task.train.targets[batch]) for batch in first]

    def loss(logits, targets):
        return functional.cross_entropy(logits, targets, label_smoothing=0.1)

    model = sparsify(task.model(), 0.8, init=init, seed=3, data=data, loss_fn=loss, example_input=data[0][0][:1])
    own = {name: layer.mask() for name, layer in model.named_modules() if isinstance(layer, SparseLayer)}
    assert same(mask(3), own)
    assert same(mask(3), mask(4)) == (init == "synflow")  # which looks at no data


def test_an_init_leaves_no_trace_in_the_random_state(task):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    task.fit(recipe(init="grasp", epochs=1, freeze=0, topology="static"))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_network_of_the_recipes_own_takes_an_init_too():
    result = fit(recipe(init="snip", epochs=1, freeze=0, train_images=64))
    assert result.epochs[-1].sparsity == pytest.approx(0.7, abs=0.01)
    assert isinstance(result.model, type(models.create("resnet20")))
