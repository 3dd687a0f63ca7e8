"""The page in a real browser, headless: on a phone and on a desk, light and dark."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess

import pytest

from spfde.report import compare
from spfde.report.theme import DARK, LIGHT

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WIDTHS = {"phone": 360, "desk": 1280}
SCHEMES = {"dark": 0, "light": 1}  # what Chromium calls preferredColorScheme

# The page runs no script, so that another one looks into it; a frame's width is a screen's width to the page.
FRAME = """<!doctype html><meta charset="utf-8"><pre id="seen"></pre>
<iframe style="width:{width}px;height:900px;border:0" srcdoc="{page}"></iframe>
<script>
const frame = document.querySelector("iframe");
frame.onload = () => {{
  const page = frame.contentDocument, root = page.documentElement;
  const style = element => frame.contentWindow.getComputedStyle(element);
  const scale = text => Math.hypot(text.getScreenCTM().a, text.getScreenCTM().b);
  const texts = [...page.querySelectorAll("svg text")].filter(text => text.textContent.trim());
  const past = element => element.getBoundingClientRect().right > root.clientWidth + 1 && !element.closest(".scroll");
  document.getElementById("seen").textContent = JSON.stringify({{
    client: root.clientWidth,
    scroll: root.scrollWidth,
    past: [...page.querySelectorAll("body *")].filter(past).map(element => element.outerHTML.slice(0, 99)),
    drawings: [...page.querySelectorAll("figure svg")].map(svg => [svg.clientWidth, svg.clientHeight]),
    columns: new Set([...page.querySelectorAll(".figures figure")].map(f => f.offsetLeft)).size,
    smallest: Math.min(...texts.map(t => parseFloat(style(t).fontSize) * scale(t))),
    headline: style(page.querySelector("h1")).fontSize,
    paper: style(page.body).backgroundColor,
    ink: style(page.body).color,
    axis: style(texts[0]).fill,
    text: page.body.innerText,
  }});
}};
</script>"""


def look(page, folder, width, scheme):
    """What Chromium makes of a page, and what it has to complain of."""
    file = folder / "frame.html"
    file.write_text(FRAME.format(width=width, page=html.escape(page)), encoding="utf-8")
    run = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}",
         f"--blink-settings=preferredColorScheme={scheme}", "--enable-logging=stderr", "--dump-dom", file.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    seen = json.loads(html.unescape(re.search(r'<pre id="seen">(.+?)</pre>', run.stdout, flags=re.S)[1]))
    return seen, [line for line in run.stderr.splitlines() if "CONSOLE" in line]


def rgb(colour):
    return f"rgb({', '.join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))})"


@pytest.fixture
def crowded(make_run):
    """Four runs, with names that do not break and a deep network."""
    names = [f"backbone.stages.{i}.blocks.3.attention.projection" for i in range(24)]
    layer = {"kind": "SparseLinear", "shape": [64, 64], "sparsity": 0.9, "nnz": 410, "pattern": "unstructured"}
    layer |= {"kernel": "native", "reason": "predicted 3.1x the dense product at density 0.1", "runs_sparse": True}
    layers = [layer | {"name": name} for name in names]
    paths = [make_run("dense", "dense", epochs=12)]
    return [*paths, *(make_run("s" + "x" * 60 + str(i), epochs=12, layers=layers) for i in range(3))]


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("screen", WIDTHS)
def test_the_page_fits_the_screen_and_follows_the_theme(screen, scheme, crowded, tmp_path):
    report = compare(crowded)
    seen, complaints = look(report.html(), tmp_path, WIDTHS[screen], SCHEMES[scheme])
    assert complaints == []
    assert seen["past"] == [], "nothing is wider than the screen; tables scroll on their own"
    assert seen["scroll"] == seen["client"]
    assert len(seen["drawings"]) == 5 + 2 * 3
    assert all(width > 250 and height > 80 for width, height in seen["drawings"])
    assert seen["columns"] == (1 if screen == "phone" else 2)
    assert seen["smallest"] >= 8
    theme = DARK if scheme == "dark" else LIGHT
    assert (seen["paper"], seen["ink"]) == (rgb(theme["paper"]), rgb(theme["ink"]))
    assert seen["axis"] in {rgb(theme["ink"]), rgb(theme["muted"])}
    assert report.verdicts[0].headline in seen["text"]


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
    for line in (name for name in theme if name.startswith("run")):
        assert contrast(theme[line], theme["paper"]) >= 3, line
