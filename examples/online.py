"""Fine-tuning on a stream of labelled images whose look changes, with sparse weights and SimFreeze.

    python examples/online.py

The network has learnt upright digits; they arrive inverted, then mirrored, 32 at a time.
"""

import torch
from torch.nn import functional as F

import spfde
from spfde.data import digits
from spfde.freezing import SimFreeze, blocks


def fine_tune(model, optimizer, x, y, steps=4, freezer=None):
    """A round of fine-tuning on what arrived."""
    for chosen in torch.randperm(len(x)).repeat(steps)[: 16 * steps].split(16):
        optimizer.zero_grad()
        F.cross_entropy(model(x[chosen]), y[chosen]).backward()
        if freezer is not None:
            freezer.observe(x[:16])  # between backward and step
        optimizer.step()


def main(arrivals: int = 10, beforehand: int = 40) -> float:
    """Follows the stream; returns the mean accuracy on what arrives, before it is trained on."""
    torch.manual_seed(0)
    x, y = digits.scans()
    x, y = F.interpolate(x.unsqueeze(1) - 0.3, size=16), torch.as_tensor(y)
    model = spfde.models.create("resnet20", width=0.5, num_classes=10, in_channels=1)
    spfde.sparsify(model, 0.8, distribution="erk")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(beforehand):
        chosen = torch.randint(len(x), (64,))
        fine_tune(model, optimizer, x[chosen], y[chosen])

    freezer, right, rounds = SimFreeze(model, blocks(model, x[:1]), every=4, bootstrap=0, samples=16), [], 0
    for scenario, look in {"inverted": lambda x: -x, "mirrored": lambda x: x.flip(3)}.items():
        for arrival in range(arrivals):
            chosen = torch.randint(len(x), (32,))
            seen, labels = look(x[chosen]), y[chosen]
            with torch.no_grad():
                right.append((model.eval()(seen).argmax(1) == labels).float().mean().item())
            model.train()  # frozen blocks stay in eval mode
            if arrival == 0:
                freezer.data_changed(seen[:16])  # blocks to which the new images look different thaw
            freezer.begin_epoch(rounds)  # a round is its epoch
            fine_tune(model, optimizer, seen, labels, freezer=freezer)
            rounds += 1
        print(
            f"{scenario}: {right[-arrivals]:.0%} at first, {right[-1]:.0%} at last, frozen {len(freezer.frozen)} blocks"
        )
    return sum(right) / len(right)


if __name__ == "__main__":
    main()
