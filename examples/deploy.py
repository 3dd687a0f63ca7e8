"""Takes a trained sparse model out of training.

    python examples/deploy.py [DIRECTORY]

Compiled as it is (sparse kernels in a compiled graph), and dense again for torch.export, whose program needs no spfde.
"""

import copy
import sys
from pathlib import Path

import torch
from torch import nn

import spfde


def main(out: str = "runs/deploy") -> float:
    """Returns the largest difference between the sparse model and what was exported."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 10))
    spfde.sparsify(model, 0.9, init="magnitude")
    model.eval()
    x = torch.randn(32, 64)
    with torch.no_grad():
        expected = model(x)
        compiled = torch.compile(
            model, backend="aot_eager"
        )  # leave backend out for Inductor's kernels, which compile longer
        print("compiled, sparse:", (compiled(x) - expected).abs().max().item())

    dense = spfde.densify(copy.deepcopy(model))
    batch = torch.export.Dim("batch")
    program = torch.export.export(dense, (x,), dynamic_shapes={"input": {0: batch}})
    path = Path(out, "model.pt2")
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.export.save(program, path)
    loaded = torch.export.load(path).module()
    difference = (loaded(torch.cat([x, x]))[:32] - expected).abs().max().item()
    print(f"exported, dense: {difference}, {path} of {path.stat().st_size:,} bytes")
    return difference


if __name__ == "__main__":
    main(*sys.argv[1:2])
