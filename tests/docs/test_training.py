"""The recipe file and the data sets of the guides are what the library takes."""

import inspect
import re
from pathlib import Path

import torch

from spfde import data
from spfde.train import Recipe
from spfde.train.recipe import toml

DOCS = Path(__file__).parents[2] / "docs"


def test_the_recipe_file_is_one(tmp_path):
    (text,) = re.findall(r"```toml\n(.*?)```", (DOCS / "training.md").read_text(encoding="utf-8"), re.S)
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    values = toml.read(path)
    assert len(values) == 10
    recipe = Recipe(**values)
    assert (recipe.dataset, recipe.milestones, recipe.sparsity) == ("cifar10", (0.5, 0.75), 0.8)


def test_every_data_set_is_listed_with_its_options():
    rows = re.findall(r"^\| (`.+?) \| .+? \| (`.+?) \|$", (DOCS / "data.md").read_text(encoding="utf-8"), re.M)
    listed = {
        name: re.findall(r"`(\w+)`", options) for names, options in rows for name in re.findall(r"`(\w+)`", names)
    }
    assert listed == {
        name: [option for option in inspect.signature(loader).parameters if option not in ("train", "test")]
        for name, loader in data.DATASETS.items()
    }


def test_the_augmentation_example_runs():
    code = re.findall(r"```python\n(.*?)```", (DOCS / "data.md").read_text(encoding="utf-8"), re.S)[-1]
    names = {"data": data, "images": torch.randn(4, 3, 8, 8), "indices": torch.arange(4), "epoch": 1}
    exec(compile(code, "data.md", "exec"), names)
    assert names["images"].shape == (4, 3, 8, 8)
