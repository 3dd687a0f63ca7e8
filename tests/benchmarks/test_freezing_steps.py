"""benchmarks/freezing_steps.py once, on something small."""

import json

import freezing_steps


def test_measures_every_way_of_the_front(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(freezing_steps, "SHARES", (0.0, 2 / 3))
    monkeypatch.setattr(freezing_steps, "WARMUP", 0)
    small = ["--model", "resnet20", "--width", "0.25", "--batch", "2", "--size", "8", "--rounds", "1", "--threads", "1"]
    freezing_steps.main([*small, "--json", str(tmp_path / "record.json")])
    rows = json.loads((tmp_path / "record.json").read_text())["rows"]
    ways = [("0", "plain"), *(("2/3", way) for way in ("plain", "prefix", "cache", "live"))]
    assert [(row["frozen"], row["way"]) for row in rows] == 2 * ways
    assert all(row["seconds"]["median"] > 0 for row in rows)
    assert len(capsys.readouterr().out.splitlines()) == 11
