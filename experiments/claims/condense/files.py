"""Whole files of condensed networks within an accuracy budget, beside other methods at the same share and epochs.

scripts/bench condense_files --data DIR                               small networks, minutes on a processor
scripts/bench condense_files --networks vgg-19 --device cuda          the paper's size
scripts/bench condense_files --tiny --output FOLDER                   the same code on a few images
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import nearzip as nz
from experiments.claims.condense.condensa_peer import NEEDS
from experiments.claims.condense.subjects import BATCH, Case, case_of, make
from experiments.lab import record
from experiments.lab.peers.environments import NotInstalledError, python_of
from experiments.lab.traces import cache_folder
from nearzip import condense
from nearzip.condense.execution import compare_speed

_ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Setting:
    """A budget, and what a search may take.

    Parameters
    ----------
    max_loss : float
    epochs : int
        Of one recovery.
    samples : int
        Most trainings.
    per_epoch : int or None
        Images of an epoch; None: all.
    n_validation : int
        Images that the search chooses by, held out from the training images.
    confidence : float or None
        The loss on them must stay within the budget with this confidence.
    """

    max_loss: float
    epochs: int
    samples: int
    per_epoch: int | None = None
    n_validation: int = 5000
    confidence: float | None = None


SETTINGS = {
    "lenet-300-100": Setting(0.002, 16, 2, n_validation=10_000, confidence=0.8),
    "lenet-5": Setting(0.0015, 6, 3, 12_000, confidence=0.7),
    "vgg-small": Setting(0.02, 4, 3, 10_000),
    "vgg-19": Setting(0.02, 60, 5),
    "resnet-56": Setting(0.02, 60, 5),
}
#: Networks that a processor trains in minutes.
SMALL = ("lenet-300-100", "lenet-5", "vgg-small")
TINY = {"epochs": 2, "samples": 1, "per_epoch": 256, "max_loss": 0.25, "n_validation": 200, "confidence": None}
#: Other methods on the network that one-shot pruning and as many epochs of fine-tuning give at the same share.
PEERS: dict[str, tuple[str, dict[str, Any], str | None]] = {
    "DeepSZ, absolute bound 0.01": ("deepsz-nearzip", {"keep": 1.0}, "abs:0.01"),
    "Deep Compression, 5 bits": ("deep-compression", {"keep": 1.0, "bits": 5}, None),
}
#: Condensa's L-C optimizer: kappa of its first and last penalty (see `condense.LC`), from its published settings.
_KAPPA, _LR_END = (0.13, 3.0), 0.01


def condensas_count(tensors: dict[str, np.ndarray]) -> float:
    """Four bytes a weight before, two bytes a nonzero after: no positions."""
    n = sum(array.size for array in tensors.values())
    return 4 * n / (2 * max(1, sum(int(np.count_nonzero(array)) for array in tensors.values())))


def arrays(module: Any) -> dict[str, np.ndarray]:
    return {name: value.detach().cpu().numpy() for name, value in module.state_dict().items()}


def row(case: Case, name: str, module: Any, n_bytes: int) -> dict[str, Any]:
    """Size and accuracy of one network."""
    before = arrays(case.module)
    test, validation = case.test(module), case.validation(module)
    found = {
        "name": name, "bytes": n_bytes, "ratio": sum(a.nbytes for a in before.values()) / n_bytes,
        "condensas_count": condensas_count(arrays(module)), "test": test, "validation": validation,
        "lost_on_test": case.test(case.module) - test, "lost_on_validation": case.validation(case.module) - validation,
    }  # fmt: skip
    print(found, flush=True)
    return found


def peers(case: Case, keep: float, epochs: int) -> list[dict[str, Any]]:
    """Other methods' files of the one-shot pruned network."""
    recover = condense.Direct(epochs)
    pruned = condense.compress(case.module, case.train_epoch, keep=keep, recover=recover, inputs=case.inputs)
    found = [row(case, "one-shot, lossless", pruned.module, pruned.archive.nbytes)]
    for name, (method, options, bound) in PEERS.items():
        archive = nz.compress(pruned.module.state_dict(), method=method, options=options, bound=bound)
        found.append(row(case, name, rebuilt(case, archive.restored), archive.nbytes))
    return found


def rebuilt(case: Case, tensors: Any) -> Any:
    """A module of these tensors, on the case's device."""
    return condense.fit(make(case.subject.network).to(case.device), tensors).eval()


def condensa(case: Case, keep: float, epochs: int) -> list[dict[str, Any]]:
    """Condensa's package at the same share and epochs; none where it does not install."""
    split, train = case.images, case.train_epoch
    n = train.subject.per_epoch or len(train.split)
    per_step = n // BATCH
    low, high = _KAPPA
    subject = case.subject
    # How far one L step moves weights, its learning rate falling exponentially to a hundredth.
    mean = (1 - _LR_END) / -np.log(_LR_END)
    pull = per_step * subject.lr * mean / (1 - subject.momentum)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        np.savez(place / "weights.npz", **arrays(case.module))  # type: ignore[arg-type]
        np.savez(
            place / "data.npz", train_inputs=split.train.inputs.numpy(), train_targets=split.train.targets.numpy(),
            inputs=split.validation.inputs.numpy(), targets=split.validation.targets.numpy(),
        )  # fmt: skip
        request = {
            "network": subject.network, "weights": str(place / "weights.npz"), "data": str(place / "data.npz"),
            "out": str(place / "out.npz"), "keep": keep, "steps": epochs, "per_step": per_step, "batch": BATCH,
            "lr": subject.lr, "lr_end": subject.lr * _LR_END, "momentum": subject.momentum, "seed": 0,
            "mu": low / pull, "growth": float((high / low) ** (1 / max(epochs - 2, 1))),
        }  # fmt: skip
        (place / "request.json").write_text(json.dumps(request))
        try:
            command = [python_of(NEEDS), "-m", "experiments.claims.condense.condensa_peer", place / "request.json"]
        except NotInstalledError as error:
            print(f"condensa: {error}", file=sys.stderr)
            return []
        done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"condensa: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
        with np.load(place / "out.npz") as found:
            # Its masks leave zeros with signs, which would cost a bit each.
            tensors = {name: found[name] + 0.0 for name in found}
    archive = nz.compress(tensors)
    half = nz.compress({name: array.astype(np.float16) for name, array in tensors.items()})
    restored = {name: array.astype(np.float32) for name, array in half.restored.items()}
    return [
        row(case, "Condensa's package, lossless", rebuilt(case, archive.restored), archive.nbytes),
        row(case, "Condensa's package, float16", rebuilt(case, restored), half.nbytes),
    ]


def measured(network: str, options: argparse.Namespace, commit: str) -> dict[str, Any]:
    """The search on one network, and the others at the share that it found."""
    setting = replace(SETTINGS[network], **TINY) if options.tiny else SETTINGS[network]
    case = case_of(
        network, options.data, per_epoch=setting.per_epoch, n_validation=setting.n_validation, device=options.device,
        tiny=options.tiny,
    )  # fmt: skip
    # Of one commit: what another one measured is not this one's.
    trials = cache_folder() / "condense-trials" / commit
    small = condense.tune(
        case.module, case.train_epoch, evaluate=case.evaluator(setting.confidence), max_loss=setting.max_loss,
        scheme=condense.Prune(), inputs=case.inputs, recover=condense.LC(setting.epochs), samples=setting.samples,
        trials=None if commit.endswith("+") else trials, progress=lambda status: print(status.latest, flush=True),
    )  # fmt: skip
    print(small, flush=True)
    rows = [row(case, "nearzip.condense", small.module, small.archive.nbytes), *peers(case, small.keep, setting.epochs)]
    speed = compare_speed(case.module, condense.sparse(small.module), case.inputs)
    return {
        **asdict(setting), "device": options.device, "keep": small.keep,
        "seconds": round(sum(t.seconds for t in small.trials)), "reference": case.test(case.module),
        "trainings": len(small.trials), "rows": rows, "speed": speed.to_json(),
        "trials": [{"keep": t.keep, "usage": t.usage, "bytes": t.n_bytes} for t in small.trials],
    }  # fmt: skip


def with_condensa(network: str, options: argparse.Namespace, commit: str) -> dict[str, Any]:
    """What was measured before, with Condensa's package at the same share and epochs."""
    one: dict[str, Any] = record.load_from(options.output, "condense_files")["networks"][network]
    case = case_of(network, options.data, per_epoch=one["per_epoch"], n_validation=one["n_validation"])
    others = [row for row in one["rows"] if "Condensa" not in row["name"]]
    rows = [{**row, "commit": commit} for row in condensa(case, one["keep"], one["epochs"])]
    return {**one, "rows": others + rows}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench condense_files", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--data")
    parser.add_argument("--networks", nargs="+", default=list(SMALL), choices=SETTINGS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tiny", action="store_true", help="a few images and epochs, to see that it runs")
    parser.add_argument(
        "--condensa", action="store_true", help="add Condensa's own package at the share that was found"
    )
    parser.add_argument("--output", type=Path, default=record.RESULTS, help="folder of the result")
    options = parser.parse_args(arguments)
    if options.device == "cpu":
        torch.set_num_threads(1)
    commit = record.commit()
    for network in options.networks:
        if options.condensa:
            one = with_condensa(network, options, commit)
        else:
            one = {"commit": commit, **measured(network, options, commit)}
        # Read again: networks may be measured at once.
        known = {**record.load_from(options.output, "condense_files").get("networks", {}), network: one}
        result = {"commit": commit, "networks": known}
        record.save("condense_files", result, ("nearzip", "numpy", "torch"), options.output)
