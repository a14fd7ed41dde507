"""A plain training loop that can be ended at any time: run it again and it goes on from the last committed step.

python examples/plain.py --store runs/plain --steps 200
"""

import argparse

import torch
from torch import nn

import nearzip as nz
from nearzip.torch import Saver


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--store", default="runs/plain")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--every", type=int, default=20)
    arguments = parser.parse_args()

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, arguments.steps)

    with Saver(arguments.store, bound=nz.Absolute(1e-3), every=arguments.every, keep="last:3") as saver:
        resumed = saver.restore(model, optimizer, scheduler)
        start = resumed.step if resumed else 0
        print(f"starting at step {start}")
        for step in range(start + 1, arguments.steps + 1):
            x = torch.randn(64, 32)
            loss = nn.functional.cross_entropy(model(x), (x[:, :8].sum(dim=1) > 0).long())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            saver.save(model, optimizer, scheduler, step, {"loss": loss.item()})
    print(f"step {arguments.steps}: loss {loss.item():.4f}; {saver.report}")


if __name__ == "__main__":
    main()
