"""A small network with buffers, and a training that uses random numbers."""

from __future__ import annotations

import torch
from torch import nn


def small_model(seed: int, width: int = 8) -> nn.Sequential:
    """(n, 4) -> (n, 2), with batch norm and dropout."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.2), nn.Linear(width, 2))


def train(model, optimizer, scheduler, steps: int, feedback=None) -> float:
    """Steps on batches from torch's global generator; the last loss."""
    loss = torch.zeros(())
    for _ in range(steps):
        x = torch.randn(16, 4)
        loss = nn.functional.cross_entropy(model(x), (x.sum(dim=1) > 0).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    return loss.item()
