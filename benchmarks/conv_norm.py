"""A fused training step with convolutions and norms as one op, and as two, in turns.

    python benchmarks/conv_norm.py [--network resnet20] [--pixels 28] [--width 1] [--batch 64] [--sparsity 0.9]
                                   [--threads 1] [--rounds 60]

Prints medians and the least in ms, and how many times as fast as the two ops each is: with the forward alone in one,
and with both directions.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

import spfde
import spfde.fusing.epilogue as epilogue
from spfde.kernels.registry import get


def steps(network: str, pixels: int, width: float, batch: int, sparsity: float) -> dict[str, Callable[[], None]]:
    """The same step with the two ops apart, with the forward in one, and with both directions."""
    torch.manual_seed(0)
    given = {"width": width} if "width" in spfde.models.options(network) else {}
    model = spfde.fuse(spfde.sparsify(spfde.models.create(network, **given), sparsity))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    x, target = torch.randn(batch, 3, pixels, pixels), torch.randint(0, 10, (batch,))
    normed = type(get("native").products["conv2d"].normed)

    def both() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), target).backward()
        optimizer.step()

    def without(owner: object, name: str) -> Callable[[], None]:
        own = getattr(owner, name)

        def step() -> None:
            setattr(owner, name, lambda *_: None)
            try:
                both()
            finally:
                setattr(owner, name, own)

        return step

    return {
        "apart": without(epilogue, "_with_norm"),
        "forward": without(normed, "gradients"),
        "both": both,
    }


def main(argv: list[str] | None = None) -> None:
    """Time the steps in turns and print a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet20")
    parser.add_argument("--width", type=float, default=1.0, help="of networks that have one")
    parser.add_argument("--sparsity", type=float, default=0.9)
    for name, default in (("pixels", 28), ("batch", 64), ("threads", 1), ("rounds", 60)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    turns = steps(args.network, args.pixels, args.width, args.batch, args.sparsity)
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for name, step in list(turns.items()) * (args.rounds + 2):
        start = time.perf_counter()
        step()
        seconds[name].append(time.perf_counter() - start)
    print(f"{args.network} width {args.width} {args.pixels}px x{args.batch} {args.threads}t")
    for what, of in (("median", statistics.median), ("least", min)):
        found = {name: of(kept[2:]) for name, kept in seconds.items()}
        parts = (f"{name} {1e3 * s:.2f} ms {found['apart'] / s:.3f}x" for name, s in found.items())
        print(f"  {what}: {', '.join(parts)}")


if __name__ == "__main__":
    main()
