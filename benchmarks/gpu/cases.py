"""What is timed on a GPU, most telling first: a run that ends early has lost the least."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

TOKENS = 16384
LINEAR = ((4096, 4096), (1024, 4096))  # inputs, outputs
# ResNet-50 on 224-pixel images: its 3x3 convolutions with at least 256 channels. (channels, pixels, stride)
RESNET = ((256, 14, 1), (512, 7, 1), (256, 28, 2), (512, 14, 2))
IMAGES = 64
DENSITIES = (0.2, 0.1, 0.4, 0.05, 0.25, 1.0)
BLOCKS = (64, 128, 32, 16)
DTYPES = ("bfloat16", "tf32")
PARTS = ("forward", "input gradient", "weight gradient", "step", "frozen step")


@dataclass(frozen=True)
class Case:
    """A layer stored in blocks of block x block at a density, and its input. pixels and stride: of a convolution."""

    kind: str
    dtype: str
    batch: int
    inputs: int
    outputs: int
    block: int
    density: float
    pixels: int = 1
    stride: int = 1

    def __str__(self) -> str:
        width = f"{self.inputs}x{self.outputs}"
        what = f"linear {width} b{self.batch}"
        if self.kind == "conv2d":
            what = f"conv 3x3{f'/{self.stride}' if self.stride > 1 else ''} {width} {self.pixels}px b{self.batch}"
        return f"{what} {self.dtype} block {self.block} density {self.density:g}"

    @property
    def positions(self) -> int:
        """Batch x output pixels."""
        side = 1 if self.kind == "linear" else (self.pixels - 1) // self.stride + 1
        return self.batch * side * side

    @property
    def flops(self) -> int:
        """Of the dense forward product."""
        return 2 * self.positions * self.inputs * self.outputs * (1 if self.kind == "linear" else 9)

    @property
    def ways(self) -> tuple[str, ...]:
        """How the layer is computed: ours, dense layers, peers."""
        if self.kind == "conv2d":
            return ("spfde", "cudnn channels_last", "cudnn contiguous")
        # 2:4 knows one density and, here, no TF32; block and density of a case do not matter to it.
        half = self.dtype == "bfloat16" and self.block == BLOCKS[0] and self.density == DENSITIES[0]
        return ("spfde", "cublas", "torch bsr", *(("torch 2:4",) if half else ()))


def cases() -> Sequence[Case]:
    """All of them, in the order they are run."""
    big, small = LINEAR
    in_order = [
        *_linear(big, "bfloat16", BLOCKS[:1], DENSITIES),
        *_conv("bfloat16", RESNET[:2], BLOCKS[:2]),
        *_linear(big, "bfloat16", BLOCKS[1:], DENSITIES[:2]),
        *_linear(big, "tf32", BLOCKS[:1], DENSITIES[:2]),
        *_linear(small, "bfloat16", BLOCKS[:1], DENSITIES),
        *_conv("tf32", RESNET[:2], BLOCKS[:2]),
        *_conv("bfloat16", RESNET, BLOCKS),
        *(case for shape, dtype in product(LINEAR, DTYPES) for case in _linear(shape, dtype, BLOCKS, DENSITIES)),
        *_conv("tf32", RESNET, BLOCKS),
    ]
    return list(dict.fromkeys(in_order))


def _linear(shape: tuple[int, int], dtype: str, blocks: Sequence[int], densities: Sequence[float]) -> list[Case]:
    return [Case("linear", dtype, TOKENS, *shape, block, density) for block, density in product(blocks, densities)]


def _conv(dtype: str, layers: Sequence[tuple[int, int, int]], blocks: Sequence[int]) -> list[Case]:
    return [
        Case("conv2d", dtype, IMAGES, channels, channels, block, 0.2, pixels, stride)
        for (channels, pixels, stride), block in product(layers, blocks)
    ]
