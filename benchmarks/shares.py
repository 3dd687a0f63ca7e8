"""Where the training time of finished runs went, and how much of it was overhead: python benchmarks/shares.py RUN..."""

from __future__ import annotations

import argparse
from pathlib import Path

from spfde.report.run import NOT_TRAINING, OVERHEAD, Run, read
from spfde.train.stats import CATEGORIES


def text(run: Run) -> str:
    """Seconds of each category of a run and their share of the training time; evaluation is in neither sum."""
    training = run.training_seconds
    lines = [f"{run.path}: {training:.2f} s of training, without {' and '.join(NOT_TRAINING)}"]
    lines += [f"  {name:<11}{run.seconds[name]:9.2f} s{run.seconds[name] / training:8.2%}" for name in CATEGORIES]
    share = run.overhead_seconds / training
    return "\n".join((*lines, f"  {'overhead':<11}{run.overhead_seconds:9.2f} s{share:8.2%}  ({' + '.join(OVERHEAD)})"))


def main(argv: list[str] | None = None) -> None:
    """Print the shares of each run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directories of spfde train --out")
    for path in parser.parse_args(argv).runs:
        print(text(read(path)))


if __name__ == "__main__":
    main()
