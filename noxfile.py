"""Every Python with every torch that is supported: `nox`, or one pair by `nox -s "tests-3.11(torch='2.13.0')"`.

Each pair has an environment of its own, in which the package is built from this tree. A pair for which there is no
torch is skipped by name. SMOKE=1 runs the smoke alone, WHEELS=dist beside it tries the wheels in that folder instead of
building.
"""

import os
from pathlib import Path

import nox
from nox.command import CommandFailed

PYTHONS = ["3.10", "3.11", "3.12", "3.13"]
TORCHES = ["2.6.0", "2.13.0", "newest"]

nox.options.sessions = ["tests"]
nox.options.error_on_missing_interpreters = False
nox.options.default_venv_backend = "uv|virtualenv"  # uv unpacks a CUDA build's gigabytes once for all environments


@nox.session(python=PYTHONS)
@nox.parametrize("torch", TORCHES)
def tests(session: nox.Session, torch: str) -> None:
    """The tests, or with SMOKE=1 what an installed package must do, on one Python with one torch."""
    wanted = "torch" if torch == "newest" else f"torch=={torch}"
    try:
        session.install("--only-binary", "torch", wanted, silent=True)
    except CommandFailed:
        session.skip(f"{wanted} has no wheel for Python {session.python}")
    if os.environ.get("SMOKE"):
        session.install("pytest", built(session) if "WHEELS" in os.environ else ".", wanted)
        session.run("python", "-m", "pytest", "--noconftest", "tests/install/smoke.py")
    else:
        session.install(".[test]", wanted)
        session.run("python", "-m", "pytest", *session.posargs)


def built(session: nox.Session) -> str:
    """The wheel in $WHEELS for the session's Python."""
    tag = f"cp{session.python}".replace(".", "")
    found = sorted(Path(os.environ["WHEELS"]).glob(f"spfde-*-{tag}-*.whl"))
    if len(found) != 1:
        session.error(f"expected one wheel of {tag} in {os.environ['WHEELS']}, got {len(found)}, try python -m build")
    return str(found[0])
