"""DeepSZ's Tables 2 to 5 and Figures 2 to 7 on the LeNets trained here, with Deep Compression and Weightless.

Shares and error bounds are chosen on 10 000 held-out training images by one rule, for every network and seed alike; no
choice looks at the test images. `docs/papers/deepsz.md` is made from the result by `bench docs`.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from typing import Any

import torch

from experiments.lab import record
from experiments.papers.deepsz import figures as deepsz_figures
from experiments.papers.deepsz import others as deepsz_others
from experiments.papers.deepsz import pruning
from experiments.papers.deepsz import times as deepsz_times
from experiments.papers.deepsz.case import Case, Row, at_bounds, case_of, csr_bytes, evaluated, kept
from experiments.papers.deepsz.pruning import Subject
from experiments.papers.deepsz.rule import MARGIN, MAX_LOSS, METHODS, chosen_step, expected_ratio, tuned, zero_loss

#: The bounds that the paper's search chose for its networks, layer by layer.
PAPER_BOUNDS = {"lenet-300-100": (0.02, 0.03, 0.04), "lenet-5": (0.03, 0.08)}


def step_figures(case: Case, step: pruning.Trained, name: str) -> Row:
    """One pruning step through both methods."""
    print(f"{case.subject.named()}, {name}", file=sys.stderr, flush=True)
    tensors = step.tensors
    return {
        "keep": kept(tensors, case.names), "csr_bytes": {n: csr_bytes(tensors, n) for n in case.names},
        "retraining_seconds": step.seconds, "pruned": evaluated(case, tensors),
        **{method: tuned(case, tensors, method) for method in METHODS},
    }  # fmt: skip


def seed_figures(case: Case, images: Any) -> Row:
    """All pruning steps of one training, and which of them the rule chooses."""
    original, steps = pruning.original(case.subject, images), pruning.pruned(case.subject, images)
    figures = {name: step_figures(case, step, name) for name, step in steps.items()}
    return {
        "seed": case.subject.seed, "original": evaluated(case, original.tensors), "training_seconds": original.seconds,
        "steps": figures, "chosen": {method: chosen_step(figures, method) for method in METHODS},
    }  # fmt: skip


def network(subject: Subject, images: Any, seeds: list[int]) -> Row:
    """All figures of one network. The first seed's has the tables besides."""
    case = case_of(replace(subject, seed=seeds[0]), images)
    trained = [seed_figures(case_of(replace(subject, seed=seed), images), images) for seed in seeds]
    return {
        "network": subject.network, "layers": dict(subject.layers), "fc_bytes": case.fc_bytes(),
        "fc_layers": {name: case.original[name].nbytes for name in case.names}, "seeds": trained,
        **tables(case, images, trained[0]["steps"]["paper"]["deepsz"]),
    }  # fmt: skip


def tables(case: Case, images: Any, deepsz: Row) -> Row:
    """DeepSZ's other modes, the other methods and the figures, on the network with the paper's shares.

    `deepsz`: what the rule chose for it.
    """
    tensors = pruning.pruned(case.subject, images)["paper"].tensors
    no_margin = tuned(case, tensors, "deepsz", margin=0.0)
    assert no_margin, "pruning to the paper's shares alone has lost too much"
    paper = dict(zip(case.names, PAPER_BOUNDS[case.subject.network], strict=True))
    return {
        "no_margin": no_margin,
        "zero_loss": zero_loss(case, tensors),
        "paper_bounds": at_bounds(case, tensors, paper),
        "expected_ratio": expected_ratio(case, tensors, no_margin["trials"]),
        **deepsz_others.figures(case, tensors, images, deepsz),
        **deepsz_figures.figures(case, tensors),
    }


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench deepsz", description=__doc__)
    parser.add_argument("--data", help="Folder of the data sets; default NEARZIP_DATA.")
    parser.add_argument("--networks", nargs="+", choices=list(pruning.SUBJECTS), default=list(pruning.SUBJECTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--train-only", action="store_true", help="Fill the cache with pruned networks and stop.")
    parser.add_argument("--times", action="store_true", help="Only Figure 7, of networks in the cache.")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    images = pruning.dataset(options.data)
    for name in options.networks:
        subject = pruning.SUBJECTS[name]
        if options.train_only:
            for seed in options.seeds:
                pruning.pruned(replace(subject, seed=seed), images)
        elif options.times:
            _save(name, {"times": times(replace(subject, seed=options.seeds[0]), images)})
        else:
            _save(name, {**network(subject, images, options.seeds), "commit": record.commit()})


def times(subject: Subject, images: Any) -> Row:
    return {**deepsz_times.times(case_of(subject, images), images), "commit": record.commit()}


def _save(name: str, figures: Row) -> None:
    """Into the result, beside what was measured before."""
    found = {row["network"]: row for row in record.load("deepsz").get("networks", [])}
    found[name] = {**found.get(name, {}), **json.loads(json.dumps(figures))}
    rows = [found[each] for each in pruning.SUBJECTS if each in found]
    constants = {
        "max_loss": MAX_LOSS,
        "margin": MARGIN,
        "n_validation": pruning.N_VALIDATION,
        "dropout": pruning.DROPOUT,
    }
    record.save(
        "deepsz", {**constants, "networks": rows},
        ("nearzip", "numpy", "torch", "pysz", "zfpy", "blosc2", "zstandard"),
    )  # fmt: skip
