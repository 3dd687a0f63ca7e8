"""The scores of SNIP, GraSP, SynFlow and FORCE: by hand, and against float64 differences."""

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

import spfde
from spfde.nn import SparseLayer
from spfde.sparse.pattern import Pattern
from spfde.topology import FORCE, SNIP, GraSP, SynFlow
from spfde.topology.allocation import Budget
from spfde.topology.init.functional_scores import ScoringContext


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}


def scored(init, model, data, loss_fn=mse_loss, pattern="unstructured", spread="uniform", sparsity=0.5):
    layers = layers_of(model)
    budget = Budget.of(layers, Pattern.parse(pattern), spread, sparsity)
    batches = data if isinstance(data, list) else [data]
    return init.scores(ScoringContext(model, budget.weights, batches, loss_fn, batches[0][0], 0), budget)


def two_layers() -> nn.Module:
    """The function y = [2, 1] . relu([[1, -1], [3, 1]] x): for x = (1, 2) the hidden layer is (0, 5), the output 5."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    model[0].weight.data = torch.tensor([[1.0, -1.0], [3.0, 1.0]])
    model[2].weight.data = torch.tensor([[2.0, 1.0]])
    return model


X, TARGET = torch.tensor([[1.0, 2.0]]), torch.tensor([[4.0]])


def smooth(dtype=torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 4), nn.Tanh(), nn.Linear(4, 3)).to(
        dtype
    )


def batch(n=5, dtype=torch.float64, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 2, 4, 4, generator=generator, dtype=dtype), torch.randint(0, 3, (n,), generator=generator)


def close(got, wanted):
    assert got.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(got[name], wanted[name].flatten(), rtol=1e-6, atol=1e-9)


def test_snip_by_hand():
    """With L = (5 - 4)^2, dL/dy = 2: |w g| is (0, 1 * 2 * 5) in the second layer, (0, 0, 6 * 1, 2 * 2) before."""
    got = scored(SNIP(), two_layers(), (X, TARGET))
    assert got["0"].tolist() == [0, 0, 6, 4]
    assert got["2"].tolist() == [0, 10]


def slopes(model, value):
    """By layer, the change of value() per relative change of each weight, by central differences."""
    step, found = 1e-5, {}
    for name, layer in layers_of(model).items():
        flat = layer.weight.data.view(-1)
        found[name] = torch.empty_like(flat)
        for i, w in enumerate(flat.tolist()):
            ends = []
            for factor in (1 + step, 1 - step):
                flat[i] = w * factor
                ends.append(value().item())
            flat[i] = w
            found[name][i] = (ends[0] - ends[1]) / (2 * step)
    return found


def test_snip_is_the_change_of_the_loss_as_a_weight_goes():
    model, (x, y) = smooth(), batch()
    expected = {name: slope.abs() for name, slope in slopes(model, lambda: cross_entropy(model(x), y)).items()}
    close(scored(SNIP(), model, (x, y), cross_entropy), expected)


def gradients(model, x, y, temperature):
    weights = [layer.weight for layer in layers_of(model).values()]
    return torch.autograd.grad(cross_entropy(model(x) / temperature, y), weights)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_grasp_is_half_the_change_of_the_squared_gradient_as_a_weight_goes(temperature):
    """d|g|^2 / d(log w) = 2 w (H g): what is kept has the highest, what would lower |g| most if it went."""
    model, (x, y) = smooth(), batch()
    norm = lambda: sum(g.square().sum() for g in gradients(model, x, y, temperature))  # noqa: E731
    expected = {name: slope / 2 for name, slope in slopes(model, norm).items()}
    close(scored(GraSP(temperature=temperature), model, (x, y), cross_entropy), expected)


def test_the_temperature_divides_the_output():
    model, data = smooth(), batch()
    hot = scored(GraSP(), model, data, cross_entropy)
    close(hot, scored(GraSP(temperature=1), model, data, lambda output, y: cross_entropy(output / 200, y)))


def test_synflow_by_hand():
    """|W1| ones = (2, 4) and |W2| = (2, 1): every path's product, summed over the paths through a weight."""
    got = scored(SynFlow(rounds=1), two_layers(), (X, TARGET), None)
    assert got["0"].tolist() == [2, 2, 3, 1]
    assert got["2"].tolist() == [4, 4]


@pytest.mark.parametrize("bias", [False, True])
def test_synflow_conserves_the_sum_of_scores_through_layers_without_bias(bias):
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(2, 5, 3, bias=False), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 2, bias=False), nn.Flatten(),
        nn.Linear(36, 7, bias=False), nn.ReLU(), nn.Linear(7, 3, bias=bias),
    )  # fmt: skip
    x = torch.randn(6, 2, 6, 6)
    scores = scored(SynFlow(rounds=1), model, (x, None), None)
    sums = [float(s.sum()) for s in scores.values()]
    assert sums == pytest.approx([sums[0]] * 4, rel=1e-12)
    plain = copy.deepcopy(model).eval().double()
    for tensor in plain.state_dict().values():
        tensor.abs_()
    flow = plain(torch.ones(1, 2, 6, 6, dtype=torch.float64)).sum().item()
    offset = plain[-1].bias.sum().item() if bias else 0.0
    assert sums[0] == pytest.approx(flow - offset, rel=1e-12)


def deep(width=100, depth=6) -> nn.Module:
    """A net deep enough for one-shot scores to leave no path through it."""
    torch.manual_seed(2)
    widths = [width, *[width] * depth, 10]
    parts = []
    for a, b in pairwise(widths):
        parts += [nn.Linear(a, b, bias=False), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def paths(model: nn.Module) -> float:
    """How many paths of stored weights lead from the inputs to the outputs."""
    flow = None
    for layer in model:
        if isinstance(layer, SparseLayer):
            flow = layer.mask().double().sum(1) if flow is None else layer.mask().double() @ flow
    return float(flow.sum())


def test_synflow_keeps_paths_where_snip_collapses():
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(32, 100, generator=generator), torch.randint(0, 10, (32,), generator=generator)
    options = dict(distribution="global", data=data, loss_fn=cross_entropy)
    snip, synflow = (spfde.sparsify(deep(), 0.999, init=init, **options) for init in ("snip", "synflow"))
    total = [sum(m.nnz for m in model.modules() if isinstance(m, SparseLayer)) for model in (snip, synflow)]
    assert total == [round(0.001 * (6 * 100**2 + 1000))] * 2
    assert paths(snip) == 0
    assert paths(synflow) > 0
    assert min(m.nnz for m in synflow.modules() if isinstance(m, SparseLayer)) >= 5


def test_synflow_survives_depths_beyond_float32():
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(64, 64, bias=False) for _ in range(40)])
    for layer in model:
        layer.weight.data *= 100
    scores = scored(SynFlow(rounds=1), model, (torch.randn(1, 64), None), None)
    assert all(float(s.max()) > torch.finfo(torch.float32).max for s in scores.values())


def test_force_scores_the_pruned_model_with_the_whole_weights():
    """Two rounds of 50% -> 25%, each layer for itself, by hand with the mask after the first round."""
    model, (x, y) = smooth(), batch()
    first = scored(SNIP(), model, (x, y), cross_entropy)
    pruned, weights, masks = copy.deepcopy(model), {}, {}
    for name, layer in layers_of(model).items():
        weights[name] = layer.weight.data
        mask = torch.zeros(weights[name].numel(), dtype=torch.bool)
        mask[first[name].argsort(descending=True)[: mask.numel() // 2]] = True
        masks[name] = mask.view_as(weights[name])
        layers_of(pruned)[name].weight.data *= masks[name]
    grads = gradients(pruned, x, y, 1.0)
    second = {name: (weights[name] * g).abs() for name, g in zip(weights, grads, strict=True)}
    close(scored(FORCE(rounds=2), model, (x, y), cross_entropy, sparsity=0.75), second)
    stay = {name: second[name].masked_fill(~masks[name], -torch.inf) for name in second}
    close(scored(FORCE(rounds=2, revive=False), model, (x, y), cross_entropy, sparsity=0.75), stay)


@pytest.mark.parametrize("spread", ["uniform", "global", {"0": 0.9, "3": 1.0, "5": 0.5}])
def test_iterative_snip_prunes_a_nested_sequence_of_exact_counts(spread):
    model, data = smooth(), batch()
    budget = Budget.of(layers_of(model), Pattern(), spread, 0.9)
    sizes = {name: w.numel() for name, w in budget.weights.items()}
    seen = []

    def score(masks):
        seen.append(masks)
        return {name: torch.rand(w.shape, generator=torch.Generator().manual_seed(len(seen)))
                for name, w in budget.weights.items()}  # fmt: skip

    scores = budget.refine(score, 4)
    seen.append(budget.masks(scores))
    for before, after in pairwise(seen):
        assert all(bool((before[name] | ~after[name]).all()) for name in sizes)
    kept = [{name: int(mask.sum()) for name, mask in masks.items()} for masks in seen]
    assert kept[0] == sizes
    if spread == "global":
        assert [sum(k.values()) for k in kept] == [round(114 * (11 / 114) ** (k / 4)) for k in range(5)]
    if spread == "uniform":
        assert [k["3"] for k in kept] == [round(48 * (5 / 48) ** (k / 4)) for k in range(5)]
    if isinstance(spread, dict):
        assert [k["3"] for k in kept] == [48, round(48**0.75), round(48**0.5), round(48**0.25), 0]
    assert data[0].shape[0] == 5


@pytest.mark.parametrize("init", [SNIP(), GraSP(), FORCE(rounds=3), FORCE(rounds=3, revive=False)])
def test_a_list_of_batches_is_their_mean(init):
    model, (x, y) = smooth(), batch(6)
    whole = scored(init, model, (x, y), cross_entropy)
    parts = scored(init, model, [(x[:3], y[:3]), (x[3:], y[3:])], cross_entropy)
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-9, atol=1e-12)


def test_blocks_sum_the_scores_of_their_weights():
    model, data = smooth(), batch()
    single = scored(SNIP(), model, data, cross_entropy)
    blocks = scored(SNIP(), model, data, cross_entropy, pattern="block:2x2")
    wanted = single["3"].view(2, 2, 6, 2).sum((1, 3))
    torch.testing.assert_close(blocks["3"], wanted.flatten())
    assert blocks["0"].numel() == 2 * 1 * 9  # 3 outputs: the lower blocks hold one


@pytest.mark.parametrize("init", [SNIP, GraSP, FORCE])
def test_the_mode_decides_between_batch_and_running_statistics(init):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))
    model[1].running_mean += 0.5
    data = torch.randn(9, 6), torch.randint(0, 3, (9,))
    train, evaluated = (scored(init(training=training), model, data, cross_entropy) for training in (True, False))
    assert not torch.allclose(train["0"], evaluated["0"])
    model[1].running_mean += 1.0
    torch.testing.assert_close(scored(init(training=True), model, data, cross_entropy)["0"], train["0"])
    assert not torch.allclose(scored(init(training=False), model, data, cross_entropy)["0"], evaluated["0"])


def test_a_layer_the_loss_does_not_reach_scores_zero():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x):
            return self.used(x)

    data = torch.randn(4, 3), torch.randn(4, 2)
    for init in (SNIP(), GraSP(), FORCE(), SynFlow(rounds=2)):
        assert float(scored(init, Unused(), data, sparsity=0.0)["idle"].abs().sum()) == 0


def test_several_inputs_and_tokens():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.a, self.b = nn.Embedding(9, 4), nn.Linear(4, 3), nn.Linear(2, 3)

        def forward(self, tokens, x):
            return self.a(self.embed(tokens).mean(1)) + self.b(x)

    torch.manual_seed(0)
    model, tokens, x = Two(), torch.tensor([[1, 2], [3, 4]]), torch.randn(2, 2)
    data = ((tokens, x), torch.tensor([0, 2]))
    snip = scored(SNIP(), model, data, cross_entropy)
    weights = [model.a.weight, model.b.weight]
    grads = torch.autograd.grad(cross_entropy(model(tokens, x), data[1]), weights)
    close(snip, {name: (w * g).abs().detach() for name, w, g in zip("ab", weights, grads, strict=True)})
    synflow = scored(SynFlow(rounds=1), model, data, None)
    torch.testing.assert_close(synflow["b"], model.b.weight.detach().abs().double().flatten())
    mean = model.embed.weight.detach().abs().double()[[1, 2]].mean(0)
    torch.testing.assert_close(synflow["a"], (model.a.weight.detach().abs() * mean).flatten())
