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
from spfde.report.run import read
from spfde.report.settings import command
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


def test_the_page_is_well_formed_and_holds_every_part(compared):
    report, html = compared
    page = Document(html)
    assert page.tags.count("svg") == 8
    assert len(page.ids) == len(set(page.ids))
    assert report.verdicts[0].headline in " ".join(page.text)
    for row in (row for section in report.sections for row in section.rows):
        assert {row.name, row.meaning, *row.values} <= set(page.text)


def test_the_page_needs_nothing_else(compared):
    _, html = compared
    assert not re.search(r"https?:|//[a-z]|@import|<script|<link|javascript:", html)
    attributes = Document(html).attributes
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'; img-src data:") in attributes
    assert [v for n, v in attributes if n == "src"] == ["data:image/png;base64,iVBORw0KGgo="]
    references = [v for n, v in attributes if n in ("href", "xlink:href")]
    assert references
    assert all(f'id="{value[1:]}"' in html for value in references)


def test_both_themes_define_every_colour_and_no_drawing_fixes_one(compared):
    assert LIGHT.keys() == DARK.keys() == TOKEN.keys()
    _, html = compared
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
    sample = {"sample": 1, "label": ATTACK, "presentations": 1, "png": ATTACK}
    sieve = {"method": ATTACK, "num_samples": 8, "saved": 0.5, "reason": ATTACK, "extra_seconds": 2.0}
    (path / "sieve.json").write_text(json.dumps(sieve | {"never_learned": 1, "first": [sample]}))
    report = compare([make_run("dense", "dense"), path])
    page = Document(report.html())
    assert "script" not in page.tags
    assert page.tags.count("img") == 1  # the sample's own, whose address can be nothing but a picture
    assert [value for name, value in page.attributes if name == "src"] == [f"data:image/png;base64,{ATTACK}"]
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert page.tags.count("style") == 1
    assert page.tags.count("title") == 1
    assert ATTACK in page.text
    report.table()


def test_the_same_runs_give_the_same_page_and_save_makes_the_directory(compared, tmp_path):
    report, html = compared
    assert report.save(tmp_path / "deep" / "report.html").read_text(encoding="utf-8") == html
    with pytest.raises(OSError, match="directory"):
        report.save(tmp_path)


def test_what_an_older_run_did_not_record_is_not_drawn(make_run):
    path = make_run("old")
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        del line["layers"], line["memory"]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = Document(compare([path]).html())
    assert page.tags.count("svg") == 4 + 1 + 1
    assert "Peak memory" not in page.text


def test_the_page_draws_what_froze_when(make_run):
    page = compare([make_run("new")]).html()
    assert "Progressive, single-shot. FLOPs: 5.3% planned, 2.7% saved; seconds: 2.4% saved." in page
    old = make_run("old", run={"freezing": {"plan": [[4, "layer1.0"]], "reason": "planned"}})
    assert "a freezer. seconds: 2.4% saved." in compare([old]).html()
    dense = compare([make_run("dense", "dense")]).html()
    assert "What froze when" not in dense


def test_the_page_shows_what_was_never_learnt(make_run):
    path = make_run("sieved")
    page = Document(compare([path]).html())
    assert "spfde, Circular: 20.0% of the presentations left out. 3 of 8,000 samples presented and never" in " ".join(
        page.text
    )
    assert page.tags.count("img") == 1 and {"17: 4 (6x)", "5: 9 (5x)"} <= set(page.text)
    (path / "sieve.json").unlink()  # of an older run
    assert "never learnt" not in compare([path]).html()
    (path / "sieve.json").write_text('{"method": 3}')
    with pytest.raises(ValueError, match=r"expected .* in .*sieve.json"):
        read(path)


def test_a_layer_has_one_shape_for_every_stretch_of_equal_sparsity(make_run):
    layers = {"conv1": 0.0, "conv2": 0.9}
    path = make_run("a")
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    for index, line in enumerate(lines):
        line["layers"] = layers | {"conv1": 0.5 if index in (2, 3) else 0.8}
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    drawing = str(plots.sparsity(read(path), 1))
    assert re.findall(r"opacity: ([\d.]+)", drawing)[:4] == ["0.8", "0.5", "0.8", "0.9"]


def test_one_epoch_without_an_error_left_can_be_drawn(make_run):
    assert "<svg" in compare([make_run("dense", "dense", epochs=1, accuracy=1.0)]).html()


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
    asked = Recipe(topology="set", topology_options={"split_signs": True}).to_dict()
    assert command(asked) == "spfde train --topology set --topology-options split_signs=true"
    step = json.loads(json.dumps(Recipe(schedule="step", milestones=(0.3, 0.6), optimizer="adamw").to_dict()))
    assert command(step) == "spfde train --optimizer adamw --schedule step --milestones 0.3,0.6"


def test_missing_matplotlib_says_what_to_install(compared, monkeypatch):
    report, _ = compared
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"spfde\[report\]"):
        report.html()
    report.table()


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_text_and_lines_stand_out_from_the_paper(theme):
    for ground in ("paper", "surface"):
        assert contrast(theme["ink"], theme[ground]) >= 7
        assert contrast(theme["muted"], theme[ground]) >= 4.5
    assert contrast(theme["warn"], theme["paper"]) >= 4.5
    assert all(contrast(theme[line], theme["paper"]) >= 3 for line in theme if line.startswith("run"))


def test_markup_escapes_what_is_not_markup():
    assert tag("td", "a < b", class_='"x"') == '<td class="&quot;x&quot;">a &lt; b</td>'
    assert tag("p", tag("b", "x"), "&", id=None) == "<p><b>x</b>&amp;</p>"
    assert tag("meta", http_equiv="a", name="b") == '<meta http-equiv="a" name="b">'
    assert isinstance(join("<", Html("<br>")), Html)
