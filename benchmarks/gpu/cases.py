"""What is timed on a GPU and what it has to show, most telling first: a run that ends early has lost the least."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

TOKENS = 16384
LINEAR = ((4096, 4096), (1024, 4096))  # inputs, outputs
# ResNet-50 on 224-pixel images: its 3x3 convolutions with at least 256 channels. (channels, pixels, stride)
RESNET = ((256, 14, 1), (512, 7, 1), (256, 28, 2), (512, 14, 2))
IMAGES = 64
DENSITIES = (0.1, 0.2, 0.4, 0.05, 0.25, 1.0)
BLOCKS = (64, 128, 32, 16)
DTYPES = ("bfloat16", "tf32")
TILE, FILLED = 64, 0.2  # of a clustered mask: side of a tile, share of its weights that is stored
OCCUPIED = (0.2, 0.1, 0.4)  # share of the tiles that store any
PARTS = ("forward", "input gradient", "weight gradient", "step", "frozen step", "frozen prefix")
OURS = ("spfde", "spfde masked")


@dataclass(frozen=True)
class Case:
    """A layer stored in blocks of block x block at a density, and its input. pixels and stride: of a convolution.

    kind: "linear", "conv2d", or "clustered": linear with single weights that lie in a share `density` of the tiles.
    """

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
        if self.kind == "clustered":
            return f"{what} {self.dtype} unstructured, {self.density:g} of the tiles {FILLED:g} full"
        return f"{what} {self.dtype} block {self.block} density {self.density:g}"

    @property
    def pattern(self) -> str:
        """As `spfde.sparsify` takes it."""
        return "unstructured" if self.kind == "clustered" else f"block:{self.block}x{self.block}"

    @property
    def positions(self) -> int:
        """Batch x output pixels."""
        side = (self.pixels - 1) // self.stride + 1 if self.kind == "conv2d" else 1
        return self.batch * side * side

    @property
    def flops(self) -> int:
        """Of the dense forward product."""
        return 2 * self.positions * self.inputs * self.outputs * (9 if self.kind == "conv2d" else 1)

    @property
    def ways(self) -> tuple[str, ...]:
        """How the layer is computed: ours, dense layers, peers."""
        if self.kind == "conv2d":
            return (*OURS, "cudnn channels_last", "cudnn contiguous")
        if self.kind == "clustered":
            return (*OURS, "cublas")
        # 2:4 knows one density and, here, no TF32; block and density of a case do not matter to it.
        half = self.dtype == "bfloat16" and self.block == BLOCKS[0] and self.density == DENSITIES[0]
        return (*OURS, "cublas", "torch bsr", *(("torch 2:4",) if half else ()))


@dataclass(frozen=True)
class Network:
    """A network of `gpu.networks` in bfloat16 autocast, sparse in blocks of block x block."""

    model: str
    batch: int
    block: int
    density: float

    @property
    def ways(self) -> tuple[str, ...]:
        """All layers by the Triton kernels, the same without `spfde.fuse`, as "auto" chooses, dense."""
        return ("spfde", "spfde unfused", "spfde auto", "dense")

    def __str__(self) -> str:
        return f"{self.model} b{self.batch} autocast block {self.block} density {self.density:g}"


@dataclass(frozen=True)
class Target:
    """That our time for a part of a case is to be that of the fastest dense layer for `over` / `speedup`, or less.

    over: a part, the same one unless given. break_even: it is asked as a sparsity from which on nothing is lost.
    """

    what: str
    case: Case
    part: str
    speedup: float
    over: str | None = None
    break_even: bool = False


def _linear(shape: tuple[int, int], dtype: str, blocks: Sequence[int], densities: Sequence[float]) -> list[Case]:
    return [Case("linear", dtype, TOKENS, *shape, block, density) for block, density in product(blocks, densities)]


def _conv(dtype: str, blocks: Sequence[int]) -> list[Case]:
    return [
        Case("conv2d", dtype, IMAGES, channels, channels, block, 0.2, pixels, stride)
        for (channels, pixels, stride), block in product(RESNET, blocks)
    ]


BIG = partial(Case, "linear", "bfloat16", TOKENS, *LINEAR[0])  # block, density
GAIN = 1.1  # a gain beyond what two runs differ by
AUTO = 0.9  # speed-up that "auto" is to have at least, wherever there is a case
TARGETS = (
    *(Target("training step", BIG(block, 0.1), "step", gain) for block, gain in ((64, 2.5), (32, 1.5), (128, 4.0))),
    *(Target("forward", BIG(*at), "forward", 1.0, break_even=True) for at in ((64, 0.4), (32, 0.25), (16, 0.15))),
    *(Target("weight gradient", BIG(*at), "weight gradient", 1.0, break_even=True) for at in ((64, 0.3), (32, 0.2))),
    *(Target(f"{part}, every block stored", BIG(128, 1.0), part, 0.85) for part in ("forward", "step")),
    Target("frozen, no gradient wanted below, over a dense step", BIG(64, 0.1), "frozen prefix", 3.0, over="step"),
    *(Target("training step, ResNet-50 layer", conv, "step", GAIN) for conv in _conv("bfloat16", BLOCKS[:1])),
)
NETWORKS = (Network("resnet50", 64, 64, 0.2), Network("vit", 64, 64, 0.1), Network("vit", 64, 64, 0.2))


def cases() -> Sequence[Case | Network]:
    """All of them, in the order they are run: what targets ask for, whole networks, the rest."""
    big, small = LINEAR
    in_order = [
        *(target.case for target in TARGETS),
        *NETWORKS[:2],
        *(Case("clustered", "bfloat16", TOKENS, *big, TILE, share) for share in OCCUPIED),
        *_linear(big, "bfloat16", BLOCKS[:1], DENSITIES),
        *_linear(big, "bfloat16", BLOCKS, DENSITIES[:2]),
        *_linear(big, "tf32", BLOCKS[:1], DENSITIES[:2]),
        *_linear(small, "bfloat16", BLOCKS[:1], DENSITIES),
        *_conv("tf32", BLOCKS[:1]),
        *_conv("bfloat16", BLOCKS),
        *NETWORKS,
        *(case for shape, dtype in product(LINEAR, DTYPES) for case in _linear(shape, dtype, BLOCKS, DENSITIES)),
        *_conv("tf32", BLOCKS),
    ]
    return list(dict.fromkeys(in_order))
