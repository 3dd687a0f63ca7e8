"""What the native core's object files define."""

import shutil
import subprocess

import pytest


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm")
def test_instruction_sets_share_no_symbol_that_the_linker_could_merge(root):
    """It would keep one copy, perhaps that for a wider instruction set than this CPU has."""
    # A build folder keeps the objects of sources that are gone: those are not linked.
    objects = [
        path
        for folder in (root / "build").glob("cmake-*/CMakeFiles/spfde_*.dir")
        for path in folder.rglob("*.cpp.o")
        if (root / path.relative_to(folder).with_suffix("")).exists()
    ]
    if not objects:
        pytest.skip("the core was not built in this tree")
    for path in objects:
        listing = subprocess.run(["nm", "-C", path], capture_output=True, text=True, check=True).stdout
        rows = [line[17:].split(" ", 1) for line in listing.splitlines()]
        [isa] = [part[6:-4] for part in path.parts if part.startswith("spfde_") and part.endswith(".dir")]
        own, mangled = f"spfde::cpu::{isa}::", f"_ZN5spfde3cpu{len(isa)}{isa}"
        assert any(kind == "T" and own in name for kind, name in rows)  # the listing is what is read here
        weak = {name for kind, name in rows if kind in "WVu"}
        # nm leaves the names of lambdas inside lambdas as they are; the pointer to the exception handler holds no code.
        others = {name for name in weak if own not in name and not name.startswith(mangled)}
        assert others <= {"DW.ref.__gxx_personality_v0"}
