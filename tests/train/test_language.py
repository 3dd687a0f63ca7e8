"""Language models by the same loop: losses of sequences against float64, levers by sequence, perplexity."""

import copy
import dataclasses
import math

import pytest
import torch
from torch.utils.data import Dataset
from train.runs import Stop, bits, figures, same

from spfde.data import Sequences
from spfde.levers import Loss
from spfde.models import GPT
from spfde.train import Recipe, fit
from spfde.train.build import build
from spfde.train.data import LoaderSource, TensorSource, source
from spfde.train.session import Inputs
from spfde.train.stats import Stopwatch
from spfde.train.step import forward_backward
from spfde.train.task import LANGUAGE

TOKENS, CONTEXT = 7, 6


def text(count, seed=0):
    """Sequences that count upwards from anywhere, one in four of them noise."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randint(0, TOKENS, (count, 1), generator=generator)
    tokens = (start + torch.arange(CONTEXT + 1)) % TOKENS
    tokens[::4] = torch.randint(0, TOKENS, (len(tokens[::4]), CONTEXT + 1), generator=generator)
    return Sequences(tokens)


def gpt(seed=1):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT(16, 3, 2, vocab_size=TOKENS, context=CONTEXT)


def recipe(**fields):
    levers = {} if fields.get("method") == "dense" else {"sparsity": 0.5, "freeze": 0.1, "sieve": 0.25}
    common = {"optimizer": "adamw", "lr": 0.01, "epochs": 6, "batch_size": 8, "threads": 1}
    return Recipe(**{**common, **levers, **fields})


def run(wanted, **options):
    return fit(wanted, model=gpt(), train_set=text(48), test_set=text(20, seed=1), **options)


class Items(Dataset):
    """The same sequences from a data set of one's own."""

    def __init__(self, sequences):
        self.sequences = sequences

    def __len__(self):
        return len(self.sequences)

    def __getitem__(self, index):
        return self.sequences[index]


class Doubling:
    """A lever that keeps the losses that it is told and doubles those of the first sequence of a batch."""

    needs = frozenset({Loss})

    def __init__(self):
        self.told = []

    def on(self, event, run):
        self.told.append(event)
        return torch.ones(len(event.losses)).index_fill(0, torch.tensor([0]), 2.0)

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


@pytest.mark.parametrize(
    ("accumulate", "smoothing", "weighted"), [(1, 0.0, False), (1, 0.2, True), (3, 0.2, False), (3, 0.0, True)]
)
def test_losses_and_gradients_are_those_of_a_float64_reference(accumulate, smoothing, weighted):
    lever = Doubling()
    wanted = recipe(method="dense", accumulate=accumulate, label_smoothing=smoothing)
    session = build(Inputs(wanted, gpt(), text(48), text(20), levers=(lever,) if weighted else ()))
    tokens, targets = (torch.stack(each) for each in zip(*map(text(48).__getitem__, range(7)), strict=True))
    reference = copy.deepcopy(session.model).double()
    log_p = reference(tokens).log_softmax(-1)
    right = torch.nn.functional.one_hot(targets, TOKENS).double() * (1 - smoothing) + smoothing / TOKENS
    losses = -(right * log_p).sum(-1).mean(1)
    firsts = torch.tensor([len(part) for part in torch.arange(7).tensor_split(accumulate)]).cumsum(0) - 1
    weights = torch.ones(7).double()
    if weighted:
        weights[torch.cat([torch.tensor([0]), firsts[:-1] + 1])] = 2
    (losses * weights).mean().backward()
    logits, value = forward_backward(session, tokens, targets, torch.arange(7), Stopwatch())
    assert value == pytest.approx(losses.mean().item(), rel=1e-5) and logits.shape == (7, CONTEXT, TOKENS)
    for got, expected in zip(session.model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(got.grad.double(), expected.grad, rtol=1e-4, atol=1e-6)
    if weighted:
        torch.testing.assert_close(torch.cat([e.losses for e in lever.told]).double(), losses, rtol=1e-5, atol=1e-6)
        assert torch.cat([event.targets for event in lever.told]).shape == (7, CONTEXT)


def test_a_run_learns_with_every_lever_and_is_judged_by_perplexity():
    result = run(recipe(epochs=10, lr=0.02))
    tokens, targets = (torch.stack(each) for each in zip(*map(text(20, 1).__getitem__, range(20)), strict=True))
    with torch.no_grad():
        log_p = result.model.eval()(tokens).double().log_softmax(-1)
    loss = -log_p.gather(-1, targets[..., None]).mean().item()
    last = result.epochs[-1]
    assert result.task is LANGUAGE and last.task == "language"
    assert last.test_loss == pytest.approx(loss, rel=1e-5) and result.figure == pytest.approx(math.exp(loss), rel=1e-5)
    assert last.test_accuracy == (log_p.argmax(-1) == targets).double().mean().item()
    assert result.figure < 0.6 * TOKENS  # it has learnt to count
    assert 0 < last.train_accuracy <= 1 and last.sieved == 12 and last.frozen
    assert {event.kind for epoch in result.epochs for event in epoch.events} == {"freeze", "sieve", "topology"}


def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path):
    def stop(record):
        raise Stop

    whole = run(recipe(out=tmp_path / "whole"))
    with pytest.raises(Stop):
        run(recipe(out=tmp_path / "parts"), on_epoch=stop)
    parts = run(recipe(out=tmp_path / "parts"), resume=True)
    assert same(bits(parts.model), bits(whole.model))
    assert [figures(e) for e in parts.epochs] == [figures(e) for e in whole.epochs]


def test_a_data_set_of_ones_own_gives_the_same_batches():
    ours, theirs = source(text(9)), source(Items(text(9)))
    assert type(ours) is TensorSource and type(theirs) is LoaderSource
    for a, b in zip(ours.batches(torch.arange(9), 4), theirs.batches(torch.arange(9), 4), strict=True):
        assert all(map(torch.equal, a, b))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"dataset": "stdlib", "model": "resnet20"}, "expected a network for tokens, got 'resnet20', try 'gpt_micro'"),
        ({"dataset": "stdlib", "model": "gpt_micro", "crop": 2}, "expected images .* for crop and flip"),
        ({"dataset": "stdlib", "model": "gpt_micro", "sieve_by": "el2n"}, "expected a sieve by losses for sequences"),
        ({"dataset": "digits", "context": 5}, "expected no context with the data set 'digits'"),
    ],
)
def test_what_does_not_fit_the_task_is_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        fit(Recipe(**fields, train_images=20, test_images=10))


def test_tokens_that_the_model_does_not_know_are_refused():
    wanted = dataclasses.replace(recipe(method="dense"), epochs=1)
    few = GPT(16, 1, 2, vocab_size=TOKENS, context=CONTEXT)
    with pytest.raises(ValueError, match=r"expected labels in \[0, 7\), the classes of the model's output, got 9"):
        fit(wanted, model=few, train_set=Sequences(torch.tensor([[1, 2, 9]])), test_set=text(4))


@pytest.mark.parametrize("sieve_by", ["infobatch", "grand"])
def test_sieves_by_loss_and_by_gradient_take_sequences(sieve_by):
    result = run(recipe(sieve_by=sieve_by, epochs=3, freeze=0, sparsity=0.0))
    assert result.epochs[1].sieved > 0
