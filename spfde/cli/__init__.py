"""The `spfde` command; a subcommand's module is imported when that subcommand is asked for."""

from __future__ import annotations

import signal
import sys
from importlib import import_module
from typing import TYPE_CHECKING

from spfde._heap import keep_memory
from spfde._names import printable

if TYPE_CHECKING:
    import typer

# Subcommand -> module that defines a function of the same name, or a group of commands.
COMMANDS = {
    "train": "spfde.cli.train",
    "bench": "spfde.cli.bench",
    "plan": "spfde.cli.plan",
    "profile": "spfde.cli.profile",
    "report": "spfde.cli.report",
    "smartfrz": "spfde.cli.smartfrz",
    "env": "spfde.cli.env",
}


def build(command: str | None) -> typer.Typer:
    """The application holding `command`, or every command where it is none of them (help, a misspelling).

    Raises:
        ImportError: what the command needs beyond the library is not installed.
    """
    try:
        import rich  # noqa: F401
        import typer
    except ImportError as error:
        raise ImportError(
            f"expected typer and rich, which the command needs, got no {error.name}, try pip install spfde[cli]"
        ) from error
    app = typer.Typer(
        help="Sparse training that is faster in seconds.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.callback()(lambda: None)  # without it, a single command would take the place of the group
    for name in [command] if command in COMMANDS else COMMANDS:
        found = getattr(import_module(COMMANDS[name]), name)
        if isinstance(found, typer.Typer):
            app.add_typer(found, name=name)
        else:
            app.command(name)(found)
    return app


def main() -> None:
    """Runs the command line; what the user can mend is told in one line."""
    keep_memory()
    command = next((argument for argument in sys.argv[1:] if not argument.startswith("-")), None)
    try:
        build(command)(prog_name="spfde")
    except (ValueError, ImportError, OSError) as error:
        raise SystemExit(printable(f"spfde: {error}")) from error
    except (MemoryError, RuntimeError) as error:
        told = machine_fault(error)
        if told is None:
            raise
        raise SystemExit(printable(f"spfde: {told}")) from error
    except KeyboardInterrupt:  # while a subcommand is imported; later on it is the subcommand's
        raise SystemExit(128 + signal.SIGINT) from None


def machine_fault(error: Exception) -> str | None:
    """Say what the machine lacks, or None if the error is not of its making; torch has no classes for these."""
    text = " ".join(str(error).split()) or "an allocation that failed"
    if isinstance(error, MemoryError) or "can't allocate memory" in text:
        return f"expected enough memory, got none left ({text}), try a smaller batch_size, width or number of images"
    if text.startswith("DataLoader worker"):
        return f"expected loader processes that live, got one that died ({text}), try fewer workers, or workers=0"
    return None


if __name__ == "__main__":
    main()
