"""Every Python with every torch that is supported: `nox`, or one pair by `nox -s "tests-3.11(torch='2.13.0')"`.

Each pair has an environment of its own, in which the package is built from this tree. A pair for which there is no
torch is skipped by name. SMOKE=1 runs the smoke alone.
"""

import os

import nox

PYTHONS = ["3.10", "3.11", "3.12", "3.13"]
TORCHES = ["2.6.0", "2.13.0", "newest"]

nox.options.sessions = ["tests"]
nox.options.error_on_missing_interpreters = False


@nox.session(python=PYTHONS)
@nox.parametrize("torch", TORCHES)
def tests(session: nox.Session, torch: str) -> None:
    """The tests, or with SMOKE=1 what an installed package must do, on one Python with one torch."""
    wanted = "torch" if torch == "newest" else f"torch=={torch}"
    if not session.run("pip", "install", "--only-binary", "torch", wanted, success_codes=[0, 1], silent=True):
        session.skip(f"{wanted} has no wheel for Python {session.python}")
    smoke = bool(os.environ.get("SMOKE"))
    session.install("pytest" if smoke else ".[test]", "." if smoke else wanted, wanted)
    session.run("python", "-m", "pytest", *(["tests/install/smoke.py"] if smoke else session.posargs))
