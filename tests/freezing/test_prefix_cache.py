"""The frozen front with a cache: read where it is held, computed where it is not, refused where a model has no cut."""

import copy

import pytest
import torch
import torch.nn.functional as F
from freezing.models import IMAGES, MODELS, VGG, Basic, ResNet
from freezing.test_prefix import close, settled
from torch import nn

import spfde
from spfde.freezing import ActivationCache, Prefix, blocks
from spfde.freezing.prefix.folded import Folded
from spfde.models import GPT

SAMPLES = 12


def started(model: nn.Module, count: int = 2, x: torch.Tensor | None = None, cache="auto") -> Prefix:
    parts = blocks(model, torch.randn(IMAGES) if x is None else x)
    for block in parts[:count]:
        block.freeze()
    model.train()
    return Prefix(model, parts, cache, SAMPLES)


def epoch(prefix: Prefix, x: torch.Tensor, size: int = 5, cached: bool = True) -> list[torch.Tensor]:
    """Losses and gradients of the batches of one epoch, in an order of its own."""
    found = []
    for indices in torch.randperm(SAMPLES).split(size):
        prefix.model.zero_grad()
        torch.manual_seed(2)
        with prefix(indices if cached else None):
            y = prefix.model(x[indices])
        y.square().mean().backward()
        found += [y.detach(), *(p.grad for p in prefix.model.parameters() if p.grad is not None)]
    return found


@pytest.mark.parametrize("fused", [pytest.param(False, marks=pytest.mark.full), True])
@pytest.mark.parametrize("name", MODELS)
def test_trains_as_without_it_and_the_front_runs_once(name, fused):
    model = settled(MODELS[name]())
    model = spfde.fuse(spfde.sparsify(model, 0.5)) if fused else model
    prefix, x = started(model), torch.randn(SAMPLES, *IMAGES[1:])
    twin = copy.deepcopy(prefix)
    for number in range(3):
        torch.manual_seed(number)
        got = epoch(prefix, x)
        torch.manual_seed(number)
        expected = epoch(twin, x, cached=False)
        assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(got, expected, strict=True))
    assert prefix.reason == ""
    assert prefix.cache.stats.held == SAMPLES
    assert prefix.cache.stats.hits == 2 * SAMPLES
    assert model.state_dict().keys() == twin.model.state_dict().keys()
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.buffers(), twin.model.buffers(), strict=True)
        if a.dtype != torch.float32
    )


@pytest.mark.parametrize("tied", [False, True])
def test_a_language_model_s_embeddings_are_not_needed_again(tied):
    model = GPT(8, 3, 2, vocab_size=11, context=6, tied=tied)
    tokens = torch.randint(11, (SAMPLES, 6))
    prefix = started(model, 2, tokens[:2])
    expected = [model.eval()(tokens[i : i + 4]).detach() for i in (0, 4, 8)]
    for _ in range(2):
        for i, want in zip((0, 4, 8), expected, strict=True):
            with prefix(torch.arange(i, i + 4)):
                assert close(model(tokens[i : i + 4]).detach(), want, 1e-5)
    assert prefix.cache.stats.hits == (0 if tied else SAMPLES)
    assert ("token runs in front of the boundary and is not frozen" in prefix.reason) == tied


def test_some_of_a_batch_may_be_missing():
    model = settled(spfde.sparsify(ResNet(), 0.5)).eval()
    prefix, x = started(model), torch.randn(SAMPLES, *IMAGES[1:])
    model.eval()
    for indices in ([0, 1, 2, 3], [2, 7, 0, 9], [9, 8, 7, 6]):
        which = torch.tensor(indices)
        with prefix(which):
            assert close(model(x[which]), copy.deepcopy(model)(x[which]), 1e-5)
    assert prefix.cache.stats.held == 8


def test_a_freeze_or_a_write_begins_anew_and_an_unfreeze_lets_go():
    model = settled(ResNet())
    prefix, x = started(model, 1), torch.randn(SAMPLES, *IMAGES[1:])
    keys = []
    for change in (
        lambda: None,
        prefix.blocks[1].freeze,
        lambda: model.load_state_dict(settled(ResNet()).state_dict()),
    ):
        change()
        for _ in range(2):
            epoch(prefix, x)
        keys.append(prefix.cache.key)
    assert len(set(keys)) == 3
    model.eval()
    with prefix(torch.arange(4)):
        got = model(x[:4])
    assert close(got, model(x[:4]), 1e-5)
    for block in prefix.blocks[:2]:
        block.unfreeze()
    with prefix(torch.arange(4)):
        model(x[:4])
    assert prefix.cache.key is None
    assert prefix.cache.stats.held == 0


def test_files_serve_the_next_process(tmp_path):
    model, x = settled(ResNet()), torch.randn(SAMPLES, *IMAGES[1:])
    first = started(model, cache=tmp_path / "cache")
    epoch(first, x)
    first.cache.close()
    again = started(model, cache=ActivationCache(tmp_path / "cache"))
    epoch(again, x)
    assert again.cache.stats.hits == SAMPLES
    again.cache.close()
    other = started(model, cache=tmp_path / "cache")
    epoch(other, x.flip(0))  # another data set, the same weights
    assert other.cache.stats.hits == 0
    assert other.cache.stats.held == SAMPLES


def test_a_sample_missed_alone_has_the_bits_that_it_has_in_a_batch():
    model = settled(spfde.sparsify(ResNet(16), 0.5)).eval()
    x, whole = torch.randn(SAMPLES, 3, 32, 32), torch.arange(SAMPLES)
    held = []
    for first in ([], [0], [3, 4, 5, 6, 7], list(range(1, SAMPLES))):
        prefix = started(model, 3)
        model.eval()
        for indices in (torch.tensor(first, dtype=torch.int64), whole):
            if len(indices):
                with prefix(indices):
                    model(x[indices])
        held.append(prefix.cache.read(whole))
    assert all(torch.equal(each, held[0]) for each in held)


def test_inputs_that_change_are_refused():
    model, x = settled(ResNet()), torch.randn(SAMPLES, *IMAGES[1:])
    prefix = started(model)
    epoch(prefix, x)
    with pytest.raises(ValueError, match=r"expected the input of sample \d+ that the cache was filled with"):
        epoch(prefix, x + 1)
    with pytest.raises(ValueError, match="expected an index for each of 4 samples, got 3"), prefix(torch.arange(3)):
        model(x[:4])


def test_variants_are_told_apart():
    model, x = settled(ResNet()), torch.randn(2, SAMPLES, *IMAGES[1:])
    prefix = started(model, cache=ActivationCache(variants=2))
    model.eval()
    for _ in range(2):
        for which in (0, 1):
            with prefix(torch.arange(4), torch.full((4,), which)):
                assert close(model(x[which, :4]), copy.deepcopy(model)(x[which, :4]), 1e-5)
    assert prefix.cache.stats.hits == 8


class Leaky(ResNet):
    """The rest reads what a block in the middle of the front returns."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        early = self.layer1[0](x)
        x = self.layer2(self.layer1[1](early))
        return self.fc(self.avgpool(x).flatten(1)) + early.mean()


class Noisy(VGG):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(F.dropout(x, 0.5, self.training))


def seen(model: nn.Module) -> None:
    model.layer1[0].register_forward_hook(lambda *_: None)


@pytest.mark.parametrize(
    "make, change, why",
    [
        (Leaky, None, "needs more of the front than what layer1.1 returns"),
        (Noisy, None, "the front draws random numbers"),
        (ResNet, seen, "layer1.0 has hooks, which would see nothing"),
    ],
)
def test_a_model_without_a_cut_runs_whole_and_says_why(make, change, why):
    model, x = settled(make()), torch.randn(SAMPLES, *IMAGES[1:])
    prefix = started(model)
    if change is not None:
        change(model)
    twin = copy.deepcopy(prefix)
    torch.manual_seed(0)
    got = epoch(prefix, x)
    torch.manual_seed(0)
    expected = epoch(twin, x, cached=False)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert why in prefix.reason
    assert f"no cache: {prefix.reason}" in str(prefix)
    assert prefix.cache.stats.held == 0


def test_arguments_out_of_range():
    model = ResNet()
    parts = blocks(model, torch.randn(IMAGES))
    with pytest.raises(TypeError, match="expected cache as 'off', 'auto', a directory or an ActivationCache, got 3"):
        Prefix(model, parts, 3, SAMPLES)
    with pytest.raises(ValueError, match="expected samples to be an integer >= 1, got None"):
        Prefix(model, parts, "auto")


def test_blocks_of_a_stage_cut_in_its_middle():
    model = nn.Sequential(
        Basic(3, 4), nn.Sequential(Basic(4, 4), Basic(4, 4), Basic(4, 4)), nn.Flatten(), nn.Linear(256, 5)
    )
    prefix, x = started(settled(model), 2), torch.randn(SAMPLES, *IMAGES[1:])
    model.eval()
    for _ in range(2):
        with prefix(torch.arange(6)):
            assert close(model(x[:6]), copy.deepcopy(model)(x[:6]), 1e-5)
    assert prefix.boundary == "1.0"
    assert prefix.cache.stats.hits == 6


def test_inference_leaves_the_cache_alone():
    model = settled(ResNet())
    prefix, x = started(model), torch.randn(SAMPLES, *IMAGES[1:])
    model.eval()
    with torch.inference_mode(), prefix(torch.arange(4)):
        assert close(model(x[:4]), copy.deepcopy(model)(x[:4]), 1e-5)
    assert prefix.cache.key is None


def test_buffers_that_are_written_as_they_are_change_nothing():
    model = settled(spfde.sparsify(ResNet(), 0.5))
    prefix, x = started(model), torch.randn(SAMPLES, *IMAGES[1:])
    epoch(prefix, x)
    for buffer in model.buffers():  # as DistributedDataParallel does at every step
        buffer.copy_(buffer.clone())
    with pytest.raises(ValueError, match="that the cache was filled with"):
        epoch(prefix, x + 1)
    epoch(prefix, x)
    assert prefix.cache.stats.held == SAMPLES


def grown(model: nn.Module, x: torch.Tensor, cache: ActivationCache, fresh: bool, sizes=(4, 5, 3)) -> Prefix:
    """A prefix that has grown by a block before each of three epochs, the cache emptied at each growth if `fresh`."""
    prefix = started(model, 1, cache=cache)
    model.eval()
    for count, size in enumerate(sizes, 1):
        for block in prefix.blocks[:count]:
            block.freeze()
        if fresh:
            cache.drop()
        for indices in torch.arange(SAMPLES).split(size):
            with prefix(indices):
                model(x[indices])
    return prefix


@pytest.mark.parametrize("on_disk, autocast", [(False, True), (True, False)])
def test_a_front_that_grows_starts_where_it_ended_and_gives_the_same_bits(tmp_path, on_disk, autocast):
    model, x = settled(spfde.sparsify(ResNet(16), 0.5)), torch.randn(SAMPLES, 3, 16, 16)
    caches = [ActivationCache(tmp_path / str(fresh) if on_disk else None) for fresh in (False, True)]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        prefixes = [grown(copy.deepcopy(model), x, cache, fresh) for fresh, cache in enumerate(caches)]
    held = [prefix.cache.read(torch.arange(SAMPLES)) for prefix in prefixes]
    assert torch.equal(*held)
    assert prefixes[0].boundary == "layer2.0"
    assert caches[0].stats.carried == 2 * SAMPLES
    assert caches[1].stats.carried == 0
    assert caches[0].older is None  # all of it was carried over
    assert not list(tmp_path.glob("*/older"))


def test_a_stem_that_is_folded_into_the_model_s_own_forward_is_not_run_for_what_is_carried_over(monkeypatch):
    model, x, ran = settled(ResNet()), torch.randn(SAMPLES, *IMAGES[1:]), []
    prefix = started(model, 1)
    epoch(prefix, x)
    prefix.blocks[1].freeze()
    product = Folded.product
    monkeypatch.setattr(Folded, "product", lambda self, x: ran.append((self.layer, len(x))) or product(self, x))
    epoch(prefix, x, 6)
    assert sum(count for layer, count in ran if layer is model.layer1[1].conv1) > SAMPLES
    assert max(count for layer, count in ran if layer is model.conv1) < 6  # two samples, to be compared


@pytest.mark.parametrize("name", MODELS)
def test_only_the_new_blocks_run_for_what_is_carried_over(name):
    x = torch.randn(SAMPLES, *IMAGES[1:])
    model = settled(MODELS[name]())
    cache = ActivationCache()
    prefix = started(model, 1, cache=cache)
    model.eval()
    for count in (1, 2, 2):
        for block in prefix.blocks[:count]:
            block.freeze()
        for indices in torch.arange(SAMPLES).split(4):
            with prefix(indices):
                assert close(model(x[indices]), copy.deepcopy(model)(x[indices]), 1e-5)
    assert prefix.reason == ""
    assert cache.stats.carried == SAMPLES
    assert (cache.stats.hits, cache.stats.misses) == (SAMPLES, 2 * SAMPLES)


def test_a_process_that_ends_while_samples_are_carried_over_goes_on(tmp_path):
    model, x = settled(spfde.sparsify(ResNet(), 0.5)), torch.randn(SAMPLES, *IMAGES[1:])
    first = started(model, 1, cache=tmp_path)
    epoch(first, x)
    first.blocks[1].freeze()
    for indices in torch.arange(SAMPLES).split(4)[:2]:
        with first(indices):
            model(x[indices])
    first.cache.close()
    again = started(model, 2, cache=tmp_path)
    with again(torch.arange(SAMPLES)):
        model(x)
    stats = again.cache.stats
    assert (stats.hits, stats.carried, stats.held) == (8, 4, SAMPLES)
    assert not (tmp_path / "older").exists()
    again.cache.close()


def test_inputs_that_change_at_a_growth_are_refused():
    model, x = settled(ResNet()), torch.randn(SAMPLES, *IMAGES[1:])
    prefix = started(model, 1)
    epoch(prefix, x)
    prefix.blocks[1].freeze()
    with pytest.raises(ValueError, match=r"expected the input of sample \d+ that the cache was filled with"):
        epoch(prefix, x + 1)
