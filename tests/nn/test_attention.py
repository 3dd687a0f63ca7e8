"""nn.MultiheadAttention with sparse projections: equal to the packed one, in every way it is called."""

import copy

import pytest
import torch
from torch import nn

import spfde
from spfde.nn import SparseLinear, SparseMultiheadAttention

OPTIONS = {
    "self": dict(),
    "batch second": dict(batch_first=False),
    "no bias": dict(bias=False),
    "other sizes": dict(kdim=5, vdim=7),
    "learnt key": dict(add_bias_kv=True),
    "zero key": dict(add_zero_attn=True),
}
MASKS = {
    "none": {},
    "padding": {"key_padding_mask": torch.tensor([[False] * 4, [False, False, True, True], [False] * 4])},
    "bool": {"attn_mask": torch.ones(3, 4, dtype=torch.bool).triu(2)},
    "float for heads": {"attn_mask": torch.linspace(-1, 1, 3 * 2 * 3 * 4).view(6, 3, 4)},
    "both": {
        "attn_mask": torch.ones(3, 4, dtype=torch.bool).triu(2),
        "key_padding_mask": torch.tensor([[False] * 4, [False, False, True, True], [False] * 4]),
    },
}


def made(sparsity=0.5, **options):
    torch.manual_seed(0)
    dense = nn.MultiheadAttention(8, 2, **{"batch_first": True, **options})
    if dense.in_proj_bias is not None:
        nn.init.normal_(dense.in_proj_bias)
    sparse = spfde.sparsify(copy.deepcopy(dense), sparsity, distribution="erk")
    q, k, v = torch.randn(3, 3, 8), torch.randn(3, 4, dense.kdim), torch.randn(3, 4, dense.vdim)
    qkv = (q, k, v) if dense.batch_first else tuple(t.transpose(0, 1).contiguous() for t in (q, k, v))
    return dense, sparse, qkv


def test_every_projection_is_sparse():
    _, sparse, qkv = made()
    assert type(sparse) is SparseMultiheadAttention and isinstance(sparse, nn.MultiheadAttention)
    assert all(type(layer) is SparseLinear for layer in (*sparse.projections, sparse.out_proj))
    sparse(*qkv)
    assert spfde.summary(sparse, qkv).sparse_work_share in (0, 1)  # layers this small may run dense
    assert {row.name for row in spfde.summary(sparse).rows} == {"q_proj", "k_proj", "v_proj", "out_proj"}


@pytest.mark.parametrize("weights", [True, False, pytest.param("heads", marks=pytest.mark.full)])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("options", OPTIONS)
def test_outputs_and_gradients_equal_the_packed_module(options, mask, weights):
    _, sparse, qkv = made(**OPTIONS[options])
    packed = spfde.densify(copy.deepcopy(sparse))
    assert type(packed) is nn.MultiheadAttention
    given = {**MASKS[mask], "need_weights": bool(weights), "average_attn_weights": weights != "heads"}
    ours, theirs = ([t.clone().requires_grad_() for t in qkv] for _ in range(2))
    (y, w), (wanted, wanted_w) = sparse(*ours, **given), packed(*theirs, **given)
    torch.testing.assert_close(y, wanted)
    assert (w is None) == (wanted_w is None)
    if w is not None:
        torch.testing.assert_close(w, wanted_w)
    cotangent = torch.randn_like(y)
    grads, wanted = torch.autograd.grad(y, ours, cotangent), torch.autograd.grad(wanted, theirs, cotangent)
    torch.testing.assert_close(grads, wanted, rtol=1e-4, atol=1e-5)


def test_single_sequences_a_causal_hint_and_dropout():
    _, sparse, (q, _, _) = made()
    packed, x = spfde.densify(copy.deepcopy(sparse)), q[0]
    torch.testing.assert_close(sparse(x, x, x), packed(x, x, x))
    mask = nn.Transformer.generate_square_subsequent_mask(3)
    hinted = dict(attn_mask=mask, is_causal=True, need_weights=False)
    torch.testing.assert_close(sparse(q, q, q, **hinted)[0], packed(q, q, q, **hinted)[0])
    with pytest.raises(RuntimeError, match="expected attn_mask with is_causal"):
        sparse(q, q, q, is_causal=True)
    with pytest.raises(ValueError, match="expected query, key and value"):
        sparse(q, x, x)
    sparse.dropout = 0.5
    assert not torch.equal(sparse(q, q, q)[0], sparse(q, q, q)[0])
    assert torch.equal(sparse.eval()(q, q, q)[0], sparse(q, q, q)[0])


def encoder(norm_first=False, layers=2):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True, norm_first=norm_first)
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=not norm_first)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")  # of the dense one
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("norm_first", [False, True])
def test_fast_paths_of_inference_run_every_layer_sparse(norm_first, padded):
    model = spfde.sparsify(encoder(norm_first), 0.5, distribution="erk").eval()
    dense = spfde.densify(copy.deepcopy(model)).eval()
    x, ran = torch.randn(3, 4, 8), set()
    padding = MASKS["padding"]["key_padding_mask"] if padded else None
    for name, layer in model.named_modules():
        if isinstance(layer, SparseLinear):
            layer.register_forward_hook(lambda *_, name=name: ran.add(name))
    with torch.no_grad():
        y, wanted = model(x, src_key_padding_mask=padding), dense(x, src_key_padding_mask=padding)
    kept = torch.ones(3, 4, dtype=torch.bool) if padding is None else ~padding
    torch.testing.assert_close(y[kept], wanted[kept])
    assert len(ran) == 2 * 6
    assert not any(m.weight_taken for m in model.modules() if isinstance(m, SparseLinear))


def test_feed_forward_layers_alone_run_sparse_too():
    model = spfde.sparsify(encoder(), 0.5, distribution="erk", exclude=nn.MultiheadAttention).eval()
    assert all(type(layer.self_attn) is nn.MultiheadAttention for layer in model.layers)
    with torch.no_grad():
        model(torch.randn(3, 4, 8))
    assert not any(m.weight_taken for m in model.modules() if isinstance(m, SparseLinear))


def test_dense_checkpoints_load_and_states_round_trip():
    for options in OPTIONS.values():
        _, sparse, qkv = made(**options)
        y = sparse(*qkv)[0]
        packed = spfde.densify(copy.deepcopy(sparse))
        other = spfde.sparsify(nn.MultiheadAttention(8, 2, **{"batch_first": True, **options}), 0.5, distribution="erk")
        other.load_state_dict(packed.state_dict())
        torch.testing.assert_close(other(*qkv)[0], y)
        other = copy.deepcopy(other)
        other.load_state_dict(sparse.state_dict())
        assert torch.equal(other(*qkv)[0], y)


def test_what_is_left_dense_stays_packed():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), encoder(layers=1), nn.Linear(8, 8))
    attention = model[1].layers[0].self_attn
    spfde.sparsify(model, 0.5, exclude=("*.q_proj", "*.k_proj", "*.v_proj"))
    assert model[1].layers[0].self_attn is attention and type(attention.out_proj) is SparseLinear
    for fixed in (False, True):
        model = encoder(layers=1)
        attention = model.layers[0].self_attn
        if fixed:
            attention.in_proj_weight.requires_grad_(False)
        else:
            attention.register_forward_hook(lambda *_: None)
        spfde.sparsify(model, 0.5, distribution="erk")
        assert model.layers[0].self_attn is attention


def test_a_refusal_leaves_the_model_as_it_was():
    model = encoder()
    before = {name: id(module) for name, module in model.named_modules()}
    with pytest.raises(ValueError, match="exclude"):
        spfde.sparsify(model, 0.5, exclude="nothing")
    assert {name: id(module) for name, module in model.named_modules()} == before


def test_an_optimizer_of_before_is_told():
    model = encoder()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    spfde.sparsify(model, 0.5, exclude=("*.linear?", "*.out_proj"), distribution="erk")
    model(torch.randn(3, 4, 8)).sum().backward()
    with pytest.raises(ValueError, match="in_proj_weight.*try building the optimizer anew"):
        optimizer.step()


def test_it_trains_moves_freezes_compiles_and_fuses():
    model = spfde.sparsify(encoder(), 0.7, distribution="erk")
    x = torch.randn(3, 4, 8)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    topology = spfde.topology.RigL(model, optimizer, total_steps=10, every=1, drop_fraction=0.6)
    before = model.layers[0].self_attn.k_proj.mask()
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
        topology.step()
    assert not torch.equal(model.layers[0].self_attn.k_proj.mask(), before)
    torch._dynamo.reset()
    compiled = torch.compile(model.layers[0], backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model.layers[0](x))
    spfde.freezing.freeze(model.layers[0])
    assert not any(p.requires_grad for p in model.layers[0].parameters())
    y = model(x)
    torch.testing.assert_close(spfde.fuse(model)(x), y)
