"""The summary is of the whole model: every weight once, with its reason; what runs dense is not counted as sparse."""

import copy
import pickle
from math import prod

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune

import spfde
from spfde.nn import SparseLayer
from spfde.nn.weighted import weighted

NONE = "no sparse form"


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.router = nn.Linear(8, 4, bias=False)
        self.up, self.down = nn.Parameter(torch.randn(4, 8, 16)), nn.Parameter(torch.randn(4, 16, 8))


class Zoo(nn.Module):
    """A weight of every kind that a model may have."""

    def __init__(self):
        super().__init__()
        self.position = nn.Parameter(torch.zeros(1, 16, 8))
        self.scale = nn.Parameter(torch.ones(8))
        self.stem = nn.Conv1d(3, 8, 3)
        self.embedding = nn.Embedding(32, 8)
        self.rnn = nn.LSTM(8, 8, num_layers=2, bidirectional=True)
        self.cell = nn.GRUCell(8, 8)
        self.conv = nn.Conv3d(1, 2, 3)
        self.up = nn.ConvTranspose2d(4, 4, 2)
        self.bilinear = nn.Bilinear(8, 8, 4)
        self.attention = nn.MultiheadAttention(8, 2)
        self.experts = Experts()
        self.norm = nn.LayerNorm([4, 8])
        self.fc = nn.Linear(8, 8)
        self.same = self.fc
        self.pruned = prune.l1_unstructured(nn.Linear(8, 8), "weight", 0.5)
        self.spectral = parametrizations.spectral_norm(nn.Linear(8, 8))
        self.head = nn.Linear(8, 32, bias=False)
        self.head.weight = self.embedding.weight


@pytest.fixture
def zoo():
    torch.manual_seed(0)
    return spfde.sparsify(Zoo(), 0.5, distribution="erk", exclude=("pruned", "spectral", "head"))


def test_every_weight_is_a_row_once_and_has_a_reason(zoo):
    summary = spfde.summary(zoo)
    rows = {row.name: row for row in summary.rows}
    assert len(rows) == len(summary.rows)
    assert {name: row.kind for name, row in rows.items() if row.converted} == {
        **{f"attention.{name}_proj": "SparseLinear" for name in ("q", "k", "v", "out")}, "stem": "SparseConv1d",
        "experts.router": "SparseLinear", "fc": "SparseLinear", "up": "SparseConvTranspose2d",
    }  # fmt: skip
    without = {
        "embedding": "Embedding", "rnn": "LSTM", "cell": "GRUCell", "conv": "Conv3d", "bilinear": "Bilinear",
        "norm": "LayerNorm",
    }  # fmt: skip
    for name, kind in without.items():
        assert (rows[name].kind, rows[name].reason) == (kind, f"{NONE} of {kind}")
    for name, owner in {
        "position": "Zoo", "experts.up": "Experts", "experts.down": "Experts",
    }.items():  # fmt: skip
        assert (rows[name].kind, rows[name].reason) == ("Parameter", f"{NONE}: a Parameter of {owner}")
    for name in ("pruned", "spectral", "head"):
        assert rows[name].reason.startswith("not converted: excluded")
    assert rows["head"].reason.endswith("tied to embedding") and rows["head"].tied
    others = {*without, "position", "experts.up", "experts.down"}
    assert {n for n, row in rows.items() if not row.converted} == {*others, "pruned", "spectral", "head"}
    assert rows["experts.up"].shape == (4, 8, 16)
    assert rows["spectral"].shape == (8, 8)
    assert prod(rows["rnn"].shape) == sum(p.numel() for n, p in zoo.rnn.named_parameters() if n.startswith("weight"))
    text = str(summary)
    assert all(name in text for name in rows)


def test_the_share_is_of_the_whole_model(zoo):
    summary = spfde.summary(zoo)
    # Tied ones once.
    whole = sum(p.numel() for name, p in Zoo().named_parameters() if p.dim() > 1 and not name.endswith("bias"))
    kept = sum(m.stored for m in zoo.modules() if isinstance(m, SparseLayer))
    inside = sum(m.shape.numel() for m in zoo.modules() if isinstance(m, SparseLayer))
    assert sum(row.weights for row in summary.rows) == whole
    assert summary.converted_share == inside / whole
    assert (summary.sparse_weight_share, summary.sparse_share) == (0, 0)
    assert f"{whole - inside + kept} of {whole} weights stored" in str(summary)


def test_listing_weights_changes_nothing():
    """A power iteration in training would."""
    model = nn.Sequential(parametrizations.spectral_norm(nn.Linear(8, 8)), nn.Linear(8, 8))
    before = copy.deepcopy(model.state_dict())
    assert [row.name for row in spfde.summary(model).rows] == ["0", "1"]
    with pytest.raises(ValueError):
        spfde.sparsify(model, 0.5, distribution="erk")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_layers_without_data_are_listed():
    model = nn.Sequential(nn.LazyLinear(4), nn.LazyConv2d(4, 3), nn.Linear(4, 4, device="meta"))
    rows = spfde.summary(model).rows
    assert [row.name for row in rows] == ["0", "1", "2"]
    assert "uninitialized" in rows[0].reason and "meta" in rows[2].reason


def test_a_parameter_of_what_holds_layers_is_no_layer():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.weights = nn.Parameter(torch.ones(4, 8))
            self.layers = nn.Sequential(*(nn.Linear(8, 8) for _ in range(3)))

    model = spfde.sparsify(Net(), 0.5)
    rows = spfde.summary(model).rows
    assert [(row.name, row.converted) for row in rows] == [
        ("weights", False), ("layers.0", False), ("layers.1", True), ("layers.2", False),
    ]  # fmt: skip
    assert rows[0].kind == "Parameter"


def test_weights_that_are_partly_trained_are_whole():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    spfde.topology.FreezeNet(model, 0.5, init="magnitude")
    assert [row.shape for row in spfde.summary(model).rows] == [(8, 8), (4, 8)]


def dense_reasons(model) -> dict[str, str]:
    return {row.name: row.reason.removeprefix("not converted: ") for row in spfde.summary(model).rows}


def test_what_only_sparsify_knows_is_kept_in_copies_and_pickles_but_not_in_the_state():
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(5)))
    keys = set(model.state_dict())
    assert set(dense_reasons(model).values()) == {"not converted"}
    spfde.sparsify(model, 0.5, exclude=("2",))
    want = {
        "0": "the first weighted layer stays dense", "2": "excluded", "4": "the last nn.Linear stays dense"
    }  # fmt: skip
    for copied in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert want.items() <= dense_reasons(copied).items()
    assert {
        key.replace("values", "weight") for key in model.state_dict() if "row_ptr" not in key and "col" not in key
    } == keys
    spfde.densify(model)
    assert set(dense_reasons(model).values()) == {"not converted"}
    spfde.sparsify(model, distribution={"0": 0.5})
    assert {reason for name, reason in dense_reasons(model).items() if name != "0"} == {"not named in distribution"}


def test_what_would_be_refused_says_why():
    class Own(nn.Linear):
        pass

    model = nn.Sequential(Own(8, 8), parametrizations.weight_norm(nn.Linear(8, 8)), nn.Linear(8, 8), nn.Linear(8, 8))
    model[2].register_forward_hook(lambda *_: None)
    model[3].requires_grad_(False)
    words = ("of subclass Own", "parametrized", "hooked", "is not trained")
    assert all(word in reason for word, reason in zip(words, dense_reasons(model).values(), strict=True))


# ---- the first weighted layer ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stem", "x"),
    [
        (nn.Conv1d(3, 8, 8), torch.randn(2, 3, 8)),
        (nn.Conv3d(1, 8, 4), torch.randn(2, 1, 4, 4, 4)),
        (nn.ConvTranspose2d(8, 8, 1), torch.randn(2, 8, 1, 1)),
        (nn.EmbeddingBag(10, 8), torch.zeros(2, 4, dtype=torch.long)),
    ],
)
@pytest.mark.parametrize("order", ["registered", "run"])
def test_uniform_takes_the_first_weighted_layer_of_any_kind(stem, x, order):
    model = nn.Sequential(stem, nn.Flatten(), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    spfde.sparsify(model, 0.5, example_input=x if order == "run" else None)
    assert [type(m).__name__ for m in model[2:]] == ["SparseLinear", "SparseLinear", "Linear"]


def test_a_bare_parameter_or_a_norm_is_no_first_layer():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.position = nn.Parameter(torch.zeros(1, 4, 8))
            self.norm = nn.LayerNorm([4, 8])
            self.layers = nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)))

        def forward(self, x):
            return self.layers(self.norm(x + self.position))

    for example in (None, torch.randn(2, 4, 8)):
        model = spfde.sparsify(Tokens(), 0.5, example_input=example)
        assert [type(m).__name__ for m in model.layers] == ["Linear", "SparseLinear", "SparseLinear", "Linear"]


def test_an_untrained_stem_is_the_first_layer():
    model = nn.Sequential(nn.Linear(8, 8).requires_grad_(False), *(nn.Linear(8, 8) for _ in range(3)))
    spfde.sparsify(model, 0.5)
    assert [type(m).__name__ for m in model] == ["Linear", "SparseLinear", "SparseLinear", "Linear"]


# ---- parents that read .weight ---------------------------------------------------------------------------------------


class Window(nn.Module):
    """Attention that multiplies by what it makes of its layers' weights."""

    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Linear(64, 192), nn.Linear(64, 64)

    def forward(self, x):
        q, k, v = F.linear(x, self.qkv.weight * 1.0, self.qkv.bias).chunk(3, -1)
        return F.linear(F.scaled_dot_product_attention(q, k, v), self.proj.weight * 1.0, self.proj.bias)


def reads(model) -> dict[str, bool]:
    """Which sparse layers the summary says run dense because their parent reads the weight."""
    rows = [row for row in spfde.summary(model).rows if row.converted]
    assert not any(row.runs_sparse for row in rows if row.reason.startswith("its parent reads .weight"))
    return {row.name: row.reason.startswith("its parent reads .weight") for row in rows}


def test_layers_whose_weight_the_parent_multiplies_by_are_said_to_run_dense():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), Window(), nn.Linear(64, 256), nn.Linear(256, 64))
    spfde.sparsify(model, 0.9)
    x = torch.randn(2, 32, 64)
    assert not any(reads(model).values())
    model[2].kernel = "native"
    model(x).sum().backward()
    want = {"1.qkv": True, "1.proj": True, "2": False}
    assert reads(model) == want
    assert reads(copy.deepcopy(model)) == reads(pickle.loads(pickle.dumps(model))) == want
    summary = spfde.summary(model)
    assert summary.sparse_share == 1 / 3
    assert {row.name: row.kernel for row in summary.rows if row.converted} == {
        "1.qkv": "dense", "1.proj": "dense", "2": "native",
    }  # fmt: skip
    assert "of their multiply-adds" not in str(summary)  # nobody knows those of the two
    counted = spfde.summary(model, x)
    work = {"0": 64 * 64, "1.qkv": 192 * 64, "1.proj": 64 * 64, "2": 256 * 64, "3": 256 * 64}
    assert {row.name: row.multiply_adds for row in counted.rows} == {name: 64 * n for name, n in work.items()}
    assert counted.sparse_work_share == work["2"] / sum(work.values())
    assert "30.8% of the multiply-adds" in str(counted)
    model[1].qkv(x)  # by itself, once more
    assert not reads(model)["1.qkv"]


def test_attention_is_known_before_it_runs():
    model = nn.ModuleList([nn.Linear(8, 8), nn.MultiheadAttention(8, 2), nn.Linear(8, 8), nn.Linear(8, 8)])
    spfde.sparsify(model, 0.5, exclude=("1.[qkv]_proj",))
    assert reads(model) == {"1.out_proj": True, "2": False}


def test_the_fast_path_in_evaluation_is_not_taken():
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 4, 128, 0.0, batch_first=True), 2)
    model = nn.Sequential(nn.Linear(16, 64), encoder, nn.Linear(64, 4))
    spfde.sparsify(model, 0.9)
    x = torch.randn(4, 16, 16)

    def inner() -> set[bool]:
        return {taken for name, taken in reads(model).items() if "linear" in name}

    model(x).sum().backward()
    assert inner() == {False}
    with torch.inference_mode():
        model.eval()(x)
    assert inner() == {False}


def test_who_looks_at_a_weight_does_not_make_it_dense():
    class Penalised(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x):
            y = self.c(self.b(self.a(x)))
            return y, self.b.weight.square().sum()

    model = spfde.sparsify(Penalised(), 0.5)
    for _ in range(2):
        y, penalty = model(torch.randn(4, 8))
    (y.sum() + penalty).backward()
    assert reads(model) == {"b": False}
    with torch.no_grad():
        assert model.b.weight.norm() > 0  # a logger
    model.b.dense_weight()
    assert reads(model) == {"b": False}


def test_a_move_of_the_mask_and_of_the_model_keeps_what_is_known():
    model = spfde.sparsify(nn.Sequential(nn.Linear(64, 64), Window(), nn.Linear(64, 8)), 0.5)
    model(torch.randn(2, 4, 64))
    layer = model[1].qkv
    layer.move_to(layer.positions() if layer.nnz == 0 else layer.positions().flip(0).sort().values)
    assert reads(model) == {"1.qkv": True, "1.proj": True}
    layer(torch.randn(2, 64))
    model.double()  # a new plan
    assert reads(model) == {"1.qkv": False, "1.proj": True}


# ---- multiply-adds of the whole model --------------------------------------------------------------------------------


class Sum(nn.Module):
    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn

    def forward(self, x):
        return self.rnn(x)[0]


def test_multiply_adds_are_counted_in_layers_of_every_kind():
    cases = [
        (nn.Conv1d(3, 8, 3), torch.randn(2, 3, 10), 8 * 3 * 3 * 2 * 8),
        (nn.Conv3d(1, 4, 2), torch.randn(2, 1, 3, 3, 3), 4 * 8 * 2 * 8),
        (nn.Conv2d(4, 8, 3, groups=2), torch.randn(2, 4, 5, 5), 8 * 2 * 9 * 2 * 9),
        (nn.ConvTranspose2d(4, 8, 2, 2), torch.randn(2, 4, 3, 3), 4 * 8 * 4 * 2 * 9),
        (Sum(nn.LSTM(6, 5, batch_first=True)), torch.randn(2, 7, 6), (20 * 6 + 20 * 5) * 14),
        (nn.Embedding(9, 4), torch.zeros(2, 7, dtype=torch.long), 0),
        (nn.Linear(6, 5), torch.randn(2, 7, 6), 6 * 5 * 14),
    ]
    for layer, x, want in cases:
        (row,) = spfde.summary(nn.Sequential(layer), x).rows
        assert row.multiply_adds == want, row


def test_flops_of_attention_are_its_projections():
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    work = spfde.flops.layer_work(model, torch.randn(2, 5, 8))
    assert {name: layer.weights * layer.positions for name, layer in work.items()} == {
        "self_attn": 5 * 24 * 8, "self_attn.out_proj": 5 * 8 * 8, "linear1": 5 * 16 * 8, "linear2": 5 * 16 * 8,
    }  # fmt: skip
    counts = spfde.train.flops.training_flops(spfde.sparsify(model, 0.5, distribution="erk"), torch.randn(2, 5, 8))
    assert counts > 0


def test_a_name_neither_steers_a_terminal_nor_begins_a_row():
    model = nn.Sequential()
    for name in ("\x1b[2Jred", "two\nrows\t", "\u202eleft", "schön"):
        model.add_module(name, nn.Linear(4, 4))
    text = str(spfde.summary(spfde.sparsify(model, 0.5, distribution="erk")))
    assert text.replace("\n", "").isprintable()
    assert [line.split("  ")[0] for line in text.splitlines()[1:5]] == [
        r"\x1b[2Jred",
        r"two\nrows\t",
        r"\u202eleft",
        "schön",
    ]


def test_listing_is_the_same_in_every_place():
    """What a run records of its epochs and what summary says of the model speak of the same layers."""
    from spfde.train.record import layer_sparsity

    model = spfde.sparsify(nn.Sequential(nn.Conv1d(3, 8, 3), nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, 2)), 0.5)
    assert layer_sparsity(model) == {row.name: row.sparsity for row in spfde.summary(model).rows}
    assert [entry.name for entry in weighted(model)] == ["0", "2", "3"]
