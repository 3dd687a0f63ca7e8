"""The predictor against its formula in float64, its file, its labels and the rules it is compared with."""

import io
from dataclasses import astuple

import numpy as np
import pytest
import torch

from spfde.freezing.smartfrz.history import SAMPLES, SNAPSHOTS
from spfde.freezing.smartfrz.labels import settled
from spfde.freezing.smartfrz.learning import Samples, Scores, baselines, best_threshold, fit_predictor, probabilities
from spfde.freezing.smartfrz.predictor import FORMS, Predictor, displacements, load_predictor


def mlp(layers, x):
    for layer in layers[::2]:
        x = x @ layer.weight.double().T + layer.bias.double()
        x = x if layer is layers[-1] else x.clamp_min(0)
    return x


@pytest.mark.parametrize("form", FORMS)
def test_attends_from_the_newest_snapshot_to_the_others(form):
    predictor, windows = Predictor(form), torch.randn(3, SNAPSHOTS, SAMPLES)
    shown = windows.double()
    if form != "weights":
        shown = torch.stack([(w - w[0]) / w[0].square().mean().sqrt() for w in shown])
    if form == "quantiles":
        shown = torch.log10(shown.abs().sort(2)[0].clamp_min(1e-4)) + 2
    expected = []
    for window in shown:
        query = mlp(predictor.query, window[-1])
        attention = torch.stack([query @ mlp(predictor.key, past) for past in window[:-1]]).softmax(0)
        context = sum(a * mlp(predictor.value, past) for a, past in zip(attention, window[:-1], strict=True))
        expected.append(mlp(predictor.head, context))
    torch.testing.assert_close(predictor(windows).double(), torch.stack(expected), rtol=1e-4, atol=1e-5)
    sizes = [(layer.in_features, layer.out_features) for layer in [*predictor.key[::2], *predictor.head[::2]]]
    assert sizes == [(1024, 256), (256, 256), (256, 64), (64, 32), (32, 32), (32, 2)]


def test_displacements_do_not_depend_on_a_layers_scale():
    windows = torch.randn(2, SNAPSHOTS, SAMPLES)
    torch.testing.assert_close(displacements(windows), displacements(1000 * windows))
    predictor = Predictor("quantiles")
    torch.testing.assert_close(predictor(windows), predictor(-7 * windows[..., torch.randperm(SAMPLES)]))
    assert displacements(torch.zeros(1, SNAPSHOTS, SAMPLES)).isfinite().all()


def test_windows_and_forms_that_it_does_not_take():
    with pytest.raises(ValueError, match=r"expected windows \[n, 30, 1024\], got \[30, 1024\]; try windows.unsqueeze"):
        Predictor()(torch.zeros(30, 1024))
    with pytest.raises(
        ValueError, match="expected form to be one of displacements, quantiles, weights, got 'weight', try"
    ):
        Predictor("weight")


def test_a_file_holds_it_in_half_precision_and_is_checked(tmp_path):
    predictor, path = Predictor("weights"), tmp_path / "predictor.npz"
    with path.open("wb") as file:
        predictor.write(file)
    assert path.stat().st_size < 2.2e6
    read = load_predictor(path)
    assert read.form == "weights" and not read.training and not any(p.requires_grad for p in read.parameters())
    for name, tensor in predictor.state_dict().items():
        assert torch.equal(read.state_dict()[name], tensor.half().float())
    whole = path.read_bytes()
    pickled = io.BytesIO()
    np.savez(pickled, form=np.array(["weights", None], dtype=object))
    for content in (whole[: len(whole) // 2], b"", b"no archive", pickled.getvalue()):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="expected a predictor in .*, got an error .*; try what `spfde smartfrz"):
            load_predictor(path)
    with pytest.raises(ValueError, match="expected a predictor in .*; try what `spfde smartfrz train` wrote"):
        load_predictor(tmp_path / "nothing.npz")


def test_settled_is_from_where_on_it_never_falls_below_the_level():
    alignment = np.array([[0.99, 0.9, 0.96, 0.97, 1], [0.96, 0.97, 0.98, 0.99, 1], [0.99, np.nan, 0.96, 0.94, 1]])
    expected = [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 1]]
    assert settled(alignment, 0.95).tolist() == np.array(expected, bool).tolist()


def samples(count: int) -> Samples:
    """Layers of which half move ten times slower; these are settled."""
    labels = torch.arange(count) % 2 == 0
    speed = torch.where(labels, 0.001, 0.01)[:, None, None]
    steps = torch.randn(count, SNAPSHOTS, SAMPLES).cumsum(1) * speed
    return Samples(torch.randn(count, 1, SAMPLES) + steps, labels, torch.rand(count))


def test_learns_what_tells_layers_apart():
    ours, theirs, losses = samples(128), samples(64), []
    predictor = fit_predictor(ours, epochs=8, tell=lambda epoch, loss: losses.append(loss))
    assert len(losses) == 8 and losses[-1] < losses[0]
    said = probabilities(predictor, theirs) >= 0.5
    assert Scores.of(said, theirs.labels).accuracy > 0.95
    rules = baselines(ours, theirs)
    assert rules["never"].accuracy == 0.5 and np.isnan(rules["never"].precision) and rules["never"].recall == 0
    assert rules["slope"] == Scores(1.0, 1.0, 1.0)
    assert rules["schedule"].accuracy < 0.9


@pytest.mark.parametrize("case", range(5))
def test_the_best_threshold_is_that_of_trying_all(case):
    values, labels = torch.randn(20), torch.rand(20) < (0.2 * case + 0.1)
    tried = [((values >= t) == labels).sum().item() for t in [*values.tolist(), float("inf")]]
    assert ((values >= best_threshold(values, labels)) == labels).sum().item() == max(tried)


def test_scores_count_as_defined():
    said, labels = torch.tensor([1, 1, 1, 0, 0]).bool(), torch.tensor([1, 0, 0, 1, 0]).bool()
    assert astuple(Scores.of(said, labels)) == pytest.approx((0.4, 1 / 3, 0.5))
