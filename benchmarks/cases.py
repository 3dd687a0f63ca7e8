"""What is timed: layers and networks, on a CPU and on a GPU, most telling first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

import torch
from torch import Tensor, nn

from spfde.sparse.pattern import Pattern
from spfde.tuning.layer import DTYPES

SPARSITIES = (0.6, 0.8, 0.9, 0.95, 0.98)
PATTERNS = ("unstructured", "block:4x1")
TILE, FILLED = 64, 0.2  # of a clustered mask: side of a tile, share of its weights that is stored


@dataclass(frozen=True)
class Layer:
    """A dense layer and its input: `channels` is (in, out), images are square, a linear layer's batch is its rows."""

    kind: str
    batch: int
    channels: tuple[int, int]
    size: int = 1
    kernel: int = 1
    stride: int = 1
    padding: int = 0
    groups: int = 1
    bias: bool = True

    def __str__(self) -> str:
        width = "x".join(map(str, self.channels))
        if self.kind == "linear":
            return f"linear {width} b{self.batch}"
        stride = f"/{self.stride}" if self.stride > 1 else ""
        groups = f" g{self.groups}" if self.groups > 1 else ""
        return f"{self.group}{stride} {width}{groups} {self.size}px b{self.batch}"

    @property
    def group(self) -> str:
        """What layers are compared with: "linear", "conv 3x3", ..."""
        return self.kind if self.kind == "linear" else f"conv {self.kernel}x{self.kernel}"

    @property
    def lanes(self) -> int:
        """Batch x output positions."""
        side = (self.size + 2 * self.padding - self.kernel) // self.stride + 1
        return self.batch * (1 if self.kind == "linear" else side * side)

    def dense(self, dtype: str = "float32", device: str = "cpu") -> nn.Module:
        """The dense layer, always with the same weights."""
        torch.manual_seed(0)
        if self.kind == "linear":
            layer: nn.Module = nn.Linear(*self.channels, bias=self.bias)
        else:
            layer = nn.Conv2d(
                *self.channels, self.kernel, self.stride, self.padding, groups=self.groups, bias=self.bias
            )  # fmt: skip
        return layer.to(device, DTYPES[dtype])

    def input(self, dtype: str = "float32", device: str = "cpu") -> Tensor:
        """Random input, always the same."""
        image = (self.size, self.size) if self.kind == "conv" else ()
        x = torch.randn(self.batch, self.channels[0], *image, generator=torch.Generator().manual_seed(1))
        return x.to(device, DTYPES[dtype])


@dataclass(frozen=True)
class Case:
    """A layer with a share of its weights stored in a pattern, in a precision of `spfde.tuning.layer.DTYPES`.

    clustered: single weights, which lie in 1 - sparsity of the tiles of 64x64 and fill a fifth of each.
    """

    layer: Layer
    pattern: str = "unstructured"
    sparsity: float = 0.9
    dtype: str = "float32"
    clustered: bool = False

    def __str__(self) -> str:
        stored = f"{self.pattern} {self.sparsity:.0%}"
        if self.clustered:
            stored = f"unstructured, {1 - self.sparsity:.0%} of the tiles {FILLED:.0%} full"
        return f"{self.layer} {self.dtype} {stored}"

    def mask(self, weight: Tensor) -> Tensor | None:
        """What is stored, always the same; None: as spfde.sparsify chooses."""
        if not self.clustered:
            return None
        grid = Pattern.parse(f"block:{TILE}x{TILE}").grid(tuple(weight.shape))
        generator = torch.Generator().manual_seed(3)
        kept = torch.randperm(grid.size, generator=generator)[: max(1, round((1 - self.sparsity) * grid.size))]
        mask = torch.zeros(grid.weights + 1, dtype=torch.bool)
        mask[grid.places(kept.sort().values).view(-1)] = True
        filled = torch.rand(weight.shape, generator=generator) < FILLED
        return (mask[:-1].view(weight.shape) & filled).to(weight.device)


def conv(batch: int, channels: tuple[int, int], size: int, kernel: int, stride: int = 1, bias: bool = True) -> Layer:
    """A convolution padded by half its kernel."""
    return Layer("conv", batch, channels, size, kernel, stride, kernel // 2, bias=bias)


# ---- on a CPU --------------------------------------------------------------------------------------------------------

LINEAR = [Layer("linear", batch, shape) for shape in ((1024, 1024), (2048, 2048), (4096, 1024)) for batch in (128, 512)]
CONV = [
    *(conv(64, (n, n), size, 3) for n, size in ((16, 32), (32, 16), (64, 8), (128, 16), (256, 8), (512, 4))),
    conv(64, (256, 256), 14, 1),
    conv(64, (64, 256), 32, 1),
]
LAYERS = [*LINEAR, *CONV]


def cpu_cases(layers: Sequence[Layer], patterns: Sequence[str], sparsities: Sequence[float]) -> list[Case]:
    """Every combination, those of a layer and pattern together."""
    return [Case(*each) for each in product(layers, patterns, sparsities)]


# ---- on a GPU --------------------------------------------------------------------------------------------------------

BLOCKS, DENSITIES = (64, 128, 32, 16), (0.1, 0.2, 0.4, 0.05, 0.25, 1.0)
OCCUPIED = (0.2, 0.1, 0.4)  # share of the tiles that store any
BIG, WIDE = (Layer("linear", 16384, shape, bias=False) for shape in ((4096, 4096), (1024, 4096)))
# The layers of ViT-L's MLP at the batch that torch's 2:4 training was timed at: 1.25x over dense on an A100, float16.
VIT_MLP = [Layer("linear", 44160, shape, bias=False) for shape in ((1024, 4096), (4096, 1024))]
# Where single weights are to pay on a GPU: against a dense product that is exact, and in 16 bits when few are left.
SINGLE = Layer("linear", 4096, (4096, 4096), bias=False)
# ResNet-50 on 224-pixel images: its 3x3 convolutions with at least 256 channels.
RESNET = [
    conv(64, (channels, channels), size, 3, stride, bias=False)
    for channels, size, stride in ((256, 14, 1), (512, 7, 1), (256, 28, 2), (512, 14, 2))
]


def in_blocks(layer: Layer, block: int, density: float, dtype: str = "bfloat16") -> Case:
    """A layer in square blocks."""
    return Case(layer, f"block:{block}x{block}", round(1 - density, 10), dtype)


def two_of_four(layer: Layer) -> Case:
    """A layer of pattern 2:4."""
    return Case(layer, "2:4", 0.5, "float16")


def gpu_layers(first: Sequence[Case] = ()) -> list[Case]:
    """The layers timed on a GPU; `first` leads: a run that ends early has lost the least."""
    clustered = Case(BIG, dtype="bfloat16", clustered=True)
    some = partial(_blocks, densities=DENSITIES[:2])
    return list(dict.fromkeys([
        *first,
        *(replace(clustered, sparsity=round(1 - share, 10)) for share in OCCUPIED),
        *(Case(SINGLE, sparsity=sparsity, dtype=dtype) for dtype in ("tf32", "float32") for sparsity in SPARSITIES[1:]),
        *_blocks(BIG, "bfloat16", BLOCKS[:1]), *some(BIG, "bfloat16", BLOCKS), *some(BIG, "tf32", BLOCKS[:1]),
        *(case for layer in VIT_MLP for case in (in_blocks(layer, 64, 0.1, "float16"), two_of_four(layer))),
        *_blocks(WIDE, "bfloat16", BLOCKS[:1]), *_resnet("tf32", BLOCKS[:1]), *_resnet("bfloat16", BLOCKS),
        *(case for each in product((BIG, WIDE), ("bfloat16", "tf32")) for case in _blocks(*each, BLOCKS)),
        *_resnet("tf32", BLOCKS),
    ]))  # fmt: skip


def _blocks(layer: Layer, dtype: str, blocks: Sequence[int], densities: Sequence[float] = DENSITIES) -> list[Case]:
    return [in_blocks(layer, block, density, dtype) for block, density in product(blocks, densities)]


def _resnet(dtype: str, blocks: Sequence[int]) -> list[Case]:
    return [in_blocks(layer, block, 0.2, dtype) for layer, block in product(RESNET, blocks)]
