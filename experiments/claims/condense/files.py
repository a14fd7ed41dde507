"""Whole files of condensed networks within an accuracy budget, beside other methods at the same share and epochs."""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np

import nearzip as nz
from experiments.claims.condense.subjects import Case, case_of
from experiments.lab import record
from nearzip import condense

#: Budget, epochs of one recovery, images of an epoch (None: all), and most trainings.
SETTINGS: dict[str, tuple[float, int, int | None, int]] = {
    "lenet-300-100": (0.002, 12, None, 4),
    "lenet-5": (0.0015, 8, 20_000, 4),
    "vgg-small": (0.02, 4, 10_000, 3),
}
#: Other methods on the network that one-shot pruning and as many epochs of fine-tuning give at the same share.
PEERS: dict[str, tuple[str, dict[str, Any], str | None]] = {
    "DeepSZ, absolute bound 0.01": ("deepsz-nearzip", {"keep": 1.0}, "abs:0.01"),
    "Deep Compression, 5 bits": ("deep-compression", {"keep": 1.0, "bits": 5}, None),
}


def condensas_count(tensors: dict[str, np.ndarray]) -> float:
    """Four bytes a weight before, two bytes a nonzero after: no positions."""
    n = sum(array.size for array in tensors.values())
    return 4 * n / (2 * sum(int(np.count_nonzero(array)) for array in tensors.values()))


def arrays(module: Any) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy() for name, value in module.state_dict().items()}


def row(case: Case, name: str, module: Any, n_bytes: int) -> dict[str, Any]:
    """Size and accuracy of one network."""
    before = arrays(case.module)
    reference = case.test(case.module), case.validation(case.module)
    found = {
        "name": name, "bytes": n_bytes, "ratio": sum(a.nbytes for a in before.values()) / n_bytes,
        "condensas_count": condensas_count(arrays(module)), "test": case.test(module),
        "validation": case.validation(module),
    }  # fmt: skip
    found["lost_on_test"] = reference[0] - found["test"]
    found["lost_on_validation"] = reference[1] - found["validation"]
    print(found, flush=True)
    return found


def peers(case: Case, keep: float, epochs: int) -> list[dict[str, Any]]:
    """Other methods' files of the one-shot pruned network."""
    recover = condense.Direct(epochs)
    pruned = condense.compress(case.module, case.train_epoch, keep=keep, recover=recover, inputs=case.inputs)
    found = [row(case, "one-shot, lossless", pruned.module, pruned.archive.nbytes)]
    for name, (method, options, bound) in PEERS.items():
        archive = nz.compress(pruned.module.state_dict(), method=method, options=options, bound=bound)
        restored = condense.fit(case_module(case), archive.restored).eval()
        found.append(row(case, name, restored, archive.nbytes))
    return found


def case_module(case: Case) -> Any:
    from experiments.claims.condense.subjects import make

    return make(case.subject.network)


def measured(network: str, folder: str | None) -> dict[str, Any]:
    """The search on one network, and the others at the share that it found."""
    max_loss, epochs, per_epoch, samples = SETTINGS[network]
    case = case_of(network, folder, per_epoch=per_epoch)
    begin = time.process_time()
    small = condense.tune(
        case.module, case.train_epoch, evaluate=case.evaluator(), max_loss=max_loss, scheme=condense.Prune(),
        inputs=case.inputs, recover=condense.LC(epochs), samples=samples,
        progress=lambda status: print(status.latest, flush=True),
    )  # fmt: skip
    seconds = time.process_time() - begin
    print(small, flush=True)
    rows = [row(case, "nearzip.condense", small.module, small.archive.nbytes), *peers(case, small.keep, epochs)]
    return {
        "max_loss": max_loss, "epochs": epochs, "per_epoch": per_epoch, "samples": samples,
        "keep": small.keep, "seconds": round(seconds),
        "reference": case.test(case.module), "trainings": len(small.trials), "rows": rows,
        "trials": [{"keep": t.keep, "usage": t.usage, "bytes": t.n_bytes} for t in small.trials],
    }  # fmt: skip


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench condense_files", description=__doc__)
    parser.add_argument("--data")
    parser.add_argument("--networks", nargs="+", default=list(SETTINGS), choices=SETTINGS)
    options = parser.parse_args(arguments)
    commit = record.commit()
    for network in options.networks:
        one = {"commit": commit, **measured(network, options.data)}
        # Read again: networks may be measured at once.
        known = {**record.load("condense_files").get("networks", {}), network: one}
        result = {"commit": commit, "networks": known}
        record.save("condense_files", result, ("nearzip", "numpy", "torch"))
