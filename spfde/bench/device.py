"""Fills a device profile: the roofline, the usual layers dense and sparse, and the other ops of training steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import nn

from spfde._version import __version__
from spfde.bench.device_ops import NETWORKS, measure_ops
from spfde.bench.measuring import Group, measure
from spfde.bench.record import Row
from spfde.bench.subject import Layer, conv, linear
from spfde.fusing.epilogue import call_with_epilogue
from spfde.kernels.conv2d_norm_act import NODE
from spfde.nn import FusedNormAct2d
from spfde.tuning import device_profile, timing
from spfde.tuning.device_profile import PARTS, TORCH, TORCH_LAST, DeviceProfile, LayerSeconds
from spfde.tuning.layer import step
from spfde.tuning.samples import summarise
from spfde.tuning.this_device import this_device

SPARSITIES = (0.5, 0.8, 0.9, 0.95)
TORCHS = {"dense contiguous": TORCH, "dense channels_last": TORCH_LAST}

# Layers of the networks that methods are published on, and of timm's, the most frequent kinds first: (name, batch).
LAYERS = (
    ("64x64x3x3@16", 64), ("16x16x3x3@32", 64), ("32x32x3x3@16", 64), ("64x64x3x3@8", 64), ("32x16x3x3@32/2", 64),
    ("1024x1024", 128), ("576x192", 4160), ("768x192", 4160), ("192x768", 4160), ("192x192", 4160),
    ("256x64x1x1@56", 4), ("64x256x1x1@56", 4), ("64x64x3x3@56", 4), ("128x128x3x3@28", 4), ("256x256x3x3@14", 4),
    ("512x512x3x3@7", 4), ("512x128x1x1@28", 4), ("128x512x1x1@28", 4), ("1024x256x1x1@14", 4), ("256x1024x1x1@14", 4),
    ("2048x512x1x1@7", 4), ("512x2048x1x1@7", 4), ("128x128x3x3@56/2", 4), ("512x512x3x3@14/2", 4),
    ("512x256x1x1@56/2", 4), ("2048x1024x1x1@14/2", 4), ("128x64x3x3@16/2", 32), ("256x256x3x3@8", 32),
    ("512x512x3x3@4", 32), ("128x128x3x3@16", 32), ("64x64x3x3@32", 32), ("512x512x3x3@2", 64), ("64x3x7x7@224/2", 4),
    ("16x3x3x3@32", 64), ("64x3x3x3@32", 64), ("32x3x3x3@224/2", 4), ("192x3x16x16@224/16", 4), ("192x3x4x4@32/4", 64),
    ("32x1x3x3@112g32", 4), ("144x1x3x3@56g144", 4), ("144x1x3x3@56/2g144", 4), ("192x1x3x3@28g192", 4),
    ("384x1x3x3@14g384", 4), ("576x1x3x3@14/2g576", 4), ("960x1x3x3@7g960", 4), ("144x1x5x5@28g144", 4),
    ("672x1x5x5@14g672", 4), ("96x16x1x1@112", 4), ("24x96x1x1@56", 4), ("144x24x1x1@56", 4), ("32x192x1x1@28", 4),
    ("384x64x1x1@14", 4), ("96x384x1x1@14", 4), ("960x160x1x1@7", 4), ("320x960x1x1@7", 4), ("1280x320x1x1@7", 4),
    ("192x32x1x1@8", 64), ("384x64x1x1@4", 64), ("64x384x1x1@4", 64), ("144x1x3x3@16g144", 64), ("384x1x3x3@4g384", 64),
    ("2304x768", 512), ("3072x768", 512), ("768x3072", 512), ("1152x384", 1040), ("1536x384", 1040), ("384x1536", 1040),
    ("1000x2048", 16), ("10x64", 64), ("4096x4096", 16), ("65x384", 1024), ("256x192", 1024),
    # Few positions: activations stay in a core's own cache, and weights do not.
    ("16x16x3x3@32", 4), ("32x32x3x3@16", 4), ("64x64x3x3@8", 4), ("256x256x3x3@8", 4), ("512x512x3x3@4", 4),
    ("512x512x3x3@2", 4), ("576x192", 260), ("192x192", 260), ("768x192", 260), ("192x768", 260), ("80x1x7x7@20g80", 2),
    ("576x96x1x1@7", 4), ("4096x4096", 2), ("3072x768", 32), ("768x3072", 32),
    ("16x16x3x3@32", 1), ("64x64x3x3@8", 1), ("512x512x3x3@4", 1), ("64x32x3x3@16/2", 4), ("40x1x7x7@40g40", 2),
    ("320x1x7x7@5g320", 2), ("160x80x2x2@20/2", 2), ("384x384", 197), ("1536x384", 197), ("384x1536", 197),
    # A single row: bound by reading the weights, and by writing their gradient.
    ("4096x4096", 1), ("4096x8192", 1), ("1000x2048", 1),
)  # fmt: skip
Say = Callable[[str], object]


def usual_layers() -> list[Layer]:
    """The layers that a profile has."""
    return [(conv if "@" in name else linear)(name, batch) for name, batch in LAYERS]


def fill(
    path: Path,
    kind: str,
    command: str,
    limit: timing.TimeLimit,
    *,
    layers: Sequence[Layer] | None = None,
    networks: Sequence[tuple[str, int, int | None]] = NETWORKS,
    repeats: int = 5,
    clock: str = "wall",
    say: Say = lambda text: None,
) -> DeviceProfile:
    """The profile in `path` with what it lacks of the layers, and of the ops, while there is time; saved after each.

    kind: "cpu" or "cuda". Ops are timed on a CPU only: a GPU runs them behind the caller's back.

    Raises:
        OSError: the file cannot be read or written.
        ValueError: it is no profile, or one of another device.
    """
    device = this_device(kind)
    if path.exists():
        profile = device_profile.load(path)
        if _what(profile.device) != _what(device):
            raise ValueError(f"expected a profile of {_what(device)} in {path}, got one of {_what(profile.device)}")
    else:
        say("roofline")
        profile = roofline(device, command, clock)
        profile.save(path)
    if kind == "cpu" and networks and not profile.ops:
        say("ops of " + ", ".join(name for name, *_ in networks))
        profile = replace(profile, ops=tuple(measure_ops(networks, timing.CLOCKS[clock])))
        profile.save(path)
    known, longest = {row.key for row in profile.layers}, 0.0
    for layer in usual_layers() if layers is None else layers:
        if _dense_key(layer) in known:
            continue
        start = limit.left
        if not limit.allows(longest):
            say("out of time; the same command goes on")
            break
        say(str(layer))
        rows = measure(Group(layer, SPARSITIES, threads=torch.get_num_threads(), device=kind, clock=clock), repeats)
        normed = _normed(layer, repeats, kind, timing.CLOCKS[clock])
        profile = replace(profile, layers=(*profile.layers, *_layer_seconds(layer, rows, normed)))
        profile.save(path)
        longest = max(longest, start - limit.left)
    return profile


def _what(device: device_profile.Device) -> str:
    """A virtual machine's CPU may be any of its maker's, so the instruction set counts."""
    return ", ".join(filter(None, (device.label, device.facts.get("isa"))))


def _dense_key(layer: Layer) -> tuple[object, ...]:
    shape, size, stride, groups = _geometry(layer)
    return shape, layer.shape[0], size, stride, groups, "float32", "dense", 1.0, TORCH


def _geometry(layer: Layer) -> tuple[tuple[int, ...], tuple[int, int], int, int]:
    shape = tuple(layer.module.weight.shape)
    if isinstance(layer.module, nn.Linear):
        return shape, (1, 1), 1, 1
    with torch.no_grad():
        height, width = layer.module(torch.empty(1, *layer.shape[1:])).shape[2:]
    return shape, (height, width), layer.module.stride[0], layer.module.groups


def _normed(layer: Layer, repeats: int, device: str, clock: timing.Clock) -> dict[float, float]:
    """Median seconds of a training step of the layer with a norm and a ReLU behind it, by sparsity.

    Of those that are one op on a CPU, see `conv2d_norm_act`; nothing where they are called apart.
    """
    calls = {}
    for sparsity in SPARSITIES if device == "cpu" and isinstance(layer.module, nn.Conv2d) else ():
        sparse, x = layer.sparse(sparsity, "unstructured", device, "float32"), layer.input(device, "float32")
        run = partial(call_with_epilogue, sparse, then=FusedNormAct2d(sparse.out_channels), rest=(None, "relu"))
        live = x.requires_grad_()
        if run(live).grad_fn.name() == NODE:
            calls[sparsity] = step(run, live, [live, *sparse.parameters()])
    return {key: median(found) for key, found in timing.cold(calls, repeats, device, clock).items()} if calls else {}


def _layer_seconds(layer: Layer, rows: Sequence[Row], normed: Mapping[float, float]) -> list[LayerSeconds]:
    shape, size, stride, groups = _geometry(layer)
    found = []
    for row in rows:
        parts = {part: summarise(row.seconds[part]) for part in (*PARTS, "step") if row.seconds.get(part)}
        if len(parts) == len(PARTS) + 1:
            seconds = {part: parts[part].median for part in PARTS}
            spread = max(parts[part].spread for part in PARTS)
            how = (row.dtype, row.pattern, row.density, TORCHS.get(row.variant, row.kernel))
            more = {"training": parts["step"].median, "normed": None if row.dense else normed.get(row.sparsity)}
            found.append(
                LayerSeconds(shape, layer.shape[0], size, stride, groups, *how, **seconds, spread=spread, **more)
            )
    return found


def roofline(device: device_profile.Device, command: str, clock: str = "wall") -> DeviceProfile:
    """A profile of what takes two seconds to find out: peak, bandwidth, and the overhead of a call."""
    where = device.kind
    a, b = torch.randn(2, 1024, 1024, device=where)
    source, target = torch.randn(2, 2**24, device=where)
    small, x = nn.Linear(8, 8).to(where), torch.randn(1, 8, device=where, requires_grad=True)
    calls: Mapping[str, Callable[[], object]] = {
        "peak": lambda: a @ b,
        "copy": lambda: target.copy_(source),
        "call": lambda: small(x).sum().backward(),
    }
    by = timing.CLOCKS[clock]
    best = {name: min(seconds) for name, seconds in timing.interleaved(calls, 9, where, by).items()}
    best["call"] = min(timing.interleaved({"call": calls["call"]}, 50, where, by)["call"])  # the copy's cache is cold
    facts = {**device.facts, **({"clock": "processor time of this process"} if clock == "processor" else {})}
    software = {"spfde": __version__, "torch": str(torch.__version__)}
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return DeviceProfile(
        replace(device, facts=facts), software, date, command, {"float32": 2 * 1024**3 / best["peak"]},
        2 * source.numel() * 4 / best["copy"], best["call"],
    )  # fmt: skip
