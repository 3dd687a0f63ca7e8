"""Freezes the front of a network and keeps its output of every sample.

    python examples/freeze_and_cache.py

After two epochs the front is constant. One more epoch fills the cache, and from then on the front does not run at all.
"""

import torch
from torch.nn import functional as F

import spfde
from spfde.freezing import ActivationCache, Prefix, Static


def main(epochs: int = 5, images: int = 256) -> int:
    """Returns how many samples were read from the cache."""
    torch.manual_seed(0)
    data = spfde.data.load("digits", train=images, test=100)
    x, y = map(torch.stack, zip(*((x, torch.as_tensor(y)) for x, y in data.train), strict=True))
    model = spfde.models.create("resnet20", num_classes=10, in_channels=1)
    spfde.sparsify(model, 0.8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    parts = spfde.freezing.blocks(model, x[:1])
    freezer = Static(model, parts, epochs=epochs, count=2, start=2)
    cache = ActivationCache(dtype="bfloat16")
    prefix = Prefix(model, parts, cache=cache, samples=images)

    for epoch in range(epochs):
        frozen = freezer.begin_epoch(epoch)
        for indices in torch.randperm(images).split(64):
            with prefix(indices):  # which samples these are; they must come again unchanged
                loss = F.cross_entropy(model(x[indices]), y[indices])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        print(f"epoch {epoch}: loss {loss.item():.3f}, froze {frozen}; {cache.stats}")
    print(prefix)
    print(cache.reason)
    return cache.stats.hits


if __name__ == "__main__":
    main()
