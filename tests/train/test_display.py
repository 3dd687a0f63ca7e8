import io

from rich.console import Console

from spfde.cli.display import Display, epoch_line, event_line, recipe_lines
from spfde.levers import Decision
from spfde.train import Epoch, Recipe
from spfde.train.stats import CATEGORIES

RECIPE = Recipe(epochs=4, threads=2)
EVENT = Decision("freeze", "froze [layer1.0]", "planned [so]")


def record(epoch):
    return Epoch(
        epoch=epoch,
        train_loss=0.25,
        train_accuracy=0.5,
        test_accuracy=1.0,
        lr=0.1,
        samples=90,
        flops=1e9,
        seconds=dict.fromkeys(CATEGORIES, 1.0),
        frozen=(),
        sieved=0,
        sparsity=0.9,
        events=(EVENT,),
    )


def watched(terminal: bool) -> str:
    """What a short run prints."""
    console = Console(file=io.StringIO(), force_terminal=terminal, width=120, color_system=None)
    display = Display(console, "spfde")
    display.start(RECIPE, 1, "contiguous: as the recipe says")
    display.event(1, EVENT)
    display.step(1, 2, 5, 18, 0.3)
    display.epoch(record(1))
    display.close()
    return console.file.getvalue()


def test_a_reason_is_told_when_it_is_new():
    console = Console(file=io.StringIO(), width=120)
    display = Display(console, "spfde")
    display.start(RECIPE, 0, "")
    events = [Decision(*e) for e in (("freeze", "a", "plan"), ("sieve", "b", "plan"), ("freeze", "c", "plan"))]
    for event in (*events, Decision("freeze", "d", "another plan")):
        display.event(0, event)
    assert console.file.getvalue().splitlines()[-4:] == [
        "  freeze: a, because: plan",
        "  sieve: b, because: plan",
        "  freeze: c",
        "  freeze: d, because: another plan",
    ]


def test_without_a_terminal_there_are_plain_lines_only():
    *recipe, first, deed, second = watched(terminal=False).splitlines()
    assert "\n".join(recipe) == recipe_lines(RECIPE)
    assert "threads=2" in recipe[-1] and all(len(line) <= 110 for line in recipe)
    assert first == "spfde: starts at epoch 1, contiguous: as the recipe says"
    assert deed == event_line(EVENT)
    assert second == epoch_line(record(1), 4)


def test_a_terminal_has_a_live_line_with_rate_and_last_event():
    text = watched(terminal=True)
    assert "samples/s" in text and "epoch 1 (2/4)" in text
    assert text.count("froze [layer1.0]") > text.count(event_line(EVENT)) == 1, "a line, and the live one"
    assert epoch_line(record(1), 4) in text


def test_the_live_line_is_not_drawn_at_every_step(monkeypatch):
    console = Console(file=io.StringIO(), force_terminal=True, width=120, color_system=None)
    display = Display(console, "spfde")
    display.start(RECIPE, 0, "")
    display.step(0, 0, 900, 16, 0.3)
    drawn = len(console.file.getvalue())
    for step in range(1, 9):
        display.step(0, step, 900, 16, 0.3)
    assert len(console.file.getvalue()) == drawn
    display.close()
