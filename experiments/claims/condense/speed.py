"""Throughput of thinned networks within an accuracy budget, on one thread beside the original."""

from __future__ import annotations

import argparse
import copy
import time
from typing import Any

import torch
from torch import nn

from experiments.claims.condense.networks import n_parameters
from experiments.claims.condense.subjects import Case, case_of
from experiments.lab import record
from nearzip import condense
from nearzip.condense.flops import count_flops

#: Budget, share of the channels, epochs of the recovery, images of an epoch. The share is given: a search takes five
#: trainings, as many times the time.
SETTINGS = {"vgg-small": (0.02, 0.5, 8, 10_000), "resnet-20": (0.02, 0.47, 3, 8_000)}
ALIGN = 8


def widths(module: nn.Module) -> list[int]:
    """Rows or filters of each layer."""
    return [len(m.weight) for m in module.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]


def as_long(case: Case, recover: condense.Recovery) -> dict[str, float]:
    """Accuracy of the original trained for as many epochs: what it might have gained itself."""
    module = copy.deepcopy(case.module)
    torch.manual_seed(0)
    for factor in recover.factors:
        case.train_epoch(module, factor)
    return {"test": case.test(module), "validation": case.validation(module)}


def measured(network: str, folder: str | None) -> dict[str, Any]:
    max_loss, keep, epochs, per_epoch = SETTINGS[network]
    case = case_of(network, folder, per_epoch=per_epoch)
    begin = time.process_time()
    recover = condense.Direct(epochs)
    small = condense.compress(
        case.module, case.train_epoch, keep=keep, evaluate=case.evaluator(), max_loss=max_loss,
        scheme=condense.Structure(align=ALIGN), objective="throughput", inputs=case.inputs,
        recover=recover, evaluations=3,
    )  # fmt: skip
    print(small, flush=True)
    before, after = count_flops(case.module, case.inputs), count_flops(small.module, case.inputs)
    return {
        "max_loss": max_loss, "epochs": epochs, "per_epoch": per_epoch, "batch": len(case.inputs), "keep": small.keep,
        "recovery": "fine-tuning alone",
        "speed": small.objective["details"], "flops": before / after, "ratio": small.ratio,
        "parameters": [n_parameters(case.module), n_parameters(small.module)],
        "widths": widths(small.module), "original_widths": widths(case.module), "reference": case.test(case.module),
        "test": case.test(small.module), "as_long": as_long(case, recover), "losses": dict(small.losses),
        "notes": list(small.notes), "seconds": round(time.process_time() - begin),
    }  # fmt: skip


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench condense_speed", description=__doc__)
    parser.add_argument("--data")
    parser.add_argument("--networks", nargs="+", default=list(SETTINGS), choices=SETTINGS)
    options = parser.parse_args(arguments)
    commit = record.commit()
    for network in options.networks:
        one = {"commit": commit, **measured(network, options.data)}
        # Read again: networks may be measured at once.
        known = {**record.load("condense_speed").get("networks", {}), network: one}
        record.save("condense_speed", {"commit": commit, "networks": known}, ("nearzip", "numpy", "torch"))
