"""The callback in transformers' Trainer: three levers, resumed to the same bits; sparse models saved and loaded."""

import copy

import pytest
import torch
from launched import launch
from torch.utils.data import Dataset

import spfde
from spfde.nn import SparseLayer

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
hf = pytest.importorskip("spfde.integrations.hf")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
SAMPLES, EPOCHS = 40, 4


class Sentences(Dataset):
    """The label is whether the first word is of the first half of the vocabulary."""

    def __init__(self) -> None:
        self.words = torch.randint(1, 50, (SAMPLES, 8), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> dict:
        return {"input_ids": self.words[index], "labels": int(self.words[index, 0] < 25)}


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = transformers.BertConfig(vocab_size=50, max_position_embeddings=8, num_labels=2, **sizes)
    return spfde.sparsify(transformers.BertForSequenceClassification(config), 0.7)


def trainer(folder, sieve: type = spfde.sieving.Circular, **options):
    model = network()
    args = transformers.TrainingArguments(
        str(folder),
        per_device_train_batch_size=5,
        num_train_epochs=EPOCHS,
        save_strategy="steps",
        save_steps=1,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        logging_strategy="no",
        learning_rate=1e-3,
        **options,
    )
    blocks = spfde.freezing.blocks(model, {"input_ids": torch.ones(1, 8, dtype=torch.long)})
    freezer = spfde.freezing.Static(model, blocks, epochs=EPOCHS, count=1, start=2)
    callback = hf.SpfdeCallback(
        lambda run: spfde.topology.RigL(run.model, run.optimizer, total_steps=run.total_steps, every=2),
        freezer,
        sieve(SAMPLES, fraction=0.25, interval=1),
    )
    made = transformers.Trainer(model, args, train_dataset=Sentences())
    return callback.attach(made), callback


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    made, callback = trainer(folder)
    made.train()
    return folder, made, callback


def test_the_levers_act(whole):
    _, made, callback = whole
    kinds = {decision.kind for _, decision in callback.engine.decisions}
    assert {"topology", "freeze", "sieve"} <= kinds, callback.engine.decisions
    assert len(made.train_dataset) == SAMPLES and made.state.global_step == EPOCHS * 6
    sieve = callback.engine.levers.sampler
    assert sieve.presentations.sum() == EPOCHS * 30


@pytest.mark.parametrize("step", [4, 6, 15])  # within an epoch, at its end, and with a frozen block
def test_a_resumed_training_ends_with_the_same_bits(whole, tmp_path, step):
    folder, straight, first = whole
    made, callback = trainer(tmp_path)
    made.train(resume_from_checkpoint=str(folder / f"checkpoint-{step}"))
    ours, theirs = made.model.state_dict(), straight.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    sieves = [each.engine.levers.sampler.state_dict() for each in (first, callback)]
    assert all(
        torch.equal(torch.as_tensor(a), torch.as_tensor(b))
        for a, b in zip(*map(dict.values, sieves), strict=True)
        if not isinstance(a, str)
    )


def on_two_ranks(rank: int, folder: str) -> None:
    torch.set_num_threads(1)

    def unshared(samples: int, **given) -> spfde.sieving.Sieve:
        return spfde.sieving.Circular(samples, rank=0, world=1, **given)

    made, callback = trainer(folder, unshared, ddp_find_unused_parameters=True)
    made.train()
    again, resumed = trainer(folder, unshared, ddp_find_unused_parameters=True)
    again.train(resume_from_checkpoint=f"{folder}/checkpoint-4")  # after a step of the second epoch
    ours, theirs = again.model.state_dict(), made.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    for each in (callback, resumed):
        assert each.engine.levers.sampler.presentations.sum() == EPOCHS * 30 and each.engine.frozen
    torch.save(theirs, f"{folder}/{rank}.pt")


def test_two_processes_train_one_model(tmp_path):
    launch(on_two_ranks, 2, str(tmp_path), start="fork")
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert all(first[name].equal(second[name]) for name in first)


def test_what_a_trainer_cannot_do_is_refused(tmp_path):
    with pytest.raises(ValueError, match="epochs of one length.*got InfoBatch, try Circular"):
        trainer(tmp_path, lambda n, fraction, interval: spfde.sieving.InfoBatch(n, fraction=fraction, epochs=EPOCHS))
    with pytest.raises(TypeError, match="expected levers .* got int"):
        hf.SpfdeCallback(3)


def gpt2() -> torch.nn.Module:
    config = transformers.GPT2Config(vocab_size=40, n_positions=8, n_embd=16, n_layer=2, n_head=2)
    return transformers.GPT2LMHeadModel(config).eval()


def assert_comes_back(model: torch.nn.Module, folder) -> None:
    """Saved and loaded by a class and an auto class: the same bits, outputs, patterns and tied weights."""
    hf.save_pretrained(model, folder)
    for kind in (transformers.AutoModelForCausalLM, transformers.GPT2LMHeadModel):
        loaded = hf.from_pretrained(kind, folder)
        ours, theirs = model.state_dict(), loaded.state_dict()
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
        assert patterns_of(loaded) == patterns_of(model)
        words = torch.arange(8)[None]
        assert torch.equal(model(words).logits, loaded(words).logits)
        assert loaded.lm_head.weight is loaded.transformer.wte.weight


def patterns_of(model: torch.nn.Module) -> dict[str, str]:
    return {name: str(m.pattern) for name, m in model.named_modules() if isinstance(m, SparseLayer)}


@pytest.mark.parametrize("pattern", ["unstructured", "block:4x4", "2:4"])
def test_a_sparse_model_is_saved_and_loaded(tmp_path, pattern):
    model = spfde.sparsify(gpt2(), None if pattern == "2:4" else 0.75, pattern=pattern)
    layers = [m for m in model.modules() if isinstance(m, SparseLayer)]
    if pattern == "unstructured":
        spfde.topology.reserve(layers[0], layers[0].nnz + 7)
    assert_comes_back(model, tmp_path)
    assert_comes_back(model.to(torch.bfloat16), tmp_path / "bf16")


def test_patterns_and_distributions_in_one_model_are_saved_and_loaded(tmp_path):
    model, sparse = gpt2(), SparseLayer
    spfde.sparsify(model, pattern="2:4", exclude=("*.mlp.*", "*.1.*"))
    spfde.sparsify(model, 0.75, pattern="block:4x4", exclude=(sparse, "*.0.*", "*.mlp.*"))
    spfde.topology.permute(model, exclude="*.1.attn.c_proj")
    spfde.sparsify(model, pattern="fan-in", distribution={"transformer.h.0.mlp.c_fc": 0.6}, exclude=sparse)
    spfde.sparsify(model, 0.7, distribution="erk", exclude=sparse)
    assert_comes_back(model, tmp_path)
    again = hf.from_pretrained(transformers.GPT2LMHeadModel, tmp_path)  # sparse when it is saved once more
    optimizer = torch.optim.SGD(again.parameters(), 0.1)
    topology = spfde.topology.SET(again, optimizer, total_steps=100, every=1)
    again(torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
    optimizer.step()
    assert topology.step()
    assert set(patterns_of(again).values()) == {"2:4", "block:4x4", "fan-in", "unstructured"}
    assert_comes_back(again, tmp_path / "moved")


def test_what_cannot_be_saved_or_loaded_is_told(tmp_path):
    with pytest.raises(TypeError, match="expected a model of transformers, got Sequential, try its module"):
        hf.save_pretrained(torch.nn.Sequential(gpt2()), tmp_path)
    made = spfde.topology.powerpropagate(spfde.sparsify(gpt2(), 0.5))
    with pytest.raises(ValueError, match=r"got Powerprop.* in 'transformer.h.0.attn.c_attn', try spfde.densify"):
        hf.save_pretrained(made, tmp_path)
    learned = spfde.sparsify(gpt2(), 0.5, pattern="block:4x4")
    spfde.topology.Permutations(learned, total_steps=10)
    with pytest.raises(ValueError, match=r"what they store, got Permutation\(inputs, 16, soft\) in"):
        hf.save_pretrained(learned, tmp_path)
    assert not any(tmp_path.iterdir())
    model = spfde.sparsify(gpt2(), 0.5)
    hf.save_pretrained(model, tmp_path)
    with pytest.raises(TypeError, match=r"expected a class of models, got a GPT2LMHeadModel, try type\(model\)"):
        hf.from_pretrained(model, tmp_path)
    other = gpt2()
    other.config.spfde, other.config.spfde_tied = model.config.spfde, model.config.spfde_tied
    other.save_pretrained(tmp_path / "dense")
    with pytest.raises(RuntimeError, match="expected a dense weight with 384 nonzeros, got 768"):
        hf.from_pretrained(transformers.GPT2LMHeadModel, tmp_path / "dense")
    other.config.spfde = {"transformer.h.0.attn.c_attn": {"sparsity": 0.5, "pattern": "unstructured", "room": 384}}
    model.config.spfde = other.config.spfde
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="sparse GPT2LMHeadModel of config.spfde .* try GPT2LMHeadModel.from_pre"):
        hf.from_pretrained(transformers.GPT2LMHeadModel, tmp_path)


@pytest.mark.skipif(int(transformers.__version__.partition(".")[0]) < 5, reason="its experts are layers")
@pytest.mark.parametrize("kind", ["Mixtral", "GptOss"])
def test_packed_experts_run_sparse_and_are_saved(tmp_path, kind):
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, head_dim=8,
        num_key_value_heads=2, max_position_embeddings=64, num_local_experts=4, num_experts_per_tok=2,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    )  # fmt: skip
    dense = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    assert dense.model.layers[0].mlp.experts.down_proj.dim() == 3
    model = spfde.sparsify(copy.deepcopy(dense), 0.5)
    rows = {row.name: row for row in spfde.summary(model).rows}
    assert all(row.converted for name, row in rows.items() if ".experts." in name)
    assert sum(".experts." in name for name in rows) == 2 * 2 * 4
    words = torch.randint(40, (2, 16))
    masked = spfde.densify(copy.deepcopy(model))
    assert type(masked.model.layers[0].mlp.experts) is type(dense.model.layers[0].mlp.experts)
    for implementation in ("eager", "batched_mm"):
        masked.set_experts_implementation(implementation)
        torch.testing.assert_close(model(words).logits, masked(words).logits, rtol=1e-4, atol=1e-5)
    hf.save_pretrained(model, tmp_path)
    assert torch.equal(hf.from_pretrained(type(dense), tmp_path)(words).logits, model(words).logits)


def test_a_dense_model_is_named(tmp_path):
    config = transformers.GPT2Config(vocab_size=40, n_positions=8, n_embd=16, n_layer=1, n_head=2)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"expected config.spfde .*try AutoModelForCausalLM.from_pretrained"):
        hf.from_pretrained(transformers.AutoModelForCausalLM, tmp_path)
