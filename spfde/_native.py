"""The native core, loaded at first use; why it cannot be loaded is said then."""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType

# Before the extension: its OpenMP symbols then resolve to the runtime that torch has loaded.
import torch  # noqa: F401


@lru_cache(maxsize=1)
def load() -> ModuleType | ImportError:
    """The native core, or why it cannot be loaded."""
    try:
        from spfde import _C  # type: ignore[attr-defined]
    except ImportError as error:
        return error
    _C.isa()  # SPFDE_ISA is read now
    return _C


@lru_cache(maxsize=1)  # an error is not kept: every call says it again
def native() -> ModuleType:
    """Returns the native core.

    Raises:
        ImportError: it is missing or cannot be loaded on this machine; the message says why.
        ValueError: the environment variable SPFDE_ISA names an instruction set this CPU does not run.
    """
    core = load()
    if isinstance(core, ImportError):
        raise ImportError(
            f"expected the native core spfde._C, got: {core}; try reinstalling with a C++ compiler at hand "
            f"(pip install .), or layer.kernel = 'dense', which needs none"
        ) from core
    return core
