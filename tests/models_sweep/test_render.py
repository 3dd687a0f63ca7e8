"""The page of models tested: what ran is shown, what did not keeps its older cell and says so."""

from models_sweep.render import page

VERSIONS = {"date": "2026-11-30", "versions": {"torch": "2.13.0"}}


def row(model: str, stage: str, found: str, **more) -> dict:
    return {"model": model, "stage": stage, "found": found, "passed": True, **more}


def test_cells_that_did_not_run_again_are_kept_and_marked():
    first = page({**VERSIONS, "date": "2026-11-29", "rows": [row("a", "fuse", "1; 0.1"), row("b", "train", "0.2")]})
    assert "| a | not run | 1; 0.1 | not run | not run | not run |" in first and "†" not in first
    second = page({**VERSIONS, "rows": [row("a", "fuse", "2; 0.3")]}, first)
    assert "| a | not run | 2; 0.3 | not run |" in second and "| b | not run | not run | 0.2 † | not run |" in second
    assert "Run on 2026-11-30 (1 cells marked † earlier, from 2026-11-29 on), 2 models" in second
    third = page({**VERSIONS, "date": "2026-12-01", "rows": [row("b", "train", "0.4"), row("c", "move", "")]}, second)
    assert "2; 0.3 †" in third and "| 0.4 |" in third and "from 2026-11-29 on" in third


def test_failures_and_known_exceptions_are_told():
    refused = row("a", "freeze", "", reason="it is one block")
    told = page({**VERSIONS, "rows": [refused, row("a", "fuse", "") | {"passed": False}]})
    assert "| a | not run | **failed** | not run | not run | refused |" in told and "- a: it is one block." in told
