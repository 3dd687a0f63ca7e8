"""benchmarks/online.py: its rule by hand, and all arms once on something small."""

import json

import online
import torch


def test_lazy_waits_longer_while_nothing_rises_and_not_at_all_after_a_fall():
    lazy = online.Lazy()
    assert [(lazy.note(a), lazy.wait) for a in (0.5, 0.5, 0.6, 0.55, 0.3, 0.3)] == [
        (False, 2), (False, 4), (False, 1), (False, 2), (True, 1), (False, 2),
    ]  # fmt: skip


def test_a_round_draws_none_twice_before_all_were_drawn():
    for count in (24, 32, 256):
        batches = list(online.round_of(count, torch.Generator().manual_seed(0)))
        drawn = torch.cat(batches)
        assert [len(batch) for batch in batches] == [online.BATCH] * online.STEPS
        firsts = drawn[: min(count, len(drawn))]
        assert firsts.unique().numel() == len(firsts) and int(drawn.max()) < count


def test_measures_every_arm(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(online, "SCENARIOS", ("inverted",))
    path = tmp_path / "record.json"
    online.main(["--seeds", "0", "--arrivals", "2", "--images", "64", "--epochs", "1", "--json", str(path)])
    rows = json.loads(path.read_text())["rows"]
    assert [row["arm"] for row in rows] == [arm.name for arm in online.ARMS]
    assert [row["rounds"] for row in rows[:2]] == [2, 1]
    assert all(0 <= row["accuracy"] <= 1 and row["seconds"] > 0 for row in rows)
    assert all((row["joules"] is None) == bool(row["why"]) for row in rows)
    printed = capsys.readouterr().out
    assert online.table([online.Row(**row) for row in rows]) in printed
    assert all(f"no joules: {row['why']}" in printed for row in rows if row["why"])


def test_the_table_compares_within_a_seed():
    rows = [
        online.Row(arm.name, seed, right - number / 10, 4.0 / (number + 1), 80, number / 10, 2.0 * (seed + 1), "")
        for number, arm in enumerate(online.ARMS)
        for seed, right in enumerate((0.8, 0.9))
    ]
    first, second = online.table(rows).splitlines()[2:4]
    assert first == "| immediate | 85.0 ± 7.1 | - | 4.00 ± 0.00 | - | 80 | 0% | 3.0 ± 1.4 |"
    assert second == "| every second | 75.0 ± 7.1 | -10.0 ± 0.0 | 2.00 ± 0.00 | 50 ± 0% | 80 | 10% | 3.0 ± 1.4 |"
