"""A run in several processes: how they find one another, train one model, and end together. All of it is torch's."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from textwrap import shorten

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from spfde._ranks import Ranks
from spfde.freezing.rebucketed import Rebucketed
from spfde.nn import SparseLayer
from spfde.topology.wrappers import keep_masks_local

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class RankLost(ConnectionError):
    """Another rank ended before the training did, with an error of its own or killed."""


def restarted(ranks: Ranks) -> bool:
    """Tell whether torchrun has started the ranks anew, after one of them failed (--max-restarts); a collective.

    Of several machines only those count a restart on which a rank failed.
    """
    return ranks.agree([_told("TORCHELASTIC_RESTART_COUNT") > 0], any_rank=True)[0]


@contextmanager
def joined() -> Iterator[Ranks]:
    """Hold the ranks that train together: a process group that is there, or the one that torchrun's variables name.

    The first rank that fails leaves its error to all others, who raise it as RankLost instead of what torch says of a
    connection that closed.

    Raises:
        ValueError: several processes were started that are not told of one another.
        RankLost: another rank failed.
    """
    own = not (dist.is_available() and dist.is_initialized()) and _told("WORLD_SIZE") > 1
    if own:
        if "RANK" not in os.environ or not dist.is_available():
            raise ValueError(
                f"expected RANK for each of WORLD_SIZE={os.environ['WORLD_SIZE']} processes, got none, try torchrun"
            )
        _join()
    ranks = Ranks()
    try:
        with _ending_together(ranks):
            yield ranks
    finally:
        if own:
            dist.destroy_process_group()


def _join() -> None:
    store, rank, world = next(dist.rendezvous("env://"))
    if _told("GROUP_WORLD_SIZE") == 1:
        # torchrun keeps its store when it starts ranks anew, and in it where gloo found the dead ones.
        store = dist.PrefixStore(f"restart-{_told('TORCHELASTIC_RESTART_COUNT')}", store)
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(_told("LOCAL_RANK") % torch.cuda.device_count())
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world)


def _told(name: str) -> int:
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else 0


@contextmanager
def _ending_together(ranks: Ranks) -> Iterator[None]:
    if ranks.count == 1:
        yield
        return
    try:
        yield
    except RankLost:
        raise
    except Exception as error:
        store = dist.PrefixStore("spfde", dist.distributed_c10d._get_default_store())
        if not _closed(error):
            with suppress(RuntimeError):  # the first rank may have kept the store, and be gone
                store.set("error", f"rank {ranks.rank}, {type(error).__name__}: {error}")
            raise
        told = f"one that was killed or lost ({shorten(str(error), 160, placeholder=' ...')})"
        with suppress(RuntimeError):
            if store.check(["error"]):
                told = store.get("error").decode()
        raise RankLost(f"expected all {ranks.count} ranks to go on, got {told}") from error


def _closed(error: Exception) -> bool:
    """Tell whether torch says that another rank is gone: gloo has no class for it."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


class Passes(nn.Module):
    """A model as DistributedDataParallel holds it; a call goes where `route` says: to it, or to compiled code of it."""

    def __init__(self, model: nn.Module, route: Callable[[], Callable[..., Tensor]]) -> None:
        super().__init__()
        self.model, self._route = model, route

    def forward(self, inputs: Tensor) -> Tensor:
        """What the model returns."""
        return self._route()(inputs)


def averaging(model: nn.Module, route: Callable[[], Callable[..., Tensor]], ranks: Ranks) -> Rebucketed:
    """Return what averages the gradients of a model's passes over the ranks, whatever freezes and thaws meanwhile."""

    def wrap(passes: nn.Module) -> DistributedDataParallel:
        ddp = keep_masks_local(DistributedDataParallel(passes, process_group=ranks.group))
        if ranks.count > 2 and next(model.parameters()).device.type == "cpu":
            # Sums of three and more depend on the place in a bucket, and torch fills buckets anew after the first step:
            # a resumed run would add up in another order there. So they are filled once, in the order of parameters.
            ddp.reducer._push_all_rebuilt_params()
            ddp.reducer._rebuild_buckets()
        return ddp

    return Rebucketed(Passes(model, route), wrap)


def fingerprints(model: nn.Module) -> dict[str, int]:
    """Map every parameter and every mask to a checksum of its bits."""
    found = {name: _checksum(p.detach()) for name, p in model.named_parameters()}
    for name, layer in model.named_modules():
        if isinstance(layer, SparseLayer):
            found[f"{name}'s mask".lstrip(".")] = _checksum(layer.positions())
    return found


def _checksum(tensor: Tensor) -> int:
    return int(tensor.contiguous().view(-1).view(_BITS[tensor.element_size()]).sum(dtype=torch.int64))
