"""The embedded task: what it promises about bits, scans and shapes."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from spfde import data
from spfde.data import digits


def test_load_gives_normalised_images_and_labels():
    sets = data.load("digits", train=60, test=30, seed=3)
    assert (sets.name, sets.num_classes, sets.shape) == ("digits", 10, (1, 32, 32))
    assert sets.train.images.shape == (60, 1, 32, 32)
    assert sets.test.images.shape == (30, 1, 32, 32)
    assert sets.train.images.dtype == torch.float32
    assert sets.train.targets.dtype == torch.int64
    assert set(data.load("digits", train=400, test=1).train.targets.tolist()) == set(range(10))


def test_statistics_of_the_training_images_are_zero_and_one():
    images = data.load("digits", train=digits.REFERENCE, test=1).train.images.double()
    assert abs(images.mean().item()) < 1e-5
    assert abs(images.std().item() - 1) < 1e-5


@pytest.mark.parametrize("half", [digits.TRAIN, digits.TEST])
def test_an_image_does_not_depend_on_how_many_are_asked_for(half):
    few, few_targets = digits.render(half, 7, seed=5)
    many, many_targets = digits.render(half, digits.BLOCK + 9, seed=5)
    assert torch.equal(few, many[:7])
    assert torch.equal(few_targets, many_targets[:7])
    assert not torch.equal(many[:9], many[digits.BLOCK :])


def test_normalised_bits_do_not_depend_on_how_many_are_asked_for():
    few, many = data.load("digits", train=5, test=4), data.load("digits", train=900, test=600)
    assert torch.equal(few.train.images, many.train.images[:5])
    assert torch.equal(few.test.images, many.test.images[:4])


def test_bits_do_not_depend_on_threads():
    before = torch.get_num_threads()
    try:
        renders = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            renders.append(data.load("digits", train=300, test=1).train.images)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*renders)


def test_seeds_and_halves_differ():
    train, _ = digits.render(digits.TRAIN, 20, seed=0)
    assert not torch.equal(train, digits.render(digits.TRAIN, 20, seed=1)[0])
    assert not torch.equal(train, digits.render(digits.TEST, 20, seed=0)[0])


@pytest.mark.parametrize("seed", [0, 1, 2**40])
def test_split_is_a_stratified_partition(seed):
    train, test = digits.split(seed)
    classes = digits.scans()[1]
    assert sorted(np.concatenate([train, test])) == list(range(len(classes)))
    share = np.bincount(classes[test]) / np.bincount(classes)
    assert np.abs(share - digits.HELD_OUT).max() < 0.005


def test_split_depends_on_the_seed():
    assert not np.array_equal(digits.split(0)[1], digits.split(1)[1])


def test_options_are_validated():
    with pytest.raises(ValueError, match=r"a data set to be one of .*digits.*, got 'digit', try 'digits'"):
        data.load("digit")
    with pytest.raises(ValueError, match=r"an option of 'digits'.*got 'trian', try 'train'"):
        data.load("digits", trian=10)
    with pytest.raises(ValueError, match=r"expected test >= 1, got 0"):
        data.load("digits", test=0)
    with pytest.raises(ValueError, match=r"expected seed >= 0, got -1"):
        data.load("digits", seed=-1)
    with pytest.raises(ValueError, match=r"expected train <= 1000000, got 1000001, try train=1000000"):
        data.load("digits", train=1_000_001)
    with pytest.raises(ValueError, match=r"no data_dir with the data set 'digits', got 'd', try leaving it"):
        data.load("digits", data_dir="d")
    with pytest.raises(TypeError, match=r"expected train to be an int, got 8000.0"):
        data.load("digits", train=8000.0)
    with pytest.raises(TypeError, match=r"expected train to be an int, got True"):
        data.load("digits", train=True)


def test_missing_scikit_learn_says_what_to_install(monkeypatch):
    digits.scans.cache_clear()
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"expected scikit-learn.*try pip install scikit-learn"):
        data.load("digits", train=1, test=1)
