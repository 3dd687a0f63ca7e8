"""The frozen front of a run: as one call and from a cache it trains alike, and goes on to the same bits."""

import pytest
import torch
from train.runs import bits, last_state, recipe, same, stop_within

from spfde.train import Recipe

FIELDS = {"epochs": 4, "batch_size": 16, "lr": 0.05, "freeze": 0.1, "sieve": 0.25, "topology": "set", "seed": 3,
          "freeze_by": "static", "freeze_options": {"start": 1}}  # fmt: skip
AUGMENTED = {"crop": 2, "flip": True, "variants": 2}


def told(result) -> list[str]:
    return [event.text for record in result.epochs for event in record.events if event.kind == "cache"]


@pytest.mark.parametrize("fields", [pytest.param({}, marks=pytest.mark.full), AUGMENTED])
def test_the_front_as_one_call_and_cached_trains_alike(fields, task):
    ways = {"plain": {"prefix": False}, "folded": {}, "cached": {"cache": "auto"}}
    results = {name: task.fit(recipe(**FIELDS, **fields, **way)) for name, way in ways.items()}
    losses = [torch.tensor([record.train_loss for record in result.epochs]) for result in results.values()]
    assert torch.allclose(losses[0], losses[1], rtol=1e-3) and torch.allclose(losses[0], losses[2], rtol=1e-3)
    frozen = [name for name, p in results["plain"].model.named_parameters() if not p.requires_grad]
    assert frozen
    assert not told(results["folded"]) and len(told(results["cached"])) == 3
    assert not told(results["cached"])[-1].startswith("0.0%")
    for folded, cached in zip(results["folded"].epochs, results["cached"].epochs, strict=True):
        assert folded.cache == {} and folded.flops == pytest.approx(cached.flops + cached.cache.get("flops", 0))
    first, *_, last = results["cached"].epochs[1:]
    variants = fields.get("variants", 1)
    assert first.cache["hits"] == 0 and first.cache["misses"] == first.samples
    assert last.cache["hits"] + last.cache["misses"] == last.samples
    assert last.cache["hits"] > (0.5 if variants == 1 else 0) * last.samples
    assert last.cache["flops"] > 0 and last.cache["bytes"] >= first.cache["bytes"] > 0


GROWING = {"cache": "files", "cache_dtype": "int8", "freeze_by": "linear", "freeze_options": {"start": 0.0},
           "freeze_fraction": 1.0}  # fmt: skip


@pytest.mark.parametrize("how", [{"cache": "auto"}, GROWING])
def test_a_run_with_a_cache_goes_on_to_the_same_bits(how, task, tmp_path):
    def fields(name):
        cache = how["cache"] if how["cache"] == "auto" else str(tmp_path / f"cache-{name}")
        return {**FIELDS, **how, "cache": cache}

    whole = task.fit(recipe(out=tmp_path / "whole", **fields("whole")))
    stopped = 3 if how is GROWING else 2
    stop_within(stopped, 2, tmp_path / "parts", fit=task.fit, fields=fields("parts"))
    kept = tmp_path / ("parts/cache" if how["cache"] == "auto" else "cache-parts") / "activations.npy"
    assert kept.exists()
    parts = task.fit(recipe(out=tmp_path / "parts", **fields("parts")), resume=True)
    assert same(last_state(tmp_path / "parts"), last_state(tmp_path / "whole"))
    assert same(bits(parts.model), bits(whole.model))
    done, again = whole.epochs[stopped].cache, parts.epochs[stopped].cache
    assert again["hits"] + again["carried"] >= done["hits"] + done["carried"] > 0
    assert (done["carried"] > 0) == (how is GROWING)
    assert kept.exists() == (how["cache"] != "auto") and not (tmp_path / "whole" / "cache").exists()


@pytest.mark.parametrize(
    "fields, words",
    [
        (
            {"crop": 4},
            "expected variants with cache='auto' and crop or flip, got new images every epoch, try variants=4",
        ),
        ({"prefix": False}, "expected prefix=True with cache='auto', got False, try cache='off'"),
        ({"compile": True}, "expected compile=False with cache='auto', got True, try cache='off'"),
        ({"method": "imp"}, "expected cache='off' with method='imp', which freezes nothing, got 'auto', try leaving"),
    ],
)
def test_a_cache_that_could_not_be_used_is_refused(fields, words):
    with pytest.raises(ValueError) as error:
        Recipe(cache="auto", **fields)
    assert words in str(error.value)
