"""transformers' language models whose head is their embedding, tied and untied, against the masked dense copy.

Part of `make test-models`; not collected by a plain run of the tests.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from models_sweep.definition import Definition
from models_sweep.dense_copy import DenseCopy, results, sparse_layers, worst
from models_sweep.stages import sparse_of
from models_sweep.sweep import on_some_batch
from models_sweep.zoo import ZOO
from torch import nn

import spfde
from spfde.nn import SparseLayer

pytestmark = pytest.mark.filterwarnings("default")  # other libraries' warnings are theirs

KINDS = [
    "BertForMaskedLM", "AlbertForMaskedLM", "GPT2LMHeadModel", "OPTForCausalLM", "BloomForCausalLM",
    "GemmaForCausalLM", "MambaForCausalLM", "T5ForConditionalGeneration", "BartForConditionalGeneration",
    "WhisperForConditionalGeneration",
]  # fmt: skip


def untied(model: nn.Module) -> nn.Module:
    """What docs/layers.md says."""
    head = model.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach().clone())
    return model


def as_the_copy(definition: Definition) -> str:
    """Outputs and gradients of a model made sparse by "erk"."""
    dense, sparse = sparse_of(definition, distribution="erk")
    batch = definition.inputs()
    return f"{worst(results(sparse, batch), *DenseCopy.of(dense, sparse).run(batch)):.2f}"


@pytest.mark.parametrize("kind", KINDS)
def test_a_tied_head_stays_dense_by_name(kind: str) -> None:
    definition = ZOO[f"transformers: {kind}"]
    _, model = sparse_of(definition, distribution="erk")
    head = model.get_output_embeddings()
    assert type(head) is nn.Linear and head.weight is model.get_input_embeddings().weight
    name = next(name for name, module in model.named_modules() if module is head)
    (row,) = (row for row in spfde.summary(model).rows if row.name == name)
    assert row.reason.startswith("not converted: tied to ") and row.tied
    on_some_batch(as_the_copy, definition)


@pytest.mark.parametrize("kind", KINDS)
def test_an_untied_head_becomes_sparse(kind: str) -> None:
    tied = ZOO[f"transformers: {kind}"]
    definition = replace(tied, make=lambda: untied(tied.make()))
    _, model = sparse_of(definition, distribution="erk")
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    assert isinstance(head, SparseLayer) and head.dense_shape == embedding.weight.shape
    on_some_batch(as_the_copy, definition)


@pytest.mark.parametrize("head", ["tied", "untied and sparse", "untied and dense"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_tied_and_what_is_not_is_saved_so(kind: str, head: str, tmp_path: Path) -> None:
    from spfde.integrations import hf

    definition = ZOO[f"transformers: {kind}"]
    model = definition.model() if head == "tied" else untied(definition.model())
    spfde.sparsify(model, 0.8, distribution="erk" if head == "untied and sparse" else "uniform")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    hf.save_pretrained(model, tmp_path / "sparse")
    again, batch = hf.from_pretrained(type(model), tmp_path / "sparse"), definition.inputs()
    before = results(model.eval(), batch)
    assert_same(before, results(again, batch))
    assert sparse_layers(again).keys() == sparse_layers(model).keys()
    spfde.densify(model).save_pretrained(tmp_path / "dense")
    plain = type(model).from_pretrained(tmp_path / "dense").eval()
    assert_same({"output 0": before["output 0"]}, {"output 0": results(plain, batch)["output 0"]}, 1e-5)


def assert_same(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor], rounding: float = 0.0) -> None:
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        torch.testing.assert_close(after[key], tensor, rtol=rounding, atol=rounding)
