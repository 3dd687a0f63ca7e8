"""Trains by a preset, on too few images to learn much, and reads what was written.

    python examples/preset.py [DIRECTORY]

The same from a shell:

    spfde train --preset spfde-digits --epochs 6 --interval 1 --train-images 256 --test-images 100 --out DIRECTORY
"""

import sys
from pathlib import Path

from spfde.train import Recipe, fit
from spfde.train.recipe import presets


def main(out: str = "runs/preset") -> float:
    """Returns the test accuracy of the run."""
    fields = presets.read("spfde-digits") | {"epochs": 6, "interval": 1, "train_images": 256, "test_images": 100}
    result = fit(Recipe(**fields, out=out), overwrite=True)
    print(result)
    for epoch in result.epochs:
        print(f"epoch {epoch.epoch}: {epoch.samples} samples, test accuracy {epoch.test_accuracy:.1%}")
    print("written:", *sorted(path.name for path in Path(out).iterdir()))
    return result.test_accuracy


if __name__ == "__main__":
    main(*sys.argv[1:2])
