"""Mini-batches of (inputs, targets, indices) in a given order, and the generators that a run may draw from."""

from __future__ import annotations

import operator
import random
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.util import Finalize
from numbers import Integral
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate

from spfde._ranks import ALONE, Ranks
from spfde.data import Images, Pixels, Sequences, UnreadableImage

Batch = tuple[Tensor, Tensor, Tensor]


class Source(Protocol):
    """Where the batches of one data set come from."""

    def __len__(self) -> int:
        """Count the samples."""

    def batches(
        self, order: Tensor, batch_size: int, key: tuple[int, ...] = (0,), ranks: Ranks = ALONE
    ) -> Iterator[Batch]:
        """Yield inputs, targets [b] (or tokens [b, t]) and indices [b] of the samples in `order` [n].

        With `ranks`, this one's part of each batch. What is random about a batch is a function of `key` (integers >= 0)
        and the batch alone.
        """


def split(order: Tensor, batch_size: int, ranks: Ranks = ALONE) -> list[Tensor]:
    """Cut an order [n] into batches, of all ranks; a last one of less than 2 samples a rank joins the one before it.

    BatchNorm has no statistics for one sample.
    """
    batches = list(order.split(batch_size))
    if len(batches) > 1 and len(batches[-1]) < 2 * ranks.count <= batch_size:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def epoch_seed(seed: int, epoch: int) -> int:
    """Return the seed of an epoch's order: a pure function, so nothing is kept for a resumed run."""
    return seed * 1_000_003 + epoch


class TensorSource:
    """Whole batches by one indexing of the tensors that hold the data set."""

    def __init__(self, images: Tensor, targets: Tensor, finish: Callable[[Tensor], Tensor] | None = None) -> None:
        self.images, self.targets, self.finish = images, targets, finish

    def __len__(self) -> int:
        """Count the samples."""
        return len(self.images)

    def batches(
        self, order: Tensor, batch_size: int, key: tuple[int, ...] = (0,), ranks: Ranks = ALONE
    ) -> Iterator[Batch]:
        """Yield images, targets and indices."""
        for indices in map(ranks.part, split(order, batch_size, ranks)):
            images = self.images[indices]
            yield images if self.finish is None else self.finish(images), self.targets[indices].long(), indices


class _Indexed(Dataset):
    """A data set whose items carry their index, and whose batches draw from generators seeded for each of them.

    So a run that is resumed in the middle of an epoch has no generator of any worker to bring back, and the
    numbers are the same with any number of workers.
    """

    def __init__(self, dataset: Dataset, key: tuple[int, ...]) -> None:
        self.dataset, self.key = dataset, key

    def __getitems__(self, indices: list[int]) -> list[tuple[Any, Any, int] | UnreadableImage]:
        with isolated():
            seed(*self.key, indices[0])
            return [self._item(index) for index in indices]

    def _item(self, index: int) -> tuple[Any, Any, int] | UnreadableImage:
        try:
            image, target = self.dataset[index]
        except UnreadableImage as error:
            return error  # raised from a worker, it would carry the worker's traceback as its message
        return image, target if _is_tokens(image, target) else _class_index(target, index), index


def _collated(items: list[Any]) -> Any:
    unreadable = next((item for item in items if isinstance(item, UnreadableImage)), None)
    if unreadable is not None:
        return unreadable
    first, _, where = items[0]
    for inputs, _, index in items:
        if isinstance(inputs, Tensor) and isinstance(first, Tensor) and inputs.shape != first.shape:
            # From a worker torch would say that a storage is not resizable.
            raise ValueError(
                f"expected items of one shape, got {list(first.shape)} in item {where} and {list(inputs.shape)} in item"
                f" {index}, try a transform that crops or pads them"
            )
    return default_collate(items)


class LoaderSource:
    """A torch DataLoader over any map-style data set of (image, target), or (tokens, next tokens)."""

    def __init__(self, dataset: Dataset, workers: int = 0) -> None:
        self.dataset, self.workers = dataset, workers

    def __len__(self) -> int:
        """Count the samples."""
        return len(self.dataset)  # type: ignore[arg-type]

    def batches(
        self, order: Tensor, batch_size: int, key: tuple[int, ...] = (0,), ranks: Ranks = ALONE
    ) -> Iterator[Batch]:
        """Yield images, targets and indices.

        Raises:
            UnreadableImage: an image file cannot be decoded.
        """
        loader = DataLoader(
            _Indexed(self.dataset, key),
            batch_sampler=[ranks.part(indices).tolist() for indices in split(order, batch_size, ranks)],
            num_workers=self.workers,
            collate_fn=_collated,
            worker_init_fn=_leave_signals_to_the_run,
            generator=torch.Generator(),  # torch's own would move by the seeds that it draws for its workers
        )
        iterator = iter(loader)
        # At a program's end multiprocessing sends its workers SIGTERM, which these ignore, and waits for them: they are
        # stopped before, and before it closes, at priority 10, the queues by which they are told to end. A generator
        # that a traceback holds is not closed by then.
        stop = Finalize(None, _stop_workers, args=(iterator,), exitpriority=11)
        try:
            for batch in iterator:
                if isinstance(batch, UnreadableImage):
                    raise batch
                yield batch
        finally:
            stop()


def _stop_workers(iterator: Any) -> None:
    if hasattr(iterator, "_shutdown_workers"):  # not without workers
        iterator._shutdown_workers()
        for worker in iterator._workers:
            if worker.is_alive():  # within an item still
                worker.kill()


def _leave_signals_to_the_run(worker: int) -> None:
    # Terminals and service managers signal the whole group; a worker that died of it would end the step it feeds.
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)


def source(dataset: Dataset, workers: int = 0) -> Source:
    """Return the fastest source for a data set.

    spfde's Images, Pixels and Sequences and torch's TensorDataset of two tensors are indexed a whole batch at a time.
    Any other one, a subclass of these too, goes through a DataLoader: its items may be more than its tensors (an
    augmentation).

    Raises:
        TypeError: it has no length, is empty, or its items are neither (image tensor, class index) nor (tokens, next
            tokens).
    """
    if not hasattr(dataset, "__len__") or len(dataset) == 0:
        raise TypeError(f"expected a data set with a length > 0, got {type(dataset).__name__}, try a map-style one")
    if type(dataset) is Images:
        return TensorSource(dataset.images, dataset.targets)
    if type(dataset) is Pixels:
        return TensorSource(dataset.images, dataset.targets, dataset.normalise)
    if type(dataset) is Sequences:
        return TensorSource(dataset.tokens[:, :-1], dataset.tokens[:, 1:], Tensor.long)
    if type(dataset) is TensorDataset and len(dataset.tensors) == 2 and dataset.tensors[1].ndim == 1:
        _require_classes(dataset.tensors[1])
        return TensorSource(dataset.tensors[0], dataset.tensors[1].long())
    item = dataset[0]
    pair = isinstance(item, tuple | list) and len(item) == 2
    if pair and _is_tokens(*item):
        return LoaderSource(dataset, workers)
    if not (pair and isinstance(item[0], Tensor) and isinstance(item[1], Tensor | Integral | np.ndarray)):
        raise TypeError(
            f"expected items (image tensor, class index), got {_describe(item)}, try a transform that makes them so"
        )
    if not isinstance(item[1], Integral):
        _require_one(item[1])
    if isinstance(item[1], Tensor | bool):
        _require_classes(torch.as_tensor(item[1]))
    return LoaderSource(dataset, workers)


def _is_tokens(inputs: Any, targets: Any) -> bool:
    """Whether an item is a sequence of int64 tokens and as many next ones."""
    both = isinstance(inputs, Tensor) and isinstance(targets, Tensor)
    return both and inputs.ndim == 1 and inputs.shape == targets.shape and inputs.dtype == targets.dtype == torch.int64


def _require_classes(targets: Tensor) -> None:
    if targets.is_floating_point() or targets.dtype == torch.bool:
        raise TypeError(f"expected class indices as integers, got {targets.dtype}, try targets.long()")


def require_within(targets: Tensor, classes: int) -> None:
    """Check that class indices (or tokens) are in [0, classes), the logits that there are; ValueError else.

    torch's loss would leave -100 out without a word, and evaluation count any such label as a mistake.
    """
    outside = targets[(targets < 0) | (targets >= classes)]
    if len(outside):
        raise ValueError(
            f"expected labels in [0, {classes}), the classes of the model's output, got {int(outside[0])},"
            " try a model with more classes, or labels that count from 0"
        )


def _require_one(target: Tensor | np.ndarray) -> None:
    if target.ndim:
        raise TypeError(
            f"expected items (image tensor, class index), got a label of shape {list(target.shape)},"
            " try label.argmax() if it is one-hot, or label.item()"
        )


def _class_index(target: Any, index: int) -> int:
    try:
        return operator.index(target)
    except TypeError as error:
        raise TypeError(
            f"expected a class index as an integer in item {index}, got {target!r} ({type(target).__name__}),"
            " try int(label)"
        ) from error


def _describe(item: object) -> str:
    if isinstance(item, tuple | list):
        return f"({', '.join(type(part).__name__ for part in item)})"
    return type(item).__name__


# ---- every generator that a run may draw from: torch's, NumPy's and Python's -----------------------------------------


def random_state(device: torch.device | None = None) -> dict[str, Any]:
    """Return where the generators are, as tensors and plain values; that of a GPU too, if `device` is one."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    state = {
        "torch": torch.get_rng_state(),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(gauss)),
        "python": random.getstate(),
    }
    return state if _is_cpu(device) else {**state, "cuda": torch.cuda.get_rng_state(device)}


def restore_random(kept: Mapping[str, Any], device: torch.device | None = None) -> None:
    """Put the generators where `random_state` found them; a GPU's only if it was kept."""
    kind, keys, *rest = kept["numpy"]
    torch.set_rng_state(kept["torch"])
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    random.setstate(kept["python"])
    if not _is_cpu(device) and "cuda" in kept:
        torch.cuda.set_rng_state(kept["cuda"], device)


def seed(*key: int) -> None:
    """Start every generator at a pure function of `key`: integers >= 0."""
    # With its length: to NumPy a key that ends in zeros is the same as one without them.
    drawn = np.random.SeedSequence((len(key), *key)).generate_state(2, np.uint32)
    torch.manual_seed(int(drawn[0]) << 32 | int(drawn[1]))
    np.random.seed(drawn)
    random.seed(drawn.tobytes())


@contextmanager
def isolated(device: torch.device | None = None) -> Iterator[None]:
    """Leave the generators afterwards as they were before."""
    before = random_state(device)
    try:
        yield
    finally:
        restore_random(before, device)


def _is_cpu(device: torch.device | None) -> bool:
    return device is None or device.type == "cpu"
