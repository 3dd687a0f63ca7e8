"""What the native core's object files define."""

import shutil
import subprocess

import pytest


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm")
def test_instruction_sets_share_no_symbol_that_the_linker_could_merge(root):
    """It would keep one copy, perhaps that for a wider instruction set than this CPU has."""
    objects = [
        path for path in (root / "build").glob("cmake-*/**/csrc/cpu/*.o") if (root / "csrc/cpu" / path.stem).exists()
    ]
    if not objects:
        pytest.skip("the core was not built in this tree")
    for path in objects:
        listing = subprocess.run(["nm", "-C", path], capture_output=True, text=True, check=True).stdout
        rows = [line[17:].split(" ", 1) for line in listing.splitlines()]
        [isa] = [part[6:-4] for part in path.parts if part.startswith("spfde_") and part.endswith(".dir")]
        assert any(kind == "T" and f"spfde::{isa}::" in name for kind, name in rows)  # the listing is what is read here
        weak = {name for kind, name in rows if kind in "WVu"}
        # The pointer to the C++ exception handler holds no code.
        assert {n for n in weak if f"spfde::{isa}::" not in n} <= {"DW.ref.__gxx_personality_v0"}
