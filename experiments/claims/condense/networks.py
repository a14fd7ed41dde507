"""Thinned networks give the outputs of masked ones, and their files give them back bit for bit: every network."""

from __future__ import annotations

import argparse
import copy
import time
from typing import Any

import torch
from torch import Tensor, nn

import nearzip as nz
from experiments.lab import record
from experiments.lab.networks import NETWORKS, data_of
from nearzip import condense
from nearzip.condense.groups import outputs_of, relative_difference
from nearzip.condense.recovery import load_values, marked
from nearzip.errors import UsageError

#: Share of the channels that is kept; widths are multiples of ALIGN.
KEEP, ALIGN = 0.5, 4


def inputs_for(name: str) -> Tensor:
    """A batch of two, as the network takes it."""
    torch.manual_seed(1)
    if data_of(name) == "tinyshakespeare":
        return torch.randint(0, 65, (2, 8))
    return torch.randn(2, 1, 28, 28) if data_of(name) == "mnist" else torch.randn(2, 3, 32, 32)


def made(name: str) -> nn.Module:
    """A network with statistics as a training leaves them: a filter of zeros is then no dead channel."""
    torch.manual_seed(0)
    module = NETWORKS[name]()
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            nn.init.normal_(layer.bias, 0.3, 0.2)
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2.0)
    return module.eval()


def n_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def checked(name: str) -> dict[str, Any]:
    """One network masked, thinned, stored and rebuilt."""
    begin = time.process_time()
    module, inputs = made(name), inputs_for(name)
    row: dict[str, Any] = {"parameters": n_parameters(module)}
    try:
        prepared = condense.Structure(align=ALIGN).prepare(module, inputs)
    except UsageError as error:
        return {**row, "refused": str(error), "seconds": round(time.process_time() - begin)}
    masked = copy.deepcopy(module)
    load_values(masked, prepared.project(marked(module, prepared), KEEP))
    thin = prepared.thin(copy.deepcopy(masked), KEEP).eval()
    with nz.open(nz.compress(thin.state_dict()).to_bytes()) as archive:
        again = condense.fit(made(name), archive).eval()
    return {
        **row,
        "thinned_parameters": n_parameters(thin),
        "groups": len(prepared.widths(1.0)),
        "difference": relative_difference(outputs_of(masked, inputs), outputs_of(thin, inputs)),
        "rebuilt_equal": torch.equal(outputs_of(again, inputs), outputs_of(thin, inputs)),
        "not_thinned": list(prepared.notes),
        "seconds": round(time.process_time() - begin),
    }


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench condense_networks", description=__doc__)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    options = parser.parse_args(arguments)
    commit = record.commit()
    for network in options.networks:
        row = {"commit": commit, **checked(network)}
        print(network, row, flush=True)
        # Read again: networks may be checked at once.
        known = {**record.load("condense_networks").get("networks", {}), network: row}
        result = {"commit": commit, "keep": KEEP, "align": ALIGN, "networks": known}
        record.save("condense_networks", result, ("nearzip", "numpy", "torch", "torch-pruning"))
