import dataclasses
from pathlib import Path

import pytest

from spfde.train import Recipe
from spfde.train.recipe import differences

FIELDS = [item.name for item in dataclasses.fields(Recipe)]

WRONG = [
    ("dataset", ""),
    ("train_images", 0),
    ("test_images", 1.5),
    ("model", None),
    ("width", 0.0),
    ("method", "spdfe"),
    ("epochs", 0),
    ("batch_size", True),
    ("lr", 0.0),
    ("momentum", 1.0),
    ("weight_decay", -1e-4),
    ("warmup", 1.0),
    ("seed", -1),
    ("sparsity", 1.0),
    ("distribution", "even"),
    ("init", "snip"),
    ("interval", 0),
    ("drop_fraction", float("nan")),
    ("freeze", -0.1),
    ("freeze_fraction", 0.0),
    ("block_cosine", 1),
    ("sieve", 1.5),
    ("layout", "nhwc"),
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


def test_levers_take_the_methods_own_values():
    spfde, dense = Recipe(), Recipe(method="dense")
    assert (spfde.sparsity, spfde.freeze, spfde.sieve) == (0.9, 0.2, 0.2)
    assert (dense.sparsity, dense.freeze, dense.sieve) == (0.0, 0.0, 0.0)
    assert Recipe(sieve=0).sieve == 0.0


@pytest.mark.parametrize("lever", ["sparsity", "freeze", "sieve"])
def test_dense_refuses_a_lever(lever):
    with pytest.raises(ValueError, match=rf"expected {lever} to be 0 with method='dense', got 0.5, try method='spfde'"):
        Recipe(method="dense", **{lever: 0.5})


def test_the_baseline_changes_only_the_levers():
    recipe = Recipe(seed=3, lr=0.05, epochs=7)
    changed = {name for name in FIELDS if getattr(recipe, name) != getattr(recipe.baseline(), name)}
    assert changed == {"method", "sparsity", "freeze", "sieve"}
    assert recipe.baseline() == Recipe(seed=3, lr=0.05, epochs=7, method="dense")


def test_plain_values_and_back():
    recipe = Recipe(sparsity=0.5, out=Path("runs") / "a")
    assert recipe.out == "runs/a"
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    with pytest.raises(ValueError, match="expected fields of a recipe .*, got learning_rate"):
        Recipe.from_dict({"learning_rate": 0.1})


def test_differences_name_fields_and_leave_out_what_has_no_say_in_the_numbers():
    kept = Recipe(out="a", keep_checkpoints=2, checkpoint_every_steps=5, workers=3).to_dict()
    assert differences(kept, Recipe(out="b")) == []
    assert differences(kept, Recipe(lr=0.2, seed=1)) == ["lr: 0.1, got 0.2", "seed: 0, got 1"]


def test_the_guide_lists_every_field():
    guide = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    assert [name for name in FIELDS if f"| `{name}` |" not in guide] == []
