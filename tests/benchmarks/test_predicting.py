"""benchmarks/predicting.py once, on something small."""

import json

import predicting


def test_predicts_and_counts(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(predicting, "CHANGES", ("noisy",))
    monkeypatch.setattr(predicting, "TARGETS", (0.8,))
    monkeypatch.setattr(predicting, "SAMPLES", 20)
    predicting.main(["--seeds", "0", "--sparsities", "0.8", "--json", str(tmp_path / "record.json")])
    rows = json.loads((tmp_path / "record.json").read_text())["rows"]
    assert [(row["momentum"], row["target"]) for row in rows] == [(0.9, 0.8), (0.0, 0.8)]
    assert all(row["counted"] >= 1 and (row["predicted"] is not None) == (row["kept"] >= 0.9) for row in rows)
    assert "refused" in capsys.readouterr().out
