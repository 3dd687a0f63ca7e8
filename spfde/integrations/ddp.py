"""DistributedDataParallel without a broadcast of every mask at every step."""

from __future__ import annotations

from torch.nn.parallel import DistributedDataParallel

from spfde.nn import SparseLayer


def keep_masks_local(ddp: DistributedDataParallel) -> DistributedDataParallel:
    """Takes the indices of sparse layers out of what `ddp` broadcasts before every forward pass; returns `ddp`.

    An index has about as many bytes as the weights. Wrapping has made the masks of all ranks equal; they stay so as
    long as every rank makes the same moves, which a `spfde.topology` with one seed does. Not for a mask that one rank
    alone changes, by hand or by loading a checkpoint.

    Raises:
        TypeError: `ddp` is not a DistributedDataParallel.
    """
    if not isinstance(ddp, DistributedDataParallel):
        raise TypeError(f"expected a DistributedDataParallel, got {type(ddp).__name__}, try wrapping the model first")
    indices = {
        f"{name}.{part}".lstrip(".")
        for name, module in ddp.module.named_modules()
        if isinstance(module, SparseLayer)
        for part in ("row_ptr", "col")
    }
    # What torch offers is read when a model is wrapped; what it read then is kept in these.
    ddp.parameters_to_ignore = {*ddp.parameters_to_ignore, *indices}
    ddp._assign_modules_buffers()
    return ddp
