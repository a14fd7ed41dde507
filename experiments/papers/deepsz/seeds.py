"""DeepSZ on many trainings under one rule that was written down before any of them was looked at.

1. Prune step by step to `SHARES`, fewer weights than the paper keeps, so that fine error bounds suffice for its ratio.
2. Retrain on images shifted by up to a pixel, with the original network's probabilities as half of the labels: the
   first leaves a margin, the second keeps predictions, which also makes the standard error of a loss smaller.
3. Search on the held-out images with the margin of `rule.py`. If what is found is not as small as the paper's, or
   nothing is within the loss, retrain some epochs more in another order and search again, `ROUNDS` times at most.

Seeds 10 to 12 were used to find this rule: without the shifts one of them lost 0.2 points by pruning alone and further
retraining did not help. The seeds that are measured are others. Test images are for the report only.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from experiments.lab import data, record
from experiments.papers.deepsz import pruning
from experiments.papers.deepsz.case import Case, Row, case_of, evaluated
from experiments.papers.deepsz.pruning import Subject, Tensors
from experiments.papers.deepsz.rule import MARGIN, MAX_LOSS, tuned
from nearzip.recipes import Hold
from nearzip.torch import finetune, prune

#: Shares kept of each layer and epochs of retraining, step by step.
SHARES: dict[str, tuple[tuple[tuple[float, ...], int], ...]] = {
    "lenet-300-100": (((0.3, 0.3, 0.5), 1), ((0.15, 0.15, 0.4), 2), ((0.08, 0.09, 0.26), 3), ((0.05, 0.07, 0.26), 10)),
    "lenet-5": (((0.25, 0.4), 1), ((0.08, 0.19), 3), ((0.04, 0.15), 8)),
}
#: The paper's, from the sizes of its Table 2.
PAPER_RATIOS = {"lenet-300-100": 55.8, "lenet-5": 57.3}
#: Further retrainings at most, and the epochs of each.
ROUNDS, MORE = 4, 8
#: Share of the original's probabilities in the labels; their temperature.
_SOFT, _TEMPERATURE = 0.5, 2.0
_BATCH = 128


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """A batch moved by up to a pixel each way, zeros (of the normalized images: background) coming in."""
    down, right = (int(n) for n in torch.randint(3, (2,), generator=generator))
    height, width = images.shape[-2:]
    padded = functional.pad(images, [1] * 4, value=float(images.min()))
    return padded[..., down : down + height, right : right + width]


def softened(case: Case, images: data.Dataset, epochs: int, seed: int) -> Callable[[nn.Module], float]:
    """One epoch a call for the fully connected layers, on shifted images and labels half the original network's."""
    whole = pruning.load(case.subject, case.original)
    front, inputs = whole[: case.subject.tail], images.train.inputs
    with torch.no_grad():
        logits = torch.cat([whole(part) for part in inputs.split(1000)])
    soft = functional.softmax(logits / _TEMPERATURE, -1)
    labels = _SOFT * soft + (1 - _SOFT) * functional.one_hot(images.train.targets, soft.shape[-1])
    generator, state = torch.Generator().manual_seed(seed), {"step": 0}
    per_epoch = len(inputs) // _BATCH
    optimizers: list[torch.optim.SGD] = []

    def train_epoch(module: nn.Module) -> float:
        if not optimizers:
            rate = case.subject.retraining_rate
            optimizers.append(torch.optim.SGD(module.parameters(), rate, 0.9, weight_decay=5e-4))
        loss = torch.zeros(())
        for which in torch.randperm(len(inputs), generator=generator).split(_BATCH)[:per_epoch]:
            share = max(0.01, 1 - state["step"] / (epochs * per_epoch))
            optimizers[0].param_groups[0]["lr"] = case.subject.retraining_rate * share
            state["step"] += 1
            with torch.no_grad():
                seen = front(shifted(inputs[which], generator))
            loss = functional.cross_entropy(module(seen), labels[which])
            optimizers[0].zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizers[0].step()
        return float(loss.detach())

    return train_epoch


def retrained(case: Case, images: data.Dataset, tensors: Tensors, epochs: int, seed: int) -> Tensors:
    """The network with its fully connected layers trained further, zeros held."""
    module = pruning.load(case.subject, tensors)
    tail = module[case.subject.tail :]
    torch.manual_seed(seed)
    with pruning.dropping(tail, pruning.DROPOUT):
        finetune(tail, softened(case, images, epochs, seed), Hold(zeros=tuple(case.names)), epochs=epochs)
    return pruning.arrays(module)


def pruned(case: Case, images: data.Dataset) -> Tensors:
    """After all steps of `SHARES`."""
    tensors = case.original
    for number, (shares, epochs) in enumerate(SHARES[case.subject.network], 1):
        module = pruning.load(case.subject, tensors)
        prune(module, dict(zip(case.names, shares, strict=True)))
        tensors = retrained(case, images, pruning.arrays(module), epochs, case.subject.seed_of(number))
    return tensors


def one_seed(subject: Subject, images: data.Dataset) -> Row:
    """All attempts of one training; the last is what the rule gives, None if nothing was within the loss."""
    begin = time.process_time()
    case = case_of(subject, images)
    tensors, attempts = pruned(case, images), []
    for number in range(ROUNDS + 1):
        if number:
            tensors = retrained(case, images, tensors, MORE, subject.seed_of(20 + number))
        found = tuned(case, tensors, "deepsz")
        attempts.append({"pruned": evaluated(case, tensors), "deepsz": found and _short(found)})
        print(f"{subject.named()}, attempt {number}: {attempts[-1]}", file=sys.stderr, flush=True)
        if found and found["ratio"] >= PAPER_RATIOS[subject.network]:
            break
    before = {"validation": case.validation(case.original), "test": case.test(case.original)}
    return {"seed": subject.seed, "original": before, "attempts": attempts,
            "seconds": round(time.process_time() - begin, 1)}  # fmt: skip


def _short(found: Row) -> Row:
    """Without every trial of the search."""
    return {key: value for key, value in found.items() if key not in ("trials", "layers", "method")}


def summary(rows: list[Row], network: str) -> dict[str, Any]:
    """Medians, and how many trainings fail: nothing within the loss, a smaller ratio, or more lost on test images."""
    last = [row["attempts"][-1]["deepsz"] for row in rows]
    found = [one for one in last if one]
    small = [one for one in found if one["ratio"] >= PAPER_RATIOS[network]]
    return {
        "trainings": len(rows), "nothing": len(last) - len(found), "as_small": len(small),
        "within": sum(one["test_loss"] <= MAX_LOSS for one in found),
        "at_once": sum(len(row["attempts"]) == 1 for row in rows),
        "median_ratio": statistics.median(one["ratio"] for one in found) if found else None,
        "median_loss": statistics.median(one["test_loss"] for one in found) if found else None,
    }  # fmt: skip


def _known(network: str) -> dict[int, Row]:
    found = record.load("deepsz_seeds").get("networks", {}).get(network, {})
    return {row["seed"]: row for row in found.get("seeds", [])}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench deepsz_seeds", description=__doc__)
    parser.add_argument("--data", help="folder of the data sets (or NEARZIP_DATA)")
    parser.add_argument("--networks", nargs="+", choices=list(SHARES), default=list(SHARES))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(20, 30)), help="none of those tuned on")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    images = pruning.dataset(options.data)
    for network, seed in itertools.product(options.networks, options.seeds):
        if seed not in _known(network):
            row = one_seed(replace(pruning.SUBJECTS[network], seed=seed), images)
            # Read again: another process may have measured another seed.
            rows, found = _known(network), record.load("deepsz_seeds").get("networks", {})
            rows[seed] = json.loads(json.dumps({**row, "commit": record.commit()}))
            ordered = [rows[key] for key in sorted(rows)]
            found[network] = {"seeds": ordered, "summary": summary(ordered, network)}
            settings = {"max_loss": MAX_LOSS, "margin": MARGIN, "rounds": ROUNDS, "epochs_of_a_round": MORE,
                        "shares": SHARES, "paper_ratios": PAPER_RATIOS}  # fmt: skip
            record.save("deepsz_seeds", {**settings, "networks": found}, ("nearzip", "numpy", "torch", "pysz"))
