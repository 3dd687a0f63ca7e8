"""Recipes as TOML, alone and under flags; and 500 bad ones, each answered in one clear line."""

import dataclasses
import os
import random
import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spfde import cli
from spfde.cli import train as cli_train
from spfde.train import Recipe
from spfde.train.build import build
from spfde.train.recipe import toml as recipe_file
from spfde.train.session import Inputs

FIELDS = {item.name: item for item in dataclasses.fields(Recipe)}


@given(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1),
    st.floats(0, 1, exclude_max=True),
    st.lists(st.floats(0.001, 0.999), min_size=1, unique=True).map(sorted),
    st.booleans(),
)
def test_text_and_back(tmp_path_factory, out, sparsity, milestones, flip):
    recipe = Recipe(out=out, sparsity=sparsity, schedule="step", milestones=tuple(milestones), flip=flip, lr=1e-20)
    path = tmp_path_factory.mktemp("recipes") / "recipe.toml"
    path.write_text(recipe_file.text(recipe), encoding="utf-8", newline="")
    assert Recipe(**recipe_file.read(path)) == recipe


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"epochs = ", r"expected TOML in .*bad\.toml, got an error \(.*\), try lines like: epochs = 10"),
        (b"\xff\xfe", "expected TOML in .*, got an error"),
        (b"epochs = 1\nepochs = 2", "expected TOML in .*, got an error"),
        (b"epochs = " + b"[" * 100_000, "expected TOML in .*, got an error"),
        (b"sparcity = 0.5", r"expected only a recipe's fields in .*bad\.toml, got 'sparcity', try 'sparsity'"),
        (b"[train]\nepochs = 2", "expected only a recipe's fields in .*, got 'train', try"),
    ],
)
def test_what_is_no_recipe_is_refused(content, said, tmp_path):
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=said):
        recipe_file.read(path)


def test_a_path_that_is_not_utf8_is_a_comment(tmp_path):
    (tmp_path / "recipe.toml").write_text(
        recipe_file.text(Recipe(epochs=7, out=os.fsdecode(b"r\xff"))), encoding="utf-8"
    )
    assert '# not UTF-8: out = "r\\udcff"\n' in (tmp_path / "recipe.toml").read_text(encoding="utf-8")
    fields = recipe_file.read(tmp_path / "recipe.toml")
    assert fields["epochs"] == 7 and "out" not in fields


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"expected a recipe in .*none\.toml, got No such file .*, try the path of"):
        recipe_file.read(tmp_path / "none.toml")
    with pytest.raises(ValueError, match="expected a recipe in .*, got .*, try"):
        recipe_file.read(tmp_path)


@pytest.fixture
def spfde(monkeypatch):
    """The command line in this process: what it says when it gives up, or the recipes it would train."""
    recipes = []
    monkeypatch.setattr(cli_train, "fit", lambda recipe, **options: recipes.append(recipe))
    monkeypatch.setattr(cli_train, "outcome", lambda name, result: name)

    def run(*arguments):
        recipes.clear()
        monkeypatch.setattr("sys.argv", ["spfde", "train", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return str(stopped.value) if stopped.value.code else list(recipes)

    return run


def test_flags_win_over_the_file(spfde, tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text('schedule = "step"\nmilestones = [0.3, 0.6]\nepochs = 7\nlr = 0.05\nflip = true\n')
    (recipe,) = spfde("--recipe", path, "--lr", 0.2, "--no-flip")
    assert recipe == Recipe(schedule="step", milestones=(0.3, 0.6), epochs=7, lr=0.2)
    (recipe,) = spfde("--schedule", "step", "--milestones", "0.25,0.5", "--nesterov")
    assert recipe == Recipe(schedule="step", milestones=(0.25, 0.5), nesterov=True)


def test_milestones_that_are_no_numbers_are_refused(spfde, capsys):
    spfde("--schedule", "step", "--milestones", "0.5;0.75")
    assert "expected numbers, got '0.5;0.75', try 0.5,0.75" in re.sub(r"[\s│]+", " ", capsys.readouterr().err)


WILD = [
    "-1",
    "1e400",
    "-inf",
    "nan",
    "[]",
    "[1, [2]]",
    "{a = 1}",
    '""',
    '"\\u0000"',
    "1979-05-27",
    "true",
    '"?"',
    "99e99",
]
CLASH = {
    'optimizer = "adamw"\nnesterov = true': "nesterov",
    "beta2 = 0.9": "beta2",
    "gamma = 0.5": "gamma",
    'schedule = "step"\nblock_cosine = true': "block_cosine",
    "batch_size = 4\naccumulate = 3": "accumulate",
    'method = "dense"\nsieve = 0.5': "sieve",
    "momentum = 0\nnesterov = true": "momentum",
}
ABSENT = {
    'dataset = "digit"': "'digits'",
    'dataset = "cifar10"': "data_dir",
    'data_dir = "x"': "data_dir",
    "image_size = 64": "image_size",
    'dataset = "cifar100"\ndata_dir = "none"': "none/train.bin",
    'dataset = "folder"\ndata_dir = "none"': "none/train",
    'dataset = "arrays"\ndata_dir = "none"': "none/train_images.npy",
    'dataset = "idx"\ndata_dir = "none"': "none-train-images-idx3-ubyte",
}


def refused(field: str, text: str) -> bool:
    value = recipe_file._parser().loads(f"value = {text}")["value"]
    return not FIELDS[field].metadata["rule"].accepts(tuple(value) if isinstance(value, list) else value)


def bad_recipe(random: random.Random) -> tuple[bytes, str]:
    """Make a recipe that is wrong in one way, and a word that the answer must have."""
    lines = random.sample(["epochs = 4", "lr = 0.05", 'model = "resnet20"', "width = 0.5", "seed = 3"], 2)
    name = random.choice([name for name in FIELDS if not any(line.startswith(f"{name} ") for line in lines)])
    match random.randrange(5):
        case 0:
            place = random.randrange(len(name))
            word = random.choice([name[:place] + name[place + 1 :] + "_", name[:place] + "q" + name[place:]])
            lines.append(f"{word} = 1")
        case 1:
            word = name
            lines.append(f"{name} = {random.choice([text for text in WILD if refused(name, text)])}")
        case 2:
            name = random.choice([name for name in FIELDS if FIELDS[name].metadata["rule"].names])
            word = "".join(random.choices(string.ascii_letters, k=5))
            lines.append(f'{name} = "{word}"')
        case 3:
            line, word = random.choice([*CLASH.items(), *ABSENT.items()])
            lines.append(line)
        case 4:
            word = "TOML"
            lines.append(
                name + random.choice(["", " = ", " == 1", " = 'x", " = \udcff", " = 1 2", " = [1", " = 1\n" + lines[0]])
            )
    return "\n".join(lines).encode(errors="surrogateescape"), word


def test_bad_recipes_give_one_clear_line_each(spfde, monkeypatch, tmp_path):
    monkeypatch.setattr(cli_train, "fit", lambda recipe, **options: build(Inputs(recipe)))
    monkeypatch.chdir(tmp_path)
    chance = random.Random(0)
    for number in range(150):
        content, word = bad_recipe(chance)
        path = tmp_path / "bad.toml"
        path.write_bytes(content)
        said = spfde("--recipe", path)
        assert re.fullmatch(r"spfde: expected .+, got .+, try .+", said), (number, content, said)
        assert word in said, (number, content, said)
