"""The native core, loaded at first use; why it could not be loaded is kept and told then."""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType

# Before the extension: its OpenMP symbols then resolve to the runtime that torch has loaded.
import torch  # noqa: F401


@lru_cache(maxsize=1)
def _load() -> ModuleType | ImportError:
    try:
        from spfde import _C  # type: ignore[attr-defined]
    except ImportError as error:
        return error
    _C.isa()  # SPFDE_ISA is read now, so that a wrong one is told at the first call and at every later one
    return _C


def native() -> ModuleType:
    """Returns the native core.

    Raises:
        ImportError: it is missing or cannot be loaded on this machine; the message says why.
        ValueError: the environment variable SPFDE_ISA names an instruction set this CPU does not run.
    """
    loaded = _load()
    if isinstance(loaded, ImportError):
        raise ImportError(
            f"expected the native core spfde._C, got: {loaded}; try reinstalling with a C++ compiler at hand "
            f"(pip install .), or layer.kernel = 'dense', which needs none"
        ) from loaded
    return loaded
