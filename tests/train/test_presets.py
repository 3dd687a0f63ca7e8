"""Presets: recipes that come with the package, and how flags and files win over them."""

from __future__ import annotations

import dataclasses

import pytest
from typer.testing import CliRunner

from spfde import cli
from spfde.cli import train as cli_train
from spfde.train import Recipe
from spfde.train.build import build
from spfde.train.recipe import presets
from spfde.train.session import Inputs


def spfde(arguments: str):
    return CliRunner().invoke(cli.build("train"), ["train", *arguments.split()])


@pytest.mark.parametrize("name", presets.NAMES)
def test_a_preset_is_a_recipe_whose_levers_fit(name):
    recipe = Recipe(**presets.read(name))
    assert recipe.sparsity and recipe.freeze and recipe.sieve
    if recipe.dataset in ("digits", "stdlib"):  # the others' data may not be here
        build(Inputs(dataclasses.replace(recipe, train_images=2, test_images=1)))


def test_flags_win_over_a_file_and_that_over_a_preset(tmp_path, monkeypatch):
    recipes = []
    monkeypatch.setattr(cli_train, "fit", lambda recipe, **options: recipes.append(recipe))
    monkeypatch.setattr(cli_train, "outcome", lambda name, result: name)
    own = tmp_path / "own.toml"
    own.write_text("epochs = 30\nlr = 0.3\n")
    assert spfde(f"--preset spfde-digits --recipe {own} --lr 0.2").exit_code == 0
    assert recipes == [Recipe(**{**presets.read("spfde-digits"), "epochs": 30, "lr": 0.2})]


def test_an_unknown_preset_is_named():
    said = "expected a preset to be one of spfde-cifar, .*, got 'spfde-digit', try 'spfde-digits'"
    with pytest.raises(ValueError, match=said):
        presets.read("spfde-digit")
