"""The page: whole, well-formed, self-contained, and safe whatever a run directory holds."""

from __future__ import annotations

import json
import re
import shlex
import sys
from html.parser import HTMLParser

import pytest

from spfde.report import compare, plots
from spfde.report.markup import Html, join, tag
from spfde.report.parts import command
from spfde.report.run import read
from spfde.report.theme import DARK, LIGHT, TOKEN
from spfde.train import Recipe

VOID = {"meta", "br", "link", "img", "input"}
ATTACK = "</title></style><script>alert(1)</script><img src=x onerror=alert(1)>\"'&$x_1$"


class Document(HTMLParser):
    """Collects tags, ids and text, and checks that tags close in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.attributes, self.text = [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_well_formed_and_holds_every_part(pair):
    report = compare(pair)
    page = Document(report.html())
    assert page.tags.count("svg") == 7
    assert len(page.ids) == len(set(page.ids))
    text = " ".join(page.text)
    assert report.verdicts[0].headline in text
    for section in report.sections:
        for row in section.rows:
            assert row.name in page.text
            assert row.meaning in page.text
            assert all(value in page.text for value in row.values)
    for wanted in (
        "9.9% dense, native below 40%",
        "swapped 1280 samples",
        "A CPU",
        "spfde train --method dense",
    ):
        assert wanted in text


def test_the_page_needs_nothing_else(pair):
    html = compare(pair).html()
    assert not re.search(r"https?:|//[a-z]|@import|<script|<link|javascript:", html)
    attributes = Document(html).attributes
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in attributes
    references = [v for n, v in attributes if n in ("href", "src", "xlink:href")]
    assert references
    assert all(value.startswith("#") for value in references)
    assert all(target in html for target in (f'id="{value[1:]}"' for value in references))


def test_both_themes_define_every_colour_and_no_drawing_fixes_one(pair):
    assert LIGHT.keys() == DARK.keys() == TOKEN.keys()
    html = compare(pair).html()
    assert "prefers-color-scheme:dark" in html
    assert not [token for token in TOKEN.values() if token in html]
    for svg in re.findall(r"<svg.*?</svg>", html, flags=re.S):
        assert not re.search(r"(fill|stroke): #", svg)


def test_whatever_a_run_holds_stays_text(make_run):
    layer = {
        "name": ATTACK,
        "kind": ATTACK,
        "shape": [4, 4],
        "sparsity": 0.5,
        "nnz": 8,
        "pattern": ATTACK,
        "kernel": ATTACK,
        "reason": ATTACK,
        "runs_sparse": False,
    }
    run = {"environment": {ATTACK: ATTACK, "cpu": ATTACK}, "version": ATTACK, "started": ATTACK}
    run["layout"] = {"name": ATTACK, "reason": ATTACK}
    recipe = {"dataset": ATTACK, "model": ATTACK, "method": ATTACK, ATTACK: ATTACK}
    path = make_run("hostile", run=run, recipe=recipe, layers=[layer])
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    lines[0]["events"] = [{"kind": ATTACK, "text": ATTACK, "reason": ATTACK}]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    report = compare([make_run("dense", "dense"), path])
    page = Document(report.html())
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert page.tags.count("style") == 1
    assert page.tags.count("title") == 1
    assert ATTACK in page.text
    report.table()


def test_the_same_runs_give_the_same_page(pair):
    assert compare(pair).html() == compare(pair).html()


def test_one_run_and_many_runs(make_run):
    sole = Document(compare([make_run("dense", "dense")]).html())
    assert sole.tags.count("svg") == 5  # no sparse layer to show
    many = [make_run(f"s{i}", accuracy=0.9 + i / 100) for i in range(7)]
    page = Document(compare(many).html())
    assert page.tags.count("svg") == 5 + 2 * 7
    assert len(page.ids) == len(set(page.ids))


def test_what_an_older_run_did_not_record_is_not_drawn(make_run):
    path = make_run("old")
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        del line["layers"], line["memory"]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = Document(compare([path]).html())
    assert page.tags.count("svg") == 4 + 1
    assert "Peak memory" not in page.text
    both = Document(compare([path, make_run("new")]).html())
    assert both.tags.count("svg") == 5 + 1 + 2


def test_a_layer_has_one_shape_for_every_stretch_of_equal_sparsity(make_run):
    layers = {"conv1": 0.0, "conv2": 0.9}
    path = make_run("a")
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    for index, line in enumerate(lines):
        line["layers"] = layers | {"conv1": 0.5 if index in (2, 3) else 0.8}
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    drawing = str(plots.sparsity(read(path), 1))
    assert re.findall(r"opacity: ([\d.]+)", drawing)[:4] == ["0.8", "0.5", "0.8", "0.9"]


def test_a_run_without_an_error_left_can_be_drawn(make_run):
    html = compare([make_run("dense", "dense", accuracy=1.0), make_run("s", accuracy=1.0)]).html()
    assert "100.0% at the end" in html


def test_one_epoch_can_be_drawn(make_run):
    assert "<svg" in compare([make_run("dense", "dense", epochs=1)]).html()


def test_the_command_trains_the_recipe_again():
    recipe = Recipe(method="dense", epochs=3, lr=0.05, block_cosine=False, out="runs/a b")
    words = shlex.split(command(recipe.to_dict()))
    assert words[:2] == ["spfde", "train"]
    assert words[2:] == [
        "--method",
        "dense",
        "--epochs",
        "3",
        "--lr",
        "0.05",
        "--no-block-cosine",
        "--out",
        "runs/a b",
    ]
    own = Recipe(sparsity=0.8, freeze=0.1, sieve=0.1)
    assert command(own.to_dict()) == "spfde train --sparsity 0.8"
    step = json.loads(json.dumps(Recipe(schedule="step", milestones=(0.3, 0.6), optimizer="adamw").to_dict()))
    assert command(step) == "spfde train --optimizer adamw --schedule step --milestones 0.3,0.6"


def test_save_makes_the_directory(pair, tmp_path):
    path = compare(pair).save(tmp_path / "deep" / "report.html")
    assert path.read_text(encoding="utf-8") == compare(pair).html()
    with pytest.raises(OSError, match="expected to write the page .*, got Is a directory, try another out"):
        compare(pair).save(tmp_path)


def test_missing_matplotlib_says_what_to_install(pair, monkeypatch):
    report = compare(pair)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"expected matplotlib.*try pip install spfde\[report\]"):
        report.html()
    report.table()


def test_markup_escapes_what_is_not_markup():
    assert tag("td", "a < b", class_='"x"') == '<td class="&quot;x&quot;">a &lt; b</td>'
    assert tag("p", tag("b", "x"), "&", id=None) == "<p><b>x</b>&amp;</p>"
    assert tag("meta", http_equiv="a", name="b") == '<meta http-equiv="a" name="b">'
    assert isinstance(join("<", Html("<br>")), Html)
