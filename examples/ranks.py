"""Several processes train one sparse model.

    torchrun --nproc-per-node 2 examples/ranks.py

Every rank makes the same model and topology; DistributedDataParallel averages the gradients, so masks move alike.
"""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import spfde


def main(steps: int = 20) -> None:
    """Trains, and checks that all ranks hold one model."""
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    spfde.sparsify(model, 0.9)  # before it is wrapped
    ddp = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1, momentum=0.9)
    topology = spfde.topology.RigL(ddp, optimizer, total_steps=steps, every=5)

    x, y = torch.randn(512, 64), torch.randint(10, (512,))
    sieve = spfde.sieving.Circular(len(x), fraction=0.25, interval=1)  # shares itself out to the ranks
    done = 0
    while done < steps:
        for indices in torch.tensor(list(sieve)).split(32):
            logits = ddp(x[indices])
            nn.functional.cross_entropy(logits, y[indices]).backward()
            optimizer.step()
            moved = topology.step()
            optimizer.zero_grad()
            sieve.observe(indices, logits, y[indices])
            done += 1
            if moved and rank == 0:
                print(f"step {done}: {topology.reason}")
        sieve.end_epoch()

    masks = torch.cat([layer.mask().flatten() for layer in model if hasattr(layer, "mask")]).float()
    seen = [torch.empty_like(masks) for _ in range(world)]
    dist.all_gather(seen, masks)
    if rank == 0:
        same = all(torch.equal(masks, each) for each in seen)
        print(f"{world} ranks, {int(masks.sum())} stored weights, masks alike: {same}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
