"""Experts packed in 3-D Parameters, as transformers has them, with sparse projections: equal to the packed module."""

import copy
import functools
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import spfde
from spfde.nn import SparseExperts, SparseLinear

EXPERTS, FEATURES, INSIDE = 5, 7, 6
# gate, bias, [inputs, outputs]: as in Mixtral, gpt-oss and Nemotron.
FORMS = {"gated": (True, False, False), "turned": (True, True, True), "plain": (False, False, False)}


class Config:
    """What a model and all of its modules share."""


def one_by_one(experts, x, index, weights):
    """An expert's product at a time, from the packed Parameters."""
    out = torch.zeros_like(x)
    for token in range(len(x)):
        for place in range(index.shape[1]):
            e = int(index[token, place])
            if e < experts.num_experts:
                out[token] = out[token] + weights[token, place] * experts.expert(e, x[token])
    return out


class Experts(nn.Module):
    def __init__(self, has_gate=True, has_bias=False, is_transposed=False):
        super().__init__()
        self.config, self.num_experts, self.act_fn = Config(), EXPERTS, nn.SiLU()
        self.has_gate, self.has_bias, self.is_transposed = has_gate, has_bias, is_transposed
        self.has_post_expert_norm = False
        self.up = "gate_up_proj" if has_gate else "up_proj"
        for name, shape in ((self.up, (INSIDE * (1 + has_gate), FEATURES)), ("down_proj", (FEATURES, INSIDE))):
            shape = shape[::-1] if is_transposed else shape
            setattr(self, name, nn.Parameter(torch.randn(EXPERTS, *shape)))
            if has_bias:
                setattr(self, f"{name}_bias", nn.Parameter(torch.randn(EXPERTS, shape[-1 if is_transposed else 0])))

    def _apply_gate(self, y):
        gate, up = y.chunk(2, -1)
        return self.act_fn(gate) * up

    def expert(self, e, x):
        for name, act in ((self.up, self._apply_gate if self.has_gate else self.act_fn), ("down_proj", lambda y: y)):
            weight = getattr(self, name)[e]
            bias = getattr(self, f"{name}_bias")[e] if self.has_bias else None
            x = act(F.linear(x, weight.T if self.is_transposed else weight, bias))
        return x

    @functools.wraps(one_by_one)
    def forward(self, x, index, weights):
        return one_by_one(self, x, index, weights)


def made(form="gated", sparsity=0.5, **options):
    torch.manual_seed(0)
    dense = Experts(*FORMS[form]).double()
    return dense, spfde.sparsify(copy.deepcopy(dense), sparsity, distribution="erk", **options)


def sent(tokens=11, without=3):
    """Tokens to two experts each, none to one of them; and to none, as other ranks' experts are."""
    index = torch.stack([torch.randperm(EXPERTS)[:2] for _ in range(tokens)]) if tokens else torch.zeros(0, 2).long()
    index[index == without] = EXPERTS
    return torch.randn(tokens, FEATURES).double(), index, torch.rand(tokens, 2).double()


@pytest.mark.parametrize("tokens", [0, 1, 11])
@pytest.mark.parametrize("sparsity", [0, 0.5, 1])
@pytest.mark.parametrize("form", FORMS)
def test_outputs_and_gradients_equal_the_packed_module(form, sparsity, tokens):
    dense, sparse = made(form, sparsity)
    assert type(sparse) is SparseExperts and not set(sparse.replaced) & set(dict(sparse.named_parameters()))
    assert sum(type(m) is SparseLinear for m in sparse.modules()) == 2 * EXPERTS
    packed = spfde.densify(copy.deepcopy(sparse))
    assert type(packed) is Experts and not any(isinstance(m, nn.Linear) for m in packed.modules())
    for name in ("num_experts", "has_gate", "has_bias", "is_transposed", "up"):
        assert getattr(packed, name) == getattr(dense, name)
    for name, parameter in packed.named_parameters():  # the very weights that are stored, others 0
        own = dict(dense.named_parameters())[name]
        assert parameter.shape == own.shape and torch.equal(parameter, own.where(parameter != 0, 0))
    x, index, weights = sent(tokens)
    ours, theirs = ([t.clone().requires_grad_() for t in (x, weights)] for _ in range(2))
    y, wanted = sparse(ours[0], index, ours[1]), packed(theirs[0], index, theirs[1])
    torch.testing.assert_close(y, wanted)
    cotangent = torch.randn_like(wanted)
    if tokens:
        y.backward(cotangent)
        wanted.backward(cotangent)
        torch.testing.assert_close([t.grad for t in ours], [t.grad for t in theirs])
    for name in (packed.up, "down_proj"):
        grads = getattr(packed, name).grad
        for expert, layer in enumerate(getattr(sparse, name)):
            if layer.values.grad is None:
                assert grads is None or not grads[expert].any()
                continue
            own, mask = copy.deepcopy(layer), layer.mask().mT if packed.is_transposed else layer.mask()
            own.values.data.copy_(layer.values.grad)
            own = own.dense_weight().mT if packed.is_transposed else own.dense_weight()
            torch.testing.assert_close(own, grads[expert] * mask)
            if packed.has_bias:
                torch.testing.assert_close(layer.bias.grad, getattr(packed, f"{name}_bias").grad[expert])


@pytest.mark.parametrize("form", FORMS)
def test_states_copies_and_dense_checkpoints(form):
    _, sparse = made(form)
    packed, x = spfde.densify(copy.deepcopy(sparse)), sent()
    wanted = packed(*x)
    for other in (copy.deepcopy(sparse), pickle.loads(pickle.dumps(sparse))):
        torch.testing.assert_close(other(*x), wanted)
    _, again = made(form, seed=1)
    again.load_state_dict(sparse.state_dict())
    torch.testing.assert_close(again(*x), wanted)
    _, again = made(form, seed=1)
    again.load_state_dict(packed.state_dict())  # packed
    torch.testing.assert_close(again(*x), wanted)


def test_the_config_stays_the_models_own():
    model = nn.Sequential(nn.Linear(4, 4), Experts(), nn.Linear(4, 4))
    config = model[1].config
    assert spfde.densify(spfde.sparsify(model, 0.5))[1].config is config


def test_what_stays_dense_is_put_together_again_and_says_why():
    model = nn.Sequential(nn.Linear(4, 4), Experts(), nn.Linear(4, 4), nn.Linear(4, 4))
    experts = model[1]
    spfde.sparsify(model, 0.5, exclude="1")
    assert model[1] is experts
    reasons = {row.name: row.reason for row in spfde.summary(model).rows}
    assert reasons["1.down_proj"] == "not converted: excluded"
    with pytest.raises(ValueError, match="'nothing'"):
        spfde.sparsify(spfde.densify(model), 0.5, exclude=("nothing",))
    assert model[1] is experts


def test_an_expert_that_stays_dense_has_memory_of_its_own():
    model = nn.Sequential(Experts(), nn.Linear(4, 4))
    spfde.sparsify(model, distribution={"0.down_proj.1": 0.5})
    weight = model[0].down_proj[0].weight
    assert type(model[0].down_proj[1]) is SparseLinear
    assert weight.untyped_storage().nbytes() == weight.nbytes


@pytest.mark.parametrize("case", ["hooked", "fixed", "normed", "tied", "own forward"])
def test_what_computes_otherwise_is_left_alone_and_named(case):
    experts, last = Experts(), nn.Linear(4, 4)
    if case == "hooked":
        experts.register_forward_hook(lambda *_: None)
    elif case == "fixed":
        experts.down_proj.requires_grad_(False)
    elif case == "normed":
        experts.has_post_expert_norm = True
    elif case == "tied":
        last.again = experts.down_proj
    else:
        experts.forward = lambda *_: None
    model = spfde.sparsify(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), experts, last), 0.5)
    rows = {row.name: row for row in spfde.summary(model).rows}
    assert rows["2.gate_up_proj"].reason == "no sparse form: a Parameter of Experts"
    assert rows["2.gate_up_proj"].shape == (EXPERTS, 2 * INSIDE, FEATURES) and rows["1"].converted


def test_an_optimizer_of_before_is_told():
    model = nn.ModuleList([Experts().double()])
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    spfde.sparsify(model, 0.5, distribution="erk")
    model[0](*sent()).sum().backward()
    with pytest.raises(ValueError, match=r"'0\.gate_up_proj'"):
        optimizer.step()


@pytest.mark.parametrize("method", ["SET", "RigL"])
def test_masks_move_where_tokens_went(method):
    _, sparse = made()
    optimizer = torch.optim.AdamW(sparse.parameters(), 0.01)
    topology = getattr(spfde.topology, method)(sparse, optimizer, total_steps=10, every=1, drop_fraction=0.5)
    before = {name: m.positions() for name, m in sparse.named_modules() if isinstance(m, SparseLinear)}
    optimizer.zero_grad()
    sparse(*sent()).square().sum().backward()
    optimizer.step()
    assert topology.step()
    moved = {
        name for name, positions in before.items() if not torch.equal(positions, sparse.get_submodule(name).positions())
    }
    assert {name.split(".")[1] for name in moved} >= {"0", "1", "2", "4"}
    assert method == "SET" or not any(name.endswith(".3") for name in moved)  # no gradient says where to grow
    torch.testing.assert_close(sparse(*(x := sent())), spfde.densify(copy.deepcopy(sparse))(*x))
