"""Ahead-of-time compilation without a GPU, and what the machine code says of itself."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from spfde.kernels.gpu import Config
from spfde.kernels.triton import launch

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Code:
    """What a kernel became. shared: bytes a program uses. spilled: bytes of stack and local memory of a thread."""

    ptx: str = field(repr=False)
    warps: int
    shared: int
    registers: int
    spilled: int

    @property
    def matrix_unit(self) -> str:
        """How the matrix unit is asked, as `Gpu.matrix_unit` says it; "" for not at all."""
        names = {"tcgen05.mma": "tcgen05", "wgmma.mma_async": "wgmma", "mma.sync": "mma"}
        return next((name for word, name in names.items() if word in self.ptx), "")

    @property
    def mma(self) -> bool:
        """Whether the matrix unit is used at all."""
        return self.matrix_unit != ""

    @property
    def copied(self) -> int:
        """Bytes that a program has in the code of its asynchronous copies of 8 or 16 bytes, loops taken once."""
        found = re.findall(r"cp\.async\.c[ag]\.shared\.global \[.*?\], \[.*?\], 0x(8|10)\b", self.ptx)
        return 32 * self.warps * sum(int(size, 16) for size in found)


def compile_kernel(
    kernel: Any, capability: tuple[int, int], types: dict[str, str], constants: dict[str, Any], how: Config
) -> Code:
    """Compiles for an architecture.

    types: of the arguments that are no constants, by name; a trailing "!" says that pointer or integer is a multiple of
    16, as the launcher finds out by itself.
    """
    signature = {name: types.get(name, "constexpr").rstrip("!") for name in kernel.arg_names}
    divisible = {
        (i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names) if types.get(name, "").endswith("!")
    }
    source = ASTSource(kernel, signature, {(kernel.arg_names.index(k),): v for k, v in constants.items()}, divisible)
    target = GPUTarget("cuda", 10 * capability[0] + capability[1], 32)
    made = triton.compile(source, target=target, options=launch.options(how))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        usage = _run("cuobjdump", "--dump-resource-usage", file.name)
    numbers = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", usage))
    return Code(
        made.asm["ptx"],
        how.warps,
        made.metadata.shared,
        int(numbers["REG"]),
        int(numbers["STACK"]) + int(numbers["LOCAL"]),
    )


def _run(tool: str, *args: str) -> str:
    return subprocess.run([TOOLS / tool, *args], check=True, capture_output=True, text=True).stdout
