"""Gates: do plans that were tuned within a budget keep it on data never seen, with a confidence and without?

Five networks on scikit-learn's digits, twenty evaluation sets each. The population is the held-out digits with noise
drawn each time; an evaluation set is a sample of it, and the budget should limit the loss on fresh samples of it.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

import nearzip as nz
from experiments.lab import record
from nearzip.torch import evaluator

MAX_LOSS = 0.005
CONFIDENCES = (None, 0.95)
#: Hidden units of the networks.
_WIDTHS = (32, 64, 48, 96, 24)
_SETS, _NOISE = 20, 0.25
#: Copies of the held-out digits, each with other noise: in an evaluation set, and in the data never seen.
_COPIES, _UNSEEN_COPIES = 4, 60


def noisy(images: np.ndarray, labels: np.ndarray, rows: np.ndarray, copies: int, seed: int) -> tuple[Tensor, Tensor]:
    """Copies of some digits, each with noise of its own."""
    generator = np.random.default_rng(seed)
    noise = generator.normal(0, _NOISE, (copies, len(rows), images.shape[1])).astype(np.float32)
    found = np.clip(images[rows] + noise, 0, 1).reshape(-1, images.shape[1])
    return torch.from_numpy(found), torch.from_numpy(np.tile(labels[rows], copies))


def trained(width: int, inputs: Tensor, targets: Tensor) -> nn.Module:
    torch.manual_seed(width)
    module = nn.Sequential(nn.Linear(inputs.shape[1], width), nn.ReLU(), nn.Linear(width, 10))
    optimizer = torch.optim.Adam(module.parameters(), 1e-2)
    for _ in range(15):
        for rows in torch.randperm(len(inputs)).split(256):
            optimizer.zero_grad()
            functional.cross_entropy(module(inputs[rows]), targets[rows]).backward()
            optimizer.step()
    return module


def batches(data: tuple[Tensor, Tensor]) -> list[tuple[Tensor, Tensor]]:
    return list(zip(data[0].split(8192), data[1].split(8192), strict=True))


def plan_row(module: nn.Module, judge: Any, unseen: Any, confidence: float | None) -> dict[str, Any]:
    """One plan, and what it loses on data never seen."""
    state = module.state_dict()
    try:
        plan = nz.tune(state, evaluate=judge, max_loss=MAX_LOSS, confidence=confidence)
    except nz.errors.BudgetError as error:
        return {"nothing_fits": str(error)}
    restored = nz.compress(state, plan=plan).restored
    return {
        "bytes": plan.nbytes,
        "ratio": round(plan.original_bytes / plan.nbytes, 3),
        "loss": plan.losses["top1"],
        "unseen_loss": unseen(state) - unseen(restored),
    }


def rows(n_networks: int, n_sets: int) -> list[dict[str, Any]]:
    pixels, labels = load_digits(return_X_y=True)
    images = (pixels / 16).astype(np.float32)
    found = []
    for number, width in enumerate(_WIDTHS[:n_networks]):
        order = np.random.default_rng(number).permutation(len(images))
        module = trained(width, *noisy(images, labels, order[:900], 4, number))
        held_out = order[900:]
        unseen = evaluator(module, batches(noisy(images, labels, held_out, _UNSEEN_COPIES, 1000 + number)), "top1")
        for k in range(n_sets):
            seed = 100 * number + k
            drawn = np.random.default_rng(seed).choice(held_out, len(held_out))
            judge = evaluator(module, batches(noisy(images, labels, drawn, _COPIES, 5000 + seed)), "top1")
            plans = {str(confidence): plan_row(module, judge, unseen, confidence) for confidence in CONFIDENCES}
            found.append({"width": width, "set": k, "plans": plans})
    return found


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    """By confidence: plans, plans over their budget on data never seen, and the median ratio."""
    rows_by = {str(c): [row["plans"][str(c)] for row in found] for c in CONFIDENCES}
    return {
        name: {
            "plans": len(plans),
            "over": sum(p.get("unseen_loss", 0.0) > MAX_LOSS for p in plans),
            "nothing_fits": sum("nothing_fits" in p for p in plans),
            "median_ratio": statistics.median(p["ratio"] for p in plans if "ratio" in p),
        }
        for name, plans in rows_by.items()
    }


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench gates", description=__doc__)
    parser.add_argument("--networks", type=int, default=len(_WIDTHS))
    parser.add_argument("--sets", type=int, default=_SETS, help="evaluation sets for each network")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found = rows(options.networks, options.sets)
    result = {
        "max_loss": MAX_LOSS, "samples": _COPIES * (1797 - 900), "unseen_samples": _UNSEEN_COPIES * (1797 - 900),
        "summary": summary(found), "rows": found,
    }  # fmt: skip
    record.save("gates", result, ("nearzip", "numpy", "torch", "scikit-learn"))
