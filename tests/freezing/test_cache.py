"""The activation cache against a dictionary: what is read is what was written, within the storage type's error."""

import gc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spfde import keep_memory
from spfde.freezing import ActivationCache
from spfde.freezing.cache import budget as budgets
from spfde.freezing.cache import opening
from spfde.freezing.cache.row import STORED
from spfde.freezing.cache.store import INDEX

SAMPLES, PLENTY = 12, 2**20
SHAPES = {"map": (3, 2, 4), "tokens": (4, 3), "vector": (5,)}
# Any index the others' order makes room for: far apart, beyond 32 bits.
FAR = 2**40


def bound(values, dtype, shape):
    """The largest error of each value [n, *shape], in float64."""
    values = values.double()
    if not len(values):
        return values
    if dtype == "int8":
        across = {1: (1,), 2: (1,), 3: (2, 3)}[len(shape)]
        span = values.amax(across, keepdim=True) - values.amin(across, keepdim=True)
        return span / 510 + 1e-6 * values.abs().amax()
    return values.abs() * {"float32": 0.0, "bfloat16": 2**-8, "float16": 2**-11}[dtype] + 2**-26 * (dtype != "float32")


def batch(seed, count, shape, channels_last=False):
    made = torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed)) * 10
    return made.contiguous(memory_format=torch.channels_last) if channels_last else made


def opened(path, dtype, shape, rows=None, variants=1, channels_last=False, samples=SAMPLES, key="front"):
    """A cache with room for `rows` rows of float32 (all if None), and its open store."""
    cache = ActivationCache(path, dtype=dtype, variants=variants, budget=PLENTY)
    if rows is not None:
        cache.open("", samples, shape, torch.float32, channels_last)
        cache.budget = rows * (cache._store.row.bytes + INDEX)
    cache.open(key, samples, shape, torch.float32, channels_last)
    return cache


indices = st.lists(st.integers(0, SAMPLES - 1), max_size=8)
operations = st.lists(
    st.one_of(
        st.tuples(st.just("write"), indices, st.integers(0, 99)),
        st.tuples(st.just("keep"), indices),
        st.tuples(st.sampled_from(["drop", "reopen", "other key"])),
    ),
    max_size=8,
)


@settings(max_examples=60)
@given(
    operations,
    st.sampled_from(sorted(STORED)),
    st.sampled_from(sorted(SHAPES)),
    st.booleans(),
    st.booleans(),
    st.sampled_from([1, 3]),
    st.sampled_from([None, 3, 9]),
)
def test_any_history_is_that_of_a_dictionary(tmp_path_factory, operations, dtype, form, on_disk, last, variants, rows):
    shape = SHAPES[form]
    last = last and form == "map"
    path = tmp_path_factory.mktemp("cache") if on_disk else None
    cache = opened(path, dtype, shape, rows, variants, last)
    model = {}
    for name, *values in operations:
        if name == "write":
            wanted, seed = values
            variant = torch.tensor([(sample + seed) % variants for sample in wanted], dtype=torch.int64)
            made = batch(seed, len(wanted), shape, last)
            got = cache.write(torch.tensor(wanted, dtype=torch.int64), made, variant)
            assert (got - made).double().abs().le(bound(made, dtype, shape)).all()
            model.update({(s, int(v)): row for s, v, row in zip(wanted, variant, got, strict=True)})
        elif name == "keep":
            cache.keep(torch.tensor(values[0], dtype=torch.int64))
        elif name == "drop":
            cache.drop()
            assert not cache.lookup(torch.arange(SAMPLES), torch.zeros(SAMPLES, dtype=torch.int64)).any()
            cache.open("front", SAMPLES, shape, torch.float32, last)
            model = {}
        elif name == "reopen":
            budget = cache.budget
            cache.close()
            cache = ActivationCache(path, dtype=dtype, variants=variants, budget=budget)
            cache.open("front", SAMPLES, shape, torch.float32, last)
            model = model if on_disk else {}
        else:
            cache.open(name, SAMPLES, shape, torch.float32, last)
            cache.open("front", SAMPLES, shape, torch.float32, last)
            model = {}
        every = [(s, v) for s in range(SAMPLES) for v in range(variants)]
        samples, variant = (torch.tensor(each) for each in zip(*every, strict=True))
        there = cache.lookup(samples, variant)
        held = [key for key, found in zip(every, there.tolist(), strict=True) if found]
        read = cache.read(samples[there], variant[there])
        assert read.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
        assert len(held) == cache.stats.held <= cache.stats.capacity
        assert {*held} <= {*model}
        assert all(torch.equal(row, model[key]) for key, row in zip(held, read, strict=True))
        if rows is None:
            assert {*held} == {*model}
    cache.close()


@pytest.mark.parametrize("on_disk", [False, True])
def test_without_room_those_that_a_sieve_let_go_leave_and_nobody_else(tmp_path, on_disk):
    cache = opened(tmp_path if on_disk else None, "float32", (5,), rows=4)
    first = torch.tensor([0, 1, 2, 3])
    cache.write(first, batch(0, 4, (5,)))
    cache.write(torch.tensor([4, 5]), batch(1, 2, (5,)))
    assert cache.lookup(torch.arange(6)).tolist() == [True] * 4 + [False] * 2
    cache.keep(torch.tensor([0, 3, 4, 5, 6]))
    assert cache.lookup(first).all()  # a sieve brings samples back: they stay while there is room
    new = cache.write(torch.tensor([4, 5, 6]), batch(2, 3, (5,)))
    assert cache.lookup(torch.arange(7)).sum() == 4
    assert cache.lookup(torch.tensor([0, 3, 4, 5])).all()
    assert torch.equal(cache.read(torch.tensor([5, 4])), new[[1, 0]])
    assert cache.stats.evicted == 2
    cache.keep(torch.tensor([4, 5]))
    both = cache.write(torch.tensor([7, 0]), batch(3, 2, (5,)))  # one of those let go comes back itself
    assert torch.equal(cache.read(torch.tensor([0, 7])), both[[1, 0]])
    assert cache.lookup(torch.arange(8)).tolist() == [True, False, False, False, True, True, False, True]
    cache.close()


def test_indices_far_apart_take_no_room():
    cache = opened(None, "float32", (5,), rows=4, samples=FAR)
    made = batch(0, 3, (5,))
    cache.write(torch.tensor([FAR - 1, 2**31, 0]), made)
    assert torch.equal(cache.read(torch.tensor([2**31, FAR - 1])), made[[1, 0]])
    assert cache.stats.held == 3


@pytest.mark.parametrize(("dtype", "wrong"), [("float16", 1e6), ("int8", float("inf")), ("int8", float("nan"))])
def test_what_a_type_cannot_hold_is_not_kept(dtype, wrong):
    cache = opened(None, dtype, (5,))
    cache.write(torch.arange(3), batch(0, 3, (5,)))
    made = batch(1, 3, (5,))
    made[1, 2] = wrong
    assert torch.equal(cache.write(torch.arange(3), made)[1].nan_to_num(), made[1].nan_to_num())
    assert cache.lookup(torch.arange(3)).tolist() == [True, False, True]
    assert cache.stats.rejected == 1


def test_zeros_behind_a_relu_stay_zeros_in_int8():
    cache = opened(None, "int8", (3, 2, 4))
    made = batch(0, 6, (3, 2, 4)).relu()
    cache.write(torch.arange(6), made)
    assert (cache.read(torch.arange(6))[made == 0] == 0).all()


def test_narrow_activations_are_kept_as_they_are():
    for dtype in (torch.bfloat16, torch.float16):
        cache = ActivationCache(budget=PLENTY)
        cache.open("front", SAMPLES, (5,), dtype)
        made = batch(0, 4, (5,)).to(dtype)
        assert cache.write(torch.arange(4), made) is made
        assert torch.equal(cache.read(torch.arange(4)), made)
        assert cache._store.row.bytes == 10


def test_a_buffer_is_read_into_again():
    for dtype in sorted(STORED):
        cache = opened(None, dtype, (3, 2, 4), channels_last=True)
        kept = cache.write(torch.arange(6), batch(0, 6, (3, 2, 4), True))
        out = torch.empty(2, 3, 2, 4).contiguous(memory_format=torch.channels_last)
        for pair in ([0, 5], [3, 3]):
            assert cache.read(torch.tensor(pair), out=out) is out
            assert torch.equal(out, kept[pair])
        for wrong in (out.contiguous(), out.double(), out[:1]):
            with pytest.raises(ValueError, match="expected out as channels_last torch.float32 .*, try out=None"):
                cache.read(torch.tensor([0, 1]), out=wrong)


def test_memory_is_taken_as_rows_are_written_and_given_back():
    keep_memory()  # which holds for malloc's memory, as in the command

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    rows = torch.ones(128, 2**15)
    before = resident()
    cache = ActivationCache(budget=2**40)  # of which a store takes what its samples can need
    cache.open("front", 4096, (2**15,), torch.float32)
    assert resident() - before < 2**23
    cache.write(torch.arange(128), rows)
    assert resident() - before >= 2**24
    assert cache.stats.bytes == 128 * (2**17 + INDEX)
    cache.drop()
    gc.collect()
    assert resident() - before < 2**23


def test_memory_that_is_not_to_be_had_is_told(monkeypatch):
    def none(*args, **options):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr("mmap.mmap", none)
    with pytest.raises(MemoryError, match="expected room for 16384 bytes of frozen activations"):
        ActivationCache(budget=2**40).open("front", 4, (2**10,), torch.float32)


def test_auto_is_half_of_what_is_free(tmp_path, monkeypatch):
    monkeypatch.setattr(budgets, "free_memory", lambda: 10 * (20 + INDEX))
    cache = ActivationCache()
    assert cache.open("front", SAMPLES, (5,), torch.float32) == cache.reason
    assert cache.stats.capacity == 5
    assert "room for 5 of 12 activations (1.35 KiB, 50% of the 2.7 KiB of free memory)" in cache.reason
    cache = ActivationCache(tmp_path)
    assert f"50% of the {budgets.show(budgets.resolve('auto', tmp_path).size * 2)} of free disk at {tmp_path}" in (
        cache.open("front", SAMPLES, (5,), torch.float32)
    )
    cache.close()


def test_a_control_group_bounds_free_memory(tmp_path, monkeypatch):
    free = budgets.free_memory()
    monkeypatch.setattr(budgets, "CGROUP", tmp_path)
    for limit, expected in (("max\n", None), ("3000\n", 1000), ("1000\n", 0)):
        (tmp_path / "memory.max").write_text(limit)
        (tmp_path / "memory.current").write_text("2000\n")
        assert (budgets.free_memory() > free / 2) if expected is None else (budgets.free_memory() == expected)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"dtype": "int4"}, "expected dtype to be one of .*, got 'int4', try 'int8'"),
        ({"budget": 0}, "expected a budget in bytes > 0 or 'auto', got 0, try"),
        ({"budget": "much"}, "expected a budget in bytes > 0 or 'auto', got 'much', try"),
        ({"variants": 0}, "expected variants to be an integer >= 1, got 0, try 1"),
    ],
)
def test_what_a_cache_cannot_be(options, text):
    with pytest.raises(ValueError, match=text):
        ActivationCache(**options)


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({"samples": 0}, ValueError, "expected samples in .*, got 0, try len"),
        ({"samples": 2**63}, ValueError, "expected samples in .*, try len"),
        ({"shape": ()}, ValueError, "expected the shape of a sample's activation, got .*, try output.shape"),
        ({"dtype": torch.float64}, TypeError, "expected activations of type .*, got torch.float64, try"),
        ({"channels_last": True}, ValueError, "expected activations .* with channels_last, got .*, try"),
    ],
)
def test_what_a_store_cannot_be_leaves_the_one_that_is_open(given, error, text):
    cache = opened(None, "float32", (5,))
    cache.write(torch.arange(2), batch(0, 2, (5,)))
    with pytest.raises(error, match=text):
        cache.open(**{"key": "other", "samples": 4, "shape": (5,), "dtype": torch.float32, **given})
    assert cache.lookup(torch.arange(2)).all()


def test_wrong_samples_are_refused():
    cache = opened(None, "float32", (5,), variants=2)
    one, row = torch.zeros(1, dtype=torch.int64), torch.zeros(1, 5)
    for call, error, text in (
        (lambda: cache.lookup(one), ValueError, "expected a variant in .* of each sample, got none, try variant="),
        (lambda: cache.lookup(one, one + 2), ValueError, r"expected variant in \[0, 2\), got 2, try"),
        (lambda: cache.lookup(one, torch.tensor([0, 1])), ValueError, "expected one variant for each of 1 .*, got 2"),
        (lambda: cache.lookup(one - 1, one), ValueError, r"expected indices in \[0, 12\), got -1, try"),
        (lambda: cache.lookup(one + SAMPLES, one), ValueError, r"expected indices in \[0, 12\), got 12, try"),
        (lambda: cache.lookup(one.int(), one), TypeError, "expected indices as an int64 tensor .*, got torch.int32"),
        (lambda: cache.lookup([0], one), TypeError, "expected indices as an int64 tensor .*, got list"),
        (lambda: cache.keep(one[0]), TypeError, r"expected indices as an int64 tensor \[n\], got torch.int64 \[\]"),
        (lambda: cache.read(one, one), ValueError, "expected samples that are held, got 1 others in 1, try"),
        (lambda: cache.write(one, row.double(), one), TypeError, "expected activations of type torch.float32, got"),
        (lambda: cache.write(one, row[:, :3], one), ValueError, r"expected activations \[1, 5\], got \[1, 3\], try"),
        (lambda: ActivationCache().write(one, row), ValueError, "expected an open store, got none, try cache.open"),
    ):
        with pytest.raises(error, match=text):
            call()
    assert cache.stats.hits == cache.stats.misses == cache.stats.held == 0


def test_counts_read_as_a_sentence():
    cache = opened(None, "float32", (5,))
    cache.write(torch.arange(3), batch(0, 3, (5,)))
    cache.lookup(torch.arange(4))
    assert str(cache.stats) == f"75.0% of 4 found, 3 samples held in {3 * (20 + INDEX)} B"


@pytest.mark.parametrize("on_disk", [False, True])
def test_an_older_store_stays_within_the_budget_and_leaves_when_its_room_is_needed(tmp_path, on_disk):
    each = 20 + INDEX
    cache = ActivationCache(tmp_path if on_disk else None, budget=6 * each)
    every, rows = torch.arange(4), torch.randn(4, 5)
    cache.open("one", 4, [5], torch.float32)
    cache.write(every, rows)
    cache.open("two", 4, [5], torch.float32, older=["zero", "one"])
    assert cache.older == "one"
    assert cache.holds_older(every).all()
    assert torch.equal(cache.read_older(every.flip(0)), rows.flip(0))
    cache.write(every, -rows)
    assert (cache.stats.held, cache.stats.bytes) == (2, 6 * each)  # two found room beside the four
    assert not cache.lookup(every).all()
    cache.write(every, -rows)  # an epoch is over
    assert cache.older is None and torch.equal(cache.read(every), -rows)
    assert (cache.stats.held, cache.stats.bytes, cache.stats.carried) == (4, 4 * each, 4)
    assert not cache.holds_older(every).any()
    with pytest.raises(ValueError, match="expected samples that are held, got 4 others in 4"):
        cache.read_older(every)
    cache.close()


@pytest.mark.parametrize("on_disk", [False, True])
def test_of_two_older_stores_the_one_stays_that_holds_more(tmp_path, on_disk):
    cache, every, rows = ActivationCache(tmp_path if on_disk else None), torch.arange(4), torch.randn(4, 5)
    for key, older, count in (("one", [], 3), ("two", ["one"], 1), ("three", ["one", "two"], 2)):
        cache.open(key, 4, [5], torch.float32, older=older)
        cache.write(every[:count], rows[:count])
    assert cache.older == "one"
    cache.open("four", 4, [5], torch.float32, older=["two", "three"])  # "one" leads there no more
    assert cache.older == "three" and cache.holds_older(every).tolist() == [True, True, False, False]
    cache.open("five", 4, [5], torch.float32)
    assert cache.older is None
    cache.close()


def test_a_directory_left_between_two_stores_is_still_a_cache_s(tmp_path):
    cache, every, rows = ActivationCache(tmp_path), torch.arange(4), torch.randn(4, 5)
    cache.open("one", 4, [5], torch.float32)
    cache.write(every, rows)
    cache.close()
    opening.set_aside(tmp_path)  # where a process may be killed
    cache = ActivationCache(tmp_path)
    cache.open("two", 4, [5], torch.float32, older=["one"])
    assert torch.equal(cache.read_older(every), rows)
    cache.drop()
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    cache.close()
