"""Batches in a given order, and generators that come back."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from spfde.data import Images
from spfde.sieving.shuffle import shuffled
from spfde.train import data
from spfde.train.data import LoaderSource, TensorSource, epoch_seed, source, split


class Pairs(Dataset):
    """Any map-style data set: its items are computed, one by one."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


class Brighter(Images):
    """Items that are more than the tensors behind them."""

    def __getitem__(self, index):
        image, target = super().__getitem__(index)
        return image + 1, target

    def __getitems__(self, indices):
        return [self[index] for index in indices]


@given(st.integers(1, 200), st.integers(1, 30))
def test_a_split_keeps_every_sample_and_no_batch_of_one(samples, batch_size):
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(samples))
    batches = split(order, batch_size)
    assert torch.equal(torch.cat(batches), order)
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert len(batches[-1]) <= batch_size + 1
    if batch_size > 1 and samples > 1:
        assert len(batches[-1]) > 1


def test_the_order_is_a_function_of_seed_and_epoch():
    indices = torch.arange(50) * 2
    first = shuffled(indices, epoch_seed(0, 0))
    assert torch.equal(first, shuffled(indices, epoch_seed(0, 0)))
    assert torch.equal(first.sort().values, indices)
    for seed, epoch in ((0, 1), (1, 0)):
        assert not torch.equal(first, shuffled(indices, epoch_seed(seed, epoch)))


@pytest.mark.parametrize("workers", [0, 1])
def test_every_source_yields_the_same_batches(task, workers):
    pairs = Pairs([task.train[i] for i in range(len(task.train))])
    kinds = (task.train, TensorDataset(task.train.images, task.train.targets), pairs)
    sources = [source(dataset, workers) for dataset in kinds]
    assert [type(each) for each in sources] == [TensorSource, TensorSource, LoaderSource]
    order = torch.arange(len(pairs)).flip(0)
    reference, *others = [list(each.batches(order, 16)) for each in sources]
    for other in others:
        for expected, got in zip(reference, other, strict=True):
            assert all(map(torch.equal, expected, got))
    images, targets, indices = reference[0]
    assert torch.equal(images, task.train.images[indices])
    assert torch.equal(targets, task.train.targets[indices])


def test_a_subclass_is_asked_for_its_items(task):
    brighter = Brighter(task.train.images, task.train.targets)
    images, _, indices = next(source(brighter).batches(torch.arange(4), 4))
    assert torch.equal(images, task.train.images[indices] + 1)


def test_small_class_types_become_long():
    dataset = TensorDataset(torch.zeros(4, 1, 2, 2), torch.tensor([0, 1, 2, 3], dtype=torch.uint8))
    _, targets, _ = next(source(dataset).batches(torch.arange(4), 4))
    assert targets.dtype == torch.int64


class Random(Pairs):
    """Items with a number from torch's generator."""

    def __getitem__(self, index):
        return torch.rand(1), index


def test_what_is_random_about_a_batch_is_a_function_of_key_and_batch():
    order, sources = torch.arange(12).flip(0), [source(Random(range(12)), workers) for workers in (0, 1)]
    before = torch.get_rng_state()

    def drawn(workers, key, order=order):
        return [images for images, _, _ in sources[workers].batches(order, 4, key)]

    here, there, other = drawn(0, (1, 0)), drawn(1, (1, 0)), drawn(0, (1, 1))
    assert all(map(torch.equal, here, there)) and not any(map(torch.equal, here, other))
    assert all(map(torch.equal, here[1:], drawn(0, (1, 0), order[4:])))
    assert len({image.item() for batch in here for image in batch}) == 12
    assert torch.equal(torch.get_rng_state(), before)


class Stream(IterableDataset):
    def __iter__(self):
        return iter([])


@pytest.mark.parametrize(
    ("dataset", "got"),
    [
        (Stream(), "expected a data set with a length > 0, got Stream, try a map-style one"),
        (Pairs([]), "expected a data set with a length > 0, got Pairs"),
        (Pairs([torch.zeros(1)]), r"expected items \(image tensor, class index\), got Tensor, try a transform"),
        (Pairs([("image", 3)]), r"expected items .*, got \(str, int\), try a transform"),
        (Pairs([(torch.zeros(1), 1, 2)]), r"expected items .*, got \(Tensor, int, int\)"),
        (Pairs([(torch.zeros(1), 0.5)]), r"expected items .*, got \(Tensor, float\)"),
        (Pairs([(torch.zeros(1), torch.tensor(0.5))]), r"expected (class indices as integers|items)"),
        (TensorDataset(torch.zeros(2, 1), torch.zeros(2)), r"expected class indices as integers, got torch\.float32"),
    ],
)
def test_what_is_no_image_classification_is_refused(dataset, got):
    with pytest.raises(TypeError, match=got):
        source(dataset)


def test_items_of_several_shapes_are_refused_by_name():
    pairs = Pairs([(torch.zeros(3, 8, 8 + i // 2), 0) for i in range(4)])
    with pytest.raises(ValueError, match=r"of one shape, got \[3, 8, 8\] in item 1 and \[3, 8, 9\] in item 2, try a"):
        list(source(pairs).batches(torch.tensor([1, 0, 2]), 3))


def drawn():
    return torch.randn(3).tolist(), np.random.randn(3).tolist(), [random.gauss(0, 1) for _ in range(3)]


def test_generators_go_on_from_where_they_were_with_a_half_used_pair(tmp_path):
    np.random.randn(), random.gauss(0, 1)  # both keep the second of a pair for later
    torch.save(data.random_state(), tmp_path / "state")
    expected = drawn()
    data.restore_random(torch.load(tmp_path / "state", weights_only=True))
    assert drawn() == expected


@pytest.mark.parametrize("other", [(4, 0), (3, 1), (3,), (0, 3)])
def test_a_key_gives_the_same_numbers_and_another_one_others(other):
    with data.isolated():
        data.seed(3, 0)
        first = drawn()
        data.seed(3, 0)
        assert drawn() == first
        data.seed(*other)
        second = drawn()
    assert all(a != b for a, b in zip(first, second, strict=True))


def test_isolated_generators_are_as_they_were_even_after_an_error():
    before = data.random_state()
    with pytest.raises(KeyError), data.isolated():
        data.seed(1)
        drawn()
        raise KeyError
    after = data.random_state()
    assert torch.equal(before["torch"], after["torch"])
    assert torch.equal(before["numpy"][1], after["numpy"][1]) and before["numpy"][2:] == after["numpy"][2:]
    assert before["python"] == after["python"]


@pytest.mark.parametrize(
    "kind", [np.uint8, np.int32, np.uint64, lambda i: np.array(i), lambda i: torch.tensor(i, dtype=torch.int32)]
)
def test_labels_of_any_integer_type_are_class_indices(kind):
    class Own(Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            return torch.zeros(1, 2, 2), kind(index)

    ((_, targets, _),) = source(Own()).batches(torch.arange(4), 4)
    assert targets.dtype == torch.int64 and targets.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([0, 0.5], r"an integer in item 1, got 0\.5 \(float\), try"),
        ([torch.tensor([0, 1])] * 2, r"a label of shape \[2\], try label.argmax"),
        ([True, False], "as integers, got torch.bool"),
    ],
)
def test_labels_that_are_no_class_index_are_refused(labels, said):
    class Own(Dataset):
        def __len__(self):
            return len(labels)

        def __getitem__(self, index):
            return torch.zeros(1, 2, 2), labels[index]

    with pytest.raises(TypeError, match=said):
        list(source(Own()).batches(torch.arange(2), 2))
