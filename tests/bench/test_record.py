"""Files of `spfde bench`: figures, what is beside what, significance, and every way in which a file can be none."""

import json
from dataclasses import replace

import pytest

from spfde.bench import Record, Row, changes, load

FLOPS = {"step": 600, "forward": 200}
DENSE = Row("a", "layer", "dense contiguous", "float32", 1, "cpu", flops=FLOPS, seconds={"step": (4.0, 4.0, 8.0)})
LAST = replace(DENSE, variant="dense channels_last", seconds={"step": (3.0, 3.0, 6.0), "forward": (1.0, 1.0, 1.0)})
SPARSE = replace(
    DENSE, variant="auto", pattern="unstructured", sparsity=0.9, density=0.1,
    seconds={"step": (1.0, 1.0, 2.0), "frozen": (0.5, 0.5, 1.0), "forward": (0.5, 0.5, 0.5)},
)  # fmt: skip
OTHER = replace(DENSE, subject="b")
RECORD = Record({"cpu": "x"}, "2026-11-29T00:00:00+00:00", "spfde bench", 3, (DENSE, LAST, SPARSE, OTHER), True)


def test_a_record_comes_back_as_it_was(tmp_path):
    path = RECORD.save(tmp_path / "deep" / "bench.json")
    assert load(path) == RECORD
    assert list(json.loads(path.read_text()))[:2] == ["format", "version"]


def test_speedup_is_over_the_fastest_dense_variant_of_the_part():
    assert RECORD.speedup(SPARSE).value == 3 and RECORD.speedup(DENSE).value == 0.75
    assert RECORD.speedup(SPARSE, "frozen").value == 6, "of a whole dense step"
    assert RECORD.speedup(SPARSE, "forward").value == 2
    assert RECORD.speedup(OTHER).value == 1 and RECORD.speedup(SPARSE, "backward") is None
    assert (SPARSE.median("step"), SPARSE.effective("step"), SPARSE.median("backward")) == (1.0, 600, None)


def test_changes_are_of_rows_that_both_have():
    wobble = (0.99, 1.0, 1.01, 1.0, 1.0, 1.02)
    old = replace(RECORD, rows=tuple(replace(row, seconds={"step": wobble}) for row in RECORD.rows))
    fast = replace(SPARSE, seconds={"step": tuple(0.5 * s for s in wobble)})
    now = replace(old, rows=(old.rows[0], fast))
    [change] = changes(old, now)
    assert change.significant and not change.slower and change.factor == pytest.approx(2, rel=0.05)
    [back] = changes(now, old)
    assert back.slower
    [same] = changes(old, old)
    assert not same.significant
    with pytest.raises(ValueError, match="both files"):
        changes(old, replace(old, rows=(OTHER,)))


def test_a_difference_within_noise_is_none():
    loud = replace(SPARSE, seconds={"step": (0.5, 1.5, 1.0, 2.0, 0.7, 1.2)})
    quiet = replace(DENSE, seconds={"step": (1.0,) * 6})
    one = replace(RECORD, rows=(quiet, loud))
    other = replace(RECORD, rows=(quiet, replace(loud, seconds={"step": tuple(1.3 * s for s in loud.seconds["step"])})))
    assert not changes(one, other)[0].significant
    far = replace(RECORD, rows=(quiet, replace(loud, seconds={"step": tuple(100 * s for s in loud.seconds["step"])})))
    assert changes(one, far)[0].resolution > 1, "as noisy as that"
    assert changes(one, far)[0].slower and changes(far, one)[0].significant
    assert "too noisy" in one.noise() and RECORD.noise() is None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"format": "spfde device profile"}, "another file"),
        ({"version": 7}, "version 1"),
        ({"repeats": "many"}, "repeats"),
        ({"rows": [{"subject": "x"}]}, "kind"),
        ({"rows": [{**json.loads(json.dumps(RECORD.to_dict()))["rows"][0], "seconds": {"step": ["fast"]}}]}, "step"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, change, named):
    path = tmp_path / "damaged.json"
    path.write_text(json.dumps({**RECORD.to_dict(), **change}))
    with pytest.raises(ValueError, match=named) as error:
        load(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[1]", "null"])
def test_what_is_no_json_is_told(tmp_path, text):
    path = tmp_path / "cut.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="spfde bench"):
        load(path)
