"""What sparsify refuses: all of it at once, and advice that leads on when it is followed."""

import re

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import spfde
from spfde.nn import SparseLayer
from spfde.nn.refusals import path_of


class Standardised(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) / 2


class Scaled(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 2


class Conv1D(nn.Module):
    """A linear layer with a transposed weight, as GPT-2's is."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) * 0.02)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x):
        return x @ self.weight + self.bias


class GPT(nn.Module):
    """GPT-2's kinds of layer: nothing but the tied head is an nn.Linear."""

    def __init__(self):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(64, 8), nn.Embedding(16, 8)
        self.h = nn.ModuleList(
            nn.ModuleDict({"c_attn": Conv1D(8, 24), "c_proj": Conv1D(8, 8), "c_fc": Conv1D(8, 32)}) for _ in range(3)
        )
        self.lm_head = nn.Linear(8, 64, bias=False)
        self.lm_head.weight = self.wte.weight


def bit() -> nn.Module:
    """52 standardised convolutions, and a few layers of other kinds."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Sequential(*(Standardised(4, 4, 1) for _ in range(52))), nn.Conv2d(4, 4, 1),
        nn.Flatten(), Scaled(4, 4), nn.Linear(4, 4), nn.Linear(4, 2),
    )  # fmt: skip


def sparse(model) -> set[str]:
    return {name for name, m in model.named_modules() if isinstance(m, SparseLayer)}


def refused(model, **options) -> str:
    before = [(name, type(m)) for name, m in model.named_modules()]
    with pytest.raises(ValueError, match=r"(?s)expected .* got .*\stry ") as caught:
        spfde.sparsify(model, 0.5, **options)
    assert [(name, type(m)) for name, m in model.named_modules()] == before
    return str(caught.value)


def pasted(text: str) -> tuple:
    """What `exclude=(...)` in a sentence means."""
    written = re.search(r"exclude=(\((?:'[^']*'|[^()'])*\))", text)[1]
    for kind in (Standardised, Scaled):
        written = written.replace(path_of(kind), kind.__name__)
    return eval(written, {"spfde": spfde, "torch": torch, "Standardised": Standardised, "Scaled": Scaled})


def test_all_offending_classes_are_named_at_once():
    model = bit()
    text = refused(model)
    assert len(text.splitlines()) <= 12
    assert "got 53 that they cannot" in text
    assert "52 Standardised of subclass Standardised" in text and "'1.0', '1.1', '1.2' and 49 more" in text
    assert pasted(text) == (Standardised, Scaled)
    assert sparse(spfde.sparsify(model, 0.5, exclude=pasted(text))) == {"2", "5"}


def test_what_was_excluded_stays_in_the_advice():
    model = bit()
    text = refused(model, exclude=(Scaled, "5"))
    assert pasted(text) == (Scaled, "5", Standardised)
    assert sparse(spfde.sparsify(model, 0.5, exclude=pasted(text))) == {"2"}


def many() -> nn.Module:
    """Every problem that a layer can have, and layers without one."""

    class Local(nn.Linear):
        pass

    model = nn.ModuleDict({f"x{i}": nn.Linear(4, 4) for i in range(3)})
    model["local"] = Local(4, 4)
    model["parametrized"] = parametrizations.weight_norm(nn.Linear(4, 4))
    model["pruned"] = prune.l1_unstructured(nn.Linear(4, 4), "weight", 0.5)
    model["lazy"] = nn.LazyLinear(4)
    model["meta"] = nn.Linear(4, 4, device="meta")
    model["odd[0]"] = Local(4, 4)
    model["tied"] = nn.Linear(4, 4)
    model["lender"] = nn.Linear(4, 4)
    model["tied"].weight = model["lender"].weight
    model["computed"] = nn.Linear(4, 4)
    del model["computed"].weight
    model["computed"].weight = torch.zeros(4, 4)
    model["blocks"] = nn.ModuleList(nn.ModuleDict({"a": Local(4, 4), "b": nn.Linear(4, 4)}) for _ in range(12))
    model["out"] = nn.Linear(4, 4)
    return model


@pytest.mark.parametrize("distribution", ["uniform", "erk"])
def test_a_paste_of_the_advice_converts_all_that_is_left(distribution):
    model = many()
    text = refused(model, distribution=distribution)
    assert len(text.splitlines()) <= 12
    assert "blocks.*.a" in pasted(text) and "odd[0]" in pasted(text)  # brackets are no pattern where they are a name
    left = {"x0", "x1", "x2", "out", *(f"blocks.{i}.b" for i in range(12))}
    left -= {"x0", "out"} if distribution == "uniform" else set()
    assert sparse(spfde.sparsify(model, 0.5, distribution=distribution, exclude=pasted(text))) == left


def test_a_pattern_of_names_takes_none_that_may_stay():
    model = nn.Sequential(*(Scaled(4, 4) if i % 2 else nn.Linear(4, 4) for i in range(6)))
    for i in (1, 3):
        model[i] = prune.l1_unstructured(nn.Linear(4, 4), "weight", 0.5)
    text = refused(model)
    assert set(pasted(text)) == {"1", "3"}
    assert sparse(spfde.sparsify(model, 0.5, exclude=pasted(text))) == {"2", "4"}


def test_nothing_left_is_never_advised():
    ends = nn.Sequential(nn.Linear(4, 4), Scaled(4, 4), nn.Linear(4, 4))
    text = refused(ends)  # without '1' both others are ends
    assert "try distribution='erk' with exclude=(" in text
    assert sparse(spfde.sparsify(ends, 0.5, distribution="erk", exclude=pasted(text))) == {"0", "2"}
    alone = nn.Sequential(nn.Embedding(4, 4), Scaled(4, 4), Scaled(4, 4))
    assert f"try spfde.convert.register({path_of(Scaled)}, a Sparse" in refused(alone, distribution="erk")
    lazy = nn.Sequential(nn.Embedding(4, 4), nn.LazyLinear(4))
    assert refused(lazy, distribution="erk").endswith("try one forward pass first")


def test_complex_weights_are_refused():
    text = refused(nn.Sequential(*(nn.Linear(4, 4, dtype=torch.complex64) for _ in range(3))), exclude="0")
    assert "expected a floating-point weight, got '1' of torch.complex64" in text


def test_one_exclusion_is_a_rule_by_itself():
    def model():
        return nn.ModuleDict({name: nn.Linear(4, 4) for name in ("a", "12", "1", "2", "b")})

    assert sparse(spfde.sparsify(model(), 0.5, exclude="12")) == {"1", "2"}
    with pytest.raises(ValueError, match=r"5 Linear \(excluded\)"):
        spfde.sparsify(model(), 0.5, exclude=nn.Linear)
    for rule in (1, nn.ReLU()):
        with pytest.raises(TypeError, match=f"patterns or classes in exclude, got a {type(rule).__name__}"):
            spfde.sparsify(model(), 0.5, exclude=["a", rule])


@pytest.mark.parametrize("sparsity", ["0.9", True, torch.tensor(0.9)])
def test_a_sparsity_that_is_no_number_is_refused(sparsity):
    for given in (dict(sparsity=sparsity), dict(distribution={"0": sparsity})):
        with pytest.raises(TypeError, match=r"expected sparsity.* as a number in \[0, 1\], got .*, try 0.9"):
            spfde.sparsify(nn.Sequential(nn.Linear(4, 4)), **given)


REMEDIES = {
    "parametrized": lambda model: parametrize.remove_parametrizations(model["a"], "weight"),
    "pruned": lambda model: prune.remove(model["a"], "weight"),
    "lazy": lambda model: model["a"](torch.randn(1, 4)),
    "meta": lambda model: model["a"].to_empty(device="cpu"),
    "already sparse": lambda model: spfde.densify(model),
}


@pytest.mark.parametrize("problem", REMEDIES)
def test_a_remedy_heals(problem):
    layer = {
        "parametrized": lambda: parametrizations.weight_norm(nn.Linear(4, 4)),
        "pruned": lambda: prune.l1_unstructured(nn.Linear(4, 4), "weight", 0.5),
        "lazy": lambda: nn.LazyLinear(4),
        "meta": lambda: nn.Linear(4, 4, device="meta"),
        "already sparse": lambda: spfde.sparsify(nn.Linear(4, 4), 0.5),
    }[problem]()
    model = nn.ModuleDict({"a": layer, "b": nn.Linear(4, 4)})
    words = {
        "parametrized": "remove_parametrizations(layer, 'weight') first",
        "pruned": "removing the hooks first",
        "lazy": "one forward pass first",
        "meta": "to_empty(device='cpu') and loading its weights first",
        "already sparse": "spfde.densify(model) first",
    }[problem]
    text = refused(model, distribution="erk")
    assert "'a'" in text and words in text
    assert sparse(spfde.sparsify(model, 0.5, distribution="erk", exclude=pasted(text))) >= {"b"}
    model = spfde.densify(model)
    model["a"] = layer
    REMEDIES[problem](model)
    assert sparse(spfde.sparsify(model, 0.5, distribution="erk")) == {"a", "b"}


def test_nothing_to_convert_names_what_the_model_has():
    model = nn.ModuleDict(
        {
            "a": nn.GRU(3, 4), "b": nn.GRU(4, 4), "c": nn.Conv3d(1, 2, 3), "d": nn.ConvTranspose3d(4, 4, 3),
            "e": nn.LSTM(4, 4, 2), "f": nn.Bilinear(2, 3, 4), "g": nn.Embedding(5, 4), "h": nn.Linear(4, 2),
        }
    )  # fmt: skip
    text = refused(model)
    for kind in ("2 GRU", "1 Conv3d", "1 ConvTranspose3d", "1 LSTM", "1 Bilinear", "1 Embedding"):
        assert f"{kind} (no sparse form)" in text
    assert "1 Linear (the last nn.Linear stays dense), try distribution='erk'" in text
    assert "which converts 1 Linear" in text
    assert sparse(spfde.sparsify(model, 0.5, distribution="erk")) == {"h"}


def test_the_advice_for_one_layer_works_where_the_pattern_fixes_the_sparsity():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    with pytest.raises(ValueError, match=r"try distribution='erk' \(or \{'0': sparsity\}\)"):
        spfde.sparsify(model, pattern="2:4")
    assert sparse(spfde.sparsify(model, pattern="2:4", distribution={"0": 0.5})) == {"0"}


def test_gpt2_is_led_out_of_the_circle():
    model = GPT()
    text = refused(model)
    assert "9 Conv1D (no sparse form), 2 Embedding (no sparse form), 1 Linear" in text
    assert "erk" not in text and "exclusions" not in text  # the head is tied: neither would convert it
    assert f"try spfde.convert.register({path_of(Conv1D)}," in text
    text = refused(model, distribution="erk")
    assert "1 Linear (tied to wte)" in text and "exclude=" not in text
    assert f"try spfde.convert.register({path_of(Conv1D)}," in text


def test_what_is_excluded_or_untrained_is_led_on():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    assert "3 Linear (excluded), try fewer exclusions, which converts 3 Linear" in refused(model, exclude=(nn.Linear,))
    model.requires_grad_(False)
    text = refused(model)
    assert "3 Linear (its weight is not trained), try requires_grad_() on the weights" in text
    assert sparse(spfde.sparsify(model.requires_grad_(), 0.5)) == {"1"}
    assert "try a model with a trained nn.Linear, nn.Conv1d, nn.Conv2d or nn.ConvTranspose2d" in refused(nn.ReLU())


@pytest.mark.parametrize("kind", ["subclass", "hooked", "untrained"])
def test_a_bare_layer_that_is_refused_is_not_told_to_exclude_itself(kind):
    layer = Scaled(4, 4) if kind == "subclass" else nn.Linear(4, 4)
    handle = layer.register_forward_hook(lambda *_: None) if kind == "hooked" else None
    layer.weight.requires_grad_(kind != "untrained")
    text = refused(layer)
    assert "exclude" not in text
    if kind == "subclass":
        plain = nn.Linear(4, 4)
        plain.load_state_dict(layer.state_dict())  # "a plain layer with its weights"
        assert isinstance(spfde.sparsify(plain, 0.5), SparseLayer)
    elif kind == "hooked":
        handle.remove()
        assert isinstance(spfde.sparsify(layer, 0.5), SparseLayer)
    else:
        kept = spfde.nn.SparseLinear.from_dense(layer, layer.weight > 0)
        assert not kept.values.requires_grad
        layer.weight.requires_grad_()
        assert isinstance(spfde.sparsify(layer, 0.5), SparseLayer)


def test_a_distribution_that_names_what_cannot_be_is_told_to_leave_it_out():
    model = nn.ModuleDict({"a": Scaled(4, 4), "b": nn.Linear(4, 4), "c": nn.Linear(4, 4)})
    model["c"].weight.requires_grad_(False)
    every = {"a": 0.5, "b": 0.5, "c": 0.5}
    text = refused(model, distribution=every)
    assert "'c' whose weight has requires_grad False" in text and "a distribution without 'c'" in text
    del every["c"]
    assert "try a distribution without 'a'" in refused(model, distribution=every)
    assert "got 'b' in both" in refused(model, distribution=every, exclude=("b",))
    assert sparse(spfde.sparsify(model, 0.5, distribution={"b": 0.5})) == {"b"}


def test_all_that_a_pattern_does_not_fit_is_named_at_once():
    narrow = [nn.Conv2d(6, 6, 1, groups=2) for _ in range(4)]
    model = nn.Sequential(nn.Linear(8, 8), *narrow, nn.Conv2d(8, 8, 1), nn.Linear(8, 8))
    with pytest.raises(
        ValueError, match=r"'1': expected outputs .*3 others misfit too: add \(.*\) to exclude"
    ) as caught:
        spfde.sparsify(model, 0.5, pattern="block:4x1")
    names = eval(re.search(r"add (\(.*?\)) to", str(caught.value))[1])
    assert sparse(spfde.sparsify(model, 0.5, pattern="block:4x1", exclude=names)) == {"5"}
