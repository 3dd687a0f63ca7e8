"""sparsify, densify and summary on whole models: what is converted, counts, and what is refused by name."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import spfde
from spfde.nn import SparseConv2d, SparseLayer, SparseLinear


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 40), nn.ReLU(), nn.Linear(40, 10),
    )  # fmt: skip


def counts(model) -> dict[str, int]:
    return {name: m.nnz for name, m in model.named_modules() if isinstance(m, SparseLayer)}


X = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def test_uniform_keeps_the_first_layer_and_the_last_linear_dense():
    model = net()
    assert spfde.sparsify(model, 0.9) is model
    assert counts(model) == {"3": round(0.1 * 16 * 32 * 9), "7": round(0.1 * 128 * 40)}
    assert type(model[0]) is nn.Conv2d
    assert type(model[9]) is nn.Linear


@pytest.mark.parametrize("distribution", ["erk", "global"])
@pytest.mark.parametrize("init", ["random", "magnitude"])
def test_totals_are_exact_over_all_converted_layers(distribution, init):
    model = spfde.sparsify(net(), 0.8, distribution=distribution, init=init)
    total = 3 * 16 * 9 + 16 * 32 * 9 + 128 * 40 + 400
    assert set(counts(model)) == {"0", "3", "7", "9"}
    assert abs(sum(counts(model).values()) - 0.2 * total) <= (2 if distribution == "erk" else 0.5)


def test_magnitude_keeps_the_largest_weights():
    model = net()
    weight = model[3].weight.detach().clone()
    spfde.sparsify(model, 0.9, init="magnitude")
    mask = model[3].mask()
    assert float(weight[mask].abs().min()) >= float(weight[~mask].abs().max())
    assert torch.equal(model[3].dense_weight(), weight * mask)


def test_a_mapping_converts_just_what_it_names():
    model = spfde.sparsify(net(), distribution={"0": 0.5, "9": 1.0})
    assert counts(model) == {"0": 216, "9": 0}
    with pytest.raises(ValueError, match="expected a layer in distribution to be one of 0, 3, 7, 9, got '4'"):
        spfde.sparsify(net(), distribution={"4": 0.5})
    with pytest.raises(ValueError, match=r"expected sparsity of '0' in \[0, 1\], got 1.5"):
        spfde.sparsify(net(), distribution={"0": 1.5})


@pytest.mark.parametrize("layer", [nn.Linear(20, 10), nn.Conv2d(4, 6, 3)])
def test_a_bare_layer_is_always_converted_and_returned_new(layer):
    sparse = spfde.sparsify(layer, 0.75)
    assert isinstance(sparse, SparseLinear | SparseConv2d)
    assert sparse.nnz == round(0.25 * layer.weight.numel())
    dense = spfde.densify(sparse)
    assert type(dense) is type(layer)
    assert torch.equal(dense.weight, sparse.dense_weight())


def test_seeds_decide_the_masks():
    first, same, other = (spfde.sparsify(net(), 0.9, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first[3].mask(), same[3].mask())
    assert not torch.equal(first[3].mask(), other[3].mask())


def test_densify_gives_back_plain_layers_with_the_same_outputs():
    model = spfde.sparsify(net(), 0.9).eval()
    y = model(X)
    plain = spfde.densify(model)
    assert plain is model
    assert not counts(model)
    torch.testing.assert_close(model(X), y)
    assert int((model[3].weight != 0).sum()) == round(0.1 * 16 * 32 * 9)


def test_training_flags_and_biases_survive():
    model = net()
    bias = model[3].bias
    bias.requires_grad_(False)
    model.eval()
    spfde.sparsify(model, 0.9)
    assert model[3].bias is bias
    assert model[3].values.requires_grad and not bias.requires_grad
    assert not model[3].training
    model[3].values.requires_grad_(False)
    assert not spfde.densify(model)[3].weight.requires_grad


@pytest.mark.parametrize(
    ("exclude", "left"),
    [
        (["3"], {"7"}),
        ((nn.Conv2d,), {"7"}),
        (["?"], None),
        ([nn.Linear], {"3"}),
        (["7", nn.BatchNorm2d], {"3"}),
    ],
)
def test_exclusions(exclude, left):
    if left is None:
        with pytest.raises(ValueError, match="expected at least one nn.Linear, .*to convert, got none"):
            spfde.sparsify(net(), exclude=exclude)
    else:
        assert set(counts(spfde.sparsify(net(), exclude=exclude))) == left


def test_an_exclusion_that_matches_nothing_is_a_mistake():
    with pytest.raises(ValueError, match="expected exclude to be one of .*got 'sevn'"):
        spfde.sparsify(net(), exclude=["sevn"])


class Branches(nn.Module):
    """Registered in another order than run."""

    def __init__(self):
        super().__init__()
        self.last, self.middle, self.first = nn.Linear(8, 2), nn.Linear(8, 8), nn.Linear(4, 8)

    def forward(self, x):
        return self.last(self.middle(self.first(x)))


def test_execution_order_with_an_example_input():
    assert set(counts(spfde.sparsify(Branches(), 0.5))) == {"middle"}
    model = Branches()
    model.middle.eval()
    assert set(counts(spfde.sparsify(model, 0.5, example_input=torch.randn(1, 4)))) == {"middle"}
    assert not model.middle.training
    assert model.training
    reordered = nn.Sequential(nn.Linear(4, 4), Branches())
    assert set(counts(spfde.sparsify(reordered, 0.5, example_input=torch.randn(1, 4)))) == {
        "1.middle",
        "1.first",
    }


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.inp, self.a, self.out = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        self.b = self.a

    def forward(self, x):
        return self.out(self.b(self.a(self.inp(x))))


def test_a_shared_module_is_converted_once_and_stays_shared():
    model = spfde.sparsify(Shared(), 0.5)
    assert model.a is model.b
    assert isinstance(model.a, SparseLinear)
    x = torch.randn(3, 6)
    torch.testing.assert_close(spfde.densify(copy.deepcopy(model))(x), model(x))


class MyLinear(nn.Linear):
    def forward(self, x):
        return super().forward(x) + 1


def broken(kind):
    model = net()
    if kind == "subclass":
        model[7] = MyLinear(128, 40)
    elif kind == "parametrized":
        torch.nn.utils.parametrizations.spectral_norm(model[7])
    elif kind == "pruned":
        prune.l1_unstructured(model[7], "weight", 0.5)
    elif kind == "hooked":
        model[7].register_forward_hook(lambda *_: None)
    elif kind == "lazy":
        model[7] = nn.LazyLinear(40)
    elif kind == "already sparse":
        model[7] = SparseLinear.from_dense(model[7])
    return model


@pytest.mark.parametrize("kind", ["subclass", "parametrized", "pruned", "hooked", "lazy", "already sparse"])
def test_what_would_change_its_meaning_is_refused_by_name_and_left_alone(kind):
    model = broken(kind)
    before = {name: type(m) for name, m in model.named_modules()}
    with pytest.raises(ValueError, match=r"expected .* got .*'7'.* try"):
        spfde.sparsify(model, 0.9)
    assert {name: type(m) for name, m in model.named_modules()} == before
    if kind != "already sparse":
        assert set(counts(spfde.sparsify(model, 0.9, exclude=["7"]))) == {"3"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(sparsity=1.2), r"expected sparsity in \[0, 1\]"),
        (dict(sparsity=float("nan")), r"expected sparsity in \[0, 1\]"),
        (dict(pattern="4:2"), "expected pattern 'unstructured', .*got '4:2', try"),
        (dict(distribution="unifrom"), "expected distribution .*got 'unifrom', try 'uniform'"),
        (dict(init="magnitud"), "expected init to be one of .*try 'magnitude'"),
        (dict(loss_fn=print), "expected no data and no loss_fn"),
        (dict(data=(X, X)), "expected no data and no loss_fn"),
    ],
)
def test_bad_arguments(options, words):
    with pytest.raises(ValueError, match=words):
        spfde.sparsify(net(), **options)


def test_not_a_model():
    with pytest.raises(TypeError, match="expected a torch.nn.Module, got int"):
        spfde.sparsify(3)
    with pytest.raises(ValueError, match="expected at least one nn.Linear, nn.Conv1d, nn.Conv2d or nn.ConvTranspose2d"):
        spfde.sparsify(nn.ReLU())


def test_attention_converts_its_projections():
    model = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    spfde.sparsify(model, 0.5, distribution="erk")
    projections = {f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")}
    assert set(counts(model)) == {*projections, "linear1", "linear2"}
    x = torch.randn(2, 5, 16)
    model(x).sum().backward()
    with torch.no_grad():
        model.eval()
        torch.testing.assert_close(model(x), spfde.densify(copy.deepcopy(model))(x))


def test_a_sparse_model_trains_like_the_masked_dense_one():
    sparse = spfde.sparsify(net(), 0.8, distribution="erk")
    dense = spfde.densify(copy.deepcopy(sparse))
    masks = {name: sparse.get_submodule(name).mask() for name in counts(sparse)}
    a, b = (torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3) for m in (sparse, dense))
    for _ in range(5):
        for model, optimizer in ((sparse, a), (dense, b)):
            optimizer.zero_grad()
            model(X).square().mean().backward()
            if model is dense:
                for name, mask in masks.items():
                    dense.get_submodule(name).weight.grad *= mask
            optimizer.step()
    torch.testing.assert_close(sparse(X), dense(X), rtol=1e-4, atol=1e-5)


def test_summary_says_what_runs_and_why():
    model = spfde.sparsify(net(), 0.95)
    before = spfde.summary(model)
    assert [row.name for row in before.rows] == ["0", "3", "7", "9"]
    assert before.rows[1].reason == "chosen at the first forward pass"
    model[3].kernel = "native"
    model(X)
    after = spfde.summary(model)
    row = after.rows[1]
    assert (row.kernel, row.runs_sparse, row.pattern, row.shape) == (
        "native",
        True,
        "unstructured",
        (32, 16, 3, 3),
    )
    assert row.sparsity == pytest.approx(0.95, abs=1e-3)
    assert row.nnz == model[3].nnz
    assert after.rows[0].pattern == "dense"
    model[7].kernel = "dense"
    assert spfde.summary(model).sparse_share == 0.5
    text = str(spfde.summary(model))
    assert all(row.size == (4 * row.nnz + 4 * row.shape[0]) for row in before.rows if not row.converted)
    assert all(row.size > 16 * row.nnz for row in before.rows if row.converted)  # values and 12 bytes of index
    assert "32x16x3x3" in text
    assert "1 of 2 sparse layers run a sparse kernel" in text
    assert str(spfde.summary(nn.ReLU())).startswith("layer")
