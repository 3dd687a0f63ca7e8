"""All three levers in a training loop of one's own.

    python examples/own_loop.py

Two additions to the loop for each lever; everything else is what any PyTorch program has.
"""

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

import spfde


class Indexed(Dataset):
    """A data set that returns which sample it is as well: a sieve has to know."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        return index, *self.data[index]


def main(epochs: int = 4, images: int = 320) -> float:
    """Trains a small ResNet on the embedded digits; returns its accuracy."""
    torch.manual_seed(0)
    data = spfde.data.load("digits", train=images, test=100)
    model = spfde.models.create("resnet20", num_classes=10, in_channels=1)

    spfde.sparsify(model, 0.8, distribution="erk")  # before the optimizer: layers get new parameters
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    sieve = spfde.sieving.Circular(images, fraction=0.2, interval=1)
    loader = DataLoader(Indexed(data.train), batch_size=64, sampler=sieve)
    topology = spfde.topology.MEST(model, optimizer, total_steps=epochs * len(loader), every_epochs=1)
    parts = spfde.freezing.blocks(model, data.train[0][0][None])
    freezer = spfde.freezing.Progressive(model, parts, epochs=epochs, interval=1, flops_reduction=0.1)

    for epoch in range(epochs):
        topology.begin_epoch(epoch, len(loader), epochs)
        frozen = freezer.begin_epoch(epoch)
        model.train()
        for indices, x, y in loader:
            logits = model(x)
            loss = F.cross_entropy(logits, y)
            loss.backward()
            optimizer.step()
            topology.step()
            optimizer.zero_grad()
            sieve.observe(indices, logits, y)
        sieve.end_epoch()
        print(f"epoch {epoch}: loss {loss.item():.3f}, froze {frozen}, {len(sieve.active)} samples next")

    print(spfde.summary(model))
    dense = spfde.densify(model).eval()  # plain torch layers, zeros exact
    x, y = map(torch.stack, zip(*((x, torch.as_tensor(y)) for x, y in data.test), strict=True))
    with torch.no_grad():
        accuracy = (dense(x).argmax(1) == y).float().mean().item()
    print(f"test accuracy {accuracy:.1%}")
    return accuracy


if __name__ == "__main__":
    main()
