import dataclasses
import json
import re
from pathlib import Path

import pytest

from spfde.train import Recipe
from spfde.train.recipe import differences
from spfde.train.recipe.defaults import DISABLED, default_text

FIELDS = [item.name for item in dataclasses.fields(Recipe)]

WRONG = [
    ("dataset", ""),
    ("data_dir", "a\0b"),
    ("train_images", 0),
    ("test_images", 1.5),
    ("image_size", 4097),
    ("context", 0),
    ("bad_images", "drop"),
    ("crop", -1),
    ("flip", 1),
    ("variants", 0),
    ("model", None),
    ("width", 65),
    ("fuse", "yes"),
    ("method", "spdfe"),
    ("epochs", 10**9 + 1),
    ("batch_size", True),
    ("accumulate", 0),
    ("optimizer", "adam"),
    ("lr", 0.0),
    ("dense_lr", 0.0),
    ("momentum", 1.0),
    ("beta2", 1.0),
    ("nesterov", 0.5),
    ("weight_decay", -1e-4),
    ("clip", float("inf")),
    ("label_smoothing", 1.0),
    ("schedule", "linear"),
    ("warmup", 1.0),
    ("block_cosine", 1),
    ("milestones", (0.75, 0.5)),
    ("gamma", 0.0),
    ("precision", "bf16"),
    ("seed", -1),
    ("sparsity", 1.0),
    ("pattern", "block"),
    ("distribution", "even"),
    ("init", "snap"),
    ("topology", "rigel"),
    ("interval", 0),
    ("drop_fraction", float("nan")),
    ("soft", 1),
    ("growth", "momentum"),
    ("exploration", -1.0),
    ("topology_options", {"end": None}),
    ("rounds", 0),
    ("rewind", "rate"),
    ("rewind_epoch", -1),
    ("freeze", -0.1),
    ("freeze_fraction", 0.0),
    ("freeze_by", "progress"),
    ("freeze_options", 3),
    ("prefix", 1),
    ("cache", ""),
    ("cache_dtype", "int4"),
    ("cache_budget", 0),
    ("sieve", 1.5),
    ("sieve_by", "loss"),
    ("sieve_options", {1: 2}),
    ("layout", "nhwc"),
    ("device", "gpu"),
    ("compile", 1),
    ("threads", 0),
    ("workers", -1),
    ("out", 3),
    ("keep_checkpoints", 0),
    ("checkpoint_every_steps", 0),
]


def test_every_field_has_a_wrong_value_below():
    assert [name for name, _ in WRONG] == FIELDS


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_field_out_of_range_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=rf"expected {name} to be .*, got .*, try "):
        Recipe(**{name: value})


@pytest.mark.parametrize("milestones", [(), (0.0, 0.5), (0.5, 1.0), (0.5, 0.5), ("a",), 0.5, [True]])
def test_milestones_are_increasing_fractions(milestones):
    with pytest.raises(ValueError, match=r"expected milestones to be increasing fractions in \(0, 1\) or None, got"):
        Recipe(schedule="step", milestones=milestones)


@pytest.mark.parametrize(
    ("fields", "hint"),
    [
        ({"method": "sfpde"}, "spfde"),
        ({"schedule": "stepp"}, "step"),
        ({"precision": "bfloat"}, "bfloat16"),
        ({"layout": "channel_last"}, "channels_last"),
    ],
)
def test_a_misspelt_name_is_answered_with_the_nearest(fields, hint):
    with pytest.raises(ValueError, match=f", try '{hint}'$"):
        Recipe(**fields)


def test_every_choice_takes_its_own_values():
    spfde, dense = Recipe(), Recipe(method="dense")
    assert (spfde.sparsity, spfde.freeze, spfde.sieve) == (0.75, 0.1, 0.1)
    assert (dense.sparsity, dense.freeze, dense.sieve) == (0.0, 0.0, 0.0)
    assert Recipe(sieve=0).sieve == 0.0
    assert (spfde.lr, spfde.weight_decay, spfde.nesterov, spfde.beta2) == (0.1, 5e-4, False, None)
    adamw = Recipe(optimizer="adamw", weight_decay=0)
    assert (adamw.lr, adamw.weight_decay, adamw.nesterov, adamw.beta2) == (1e-3, 0.0, None, 0.999)
    assert (spfde.block_cosine, spfde.milestones, spfde.gamma) == (True, None, None)
    step = Recipe(schedule="step", gamma=0.2, block_cosine=False)
    assert (step.block_cosine, step.milestones, step.gamma) == (None, (0.5, 0.75), 0.2)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"optimizer": "adamw", "nesterov": True}, "expected nesterov to be left out with optimizer='adamw', got True"),
        ({"beta2": 0.9}, "expected beta2 to be left out with optimizer='sgd', got 0.9, try optimizer='adamw'"),
        ({"gamma": 0.5}, "expected gamma to be left out with schedule='cosine', got 0.5, try schedule='step'"),
        ({"milestones": [0.5]}, "expected milestones to be left out with schedule='cosine'"),
        ({"schedule": "step", "block_cosine": True}, "expected block_cosine to be left out with schedule='step'"),
        ({"variants": 3}, "expected crop or flip with variants=3, got neither, try crop=4"),
        ({"nesterov": True, "momentum": 0}, "expected momentum > 0 with nesterov=True, got 0, try momentum=0.9"),
        (
            {"batch_size": 8, "accumulate": 5},
            r"expected accumulate to be an integer in \[1, 4\] with batch_size=8",
        ),
        ({"batch_size": 1, "accumulate": 2}, r"in \[1, 1\] with batch_size=1, got 2, try a larger batch_size"),
    ],
)
def test_fields_that_do_not_go_together_are_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        Recipe(**fields)


def test_what_is_settled_stays_settled():
    for recipe in (Recipe(), Recipe(method="dense"), Recipe(optimizer="adamw"), Recipe(schedule="step")):
        assert dataclasses.replace(recipe) == recipe == Recipe.from_dict(json.loads(json.dumps(recipe.to_dict())))


@pytest.mark.parametrize("lever", ["sparsity", "freeze", "sieve"])
def test_dense_refuses_a_lever(lever):
    with pytest.raises(ValueError, match=rf"expected {lever} to be 0 with method='dense', got 0.5, try method='spfde'"):
        Recipe(method="dense", **{lever: 0.5})


def test_the_baseline_changes_only_the_levers():
    recipe = Recipe(seed=3, lr=0.05, epochs=7)
    changed = {name for name in FIELDS if getattr(recipe, name) != getattr(recipe.baseline(), name)}
    assert changed == {"method", "topology", "init", "drop_fraction", "soft", *DISABLED}
    assert recipe.baseline() == Recipe(seed=3, lr=0.05, epochs=7, method="dense")
    tuned = Recipe(seed=3, lr=0.2, dense_lr=0.05, epochs=7)
    with pytest.raises(ValueError, match="expected no dense_lr with method='dense', got 0.05, try lr=0.05"):
        Recipe(method="dense", dense_lr=0.05)
    assert tuned.baseline() == recipe.baseline() and not differences(tuned.to_dict(), Recipe(seed=3, lr=0.2, epochs=7))


def test_plain_values_and_back():
    recipe = Recipe(sparsity=0.5, out=Path("runs") / "a")
    assert recipe.out == "runs/a"
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    for name, near in (("epoch", "'epochs'"), ("weight-decay", "'weight_decay'"), ("x", "one that spfde train --help")):
        with pytest.raises(ValueError, match=f"expected only a recipe's fields in a recipe, got '{name}', try {near}"):
            Recipe.from_dict({name: 0.1})


def test_differences_name_fields_and_leave_out_what_has_no_say_in_the_numbers():
    kept = Recipe(out="a", keep_checkpoints=2, checkpoint_every_steps=5, workers=3).to_dict()
    assert differences(kept, Recipe(out="b")) == []
    assert differences(kept, Recipe(lr=0.2, seed=1)) == ["lr: 0.1, got 0.2", "seed: 0, got 1"]


def test_the_guides_table_is_the_recipe():
    guide = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+) \|$", guide.split("## The recipe")[1].split("\n## ")[0], re.M)
    assert rows == [(f.name, default_text(f), f.metadata["help"]) for f in dataclasses.fields(Recipe)]
