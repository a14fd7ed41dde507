"""What DeepSZ's paper says without a table: SZ on pruned matrices (section 3.2), accuracy over bounds from 1e-4 to 1e-1
layer by layer (Figure 3), the expected-ratio mode at several ratios (section 3.4), Figure 7 with everything inside the
clock, and Table 1's sizes and times. On one network, pruned by the rule of `seeds.py`; accuracies on the held-out
images."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

import nearzip as nz
from experiments.lab import record
from experiments.papers.deepsz import others, pruning
from experiments.papers.deepsz.case import Case, Row, case_of, compressed, measured, two_arrays
from experiments.papers.deepsz.pruning import Tensors
from experiments.papers.deepsz.rule import bounds_of, tuned
from experiments.papers.deepsz.seeds import pruned
from nearzip.errors import BudgetError
from nearzip.stages import Zstd

#: Three to the decade, from where nothing is lost to where nothing is left.
BOUNDS = tuple(float(f"{bound:.2g}") for bound in np.geomspace(1e-4, 1e-1, 10))
RATIOS = (40, 50, 60, 70, 80, 100)
PARTS = ("matrices", "curve", "expected_ratios", "seconds", "architecture")


PREDICTORS, NONE = "INTERP_LORENZO", "NOPRED"


def sz(values: np.ndarray, bound: float, algorithm: str) -> tuple[int, np.ndarray]:
    """SZ3's bytes, and what comes back."""
    from pysz import sz, szAlgorithm, szConfig, szErrorBoundMode

    config = szConfig(values.shape)
    config.errorBoundMode, config.absErrorBound = szErrorBoundMode.ABS, bound
    config.cmprAlgo = getattr(szAlgorithm, algorithm)
    packed, _ = sz.compress(np.ascontiguousarray(values), config)
    return packed.nbytes, sz.decompress(packed.copy(), np.float32, values.shape)[0].reshape(values.shape)


def matrices(case: Case, tensors: Tensors) -> list[Row]:
    """All layers by SZ at one bound: as pruned matrices with its predictors and without, and as values and gaps."""
    gaps = {name: len(Zstd().encode(two_arrays(tensors, name)[1].tobytes()).data) for name in case.names}
    rows = []
    for bound in BOUNDS:
        row: Row = {"bound": bound}
        for label, algorithm in (("predicted", PREDICTORS), ("matrix", NONE)):
            found = {name: sz(tensors[name], bound, algorithm) for name in case.names}
            restored = {name: values for name, (_, values) in found.items()}
            row[f"{label}_ratio"] = case.fc_bytes() / sum(n_bytes for n_bytes, _ in found.values())
            row[f"{label}_accuracy"] = case.validation({**tensors, **restored})
            row[f"{label}_zeros"] = _zeros_lost(tensors, restored)
        values = {name: tensors[name][tensors[name] != 0] for name in case.names}
        found = {name: sz(values[name], bound, NONE) for name in case.names}
        row["arrays_ratio"] = case.fc_bytes() / sum(found[name][0] + gaps[name] for name in case.names)
        sparse = {name: tensors[name].copy() for name in case.names}
        for name, array in sparse.items():
            array[array != 0] = found[name][1]
        row["arrays_accuracy"] = case.validation({**tensors, **sparse})
        rows.append(row)
    return rows


def _zeros_lost(tensors: Tensors, restored: Tensors) -> float:
    """Share of the zeros that come back as something else."""
    counts = [
        (int((tensors[name] == 0).sum()), int(((tensors[name] == 0) & (w != 0)).sum())) for name, w in restored.items()
    ]
    return sum(lost for _, lost in counts) / sum(n for n, _ in counts)


def curve(case: Case, tensors: Tensors) -> dict[str, list[float]]:
    """Accuracy with one layer compressed at each of `BOUNDS`."""

    def score(name: str, bound: float) -> float:
        return case.validation({**tensors, **compressed("deepsz", tensors, {name: bound}).restored})

    return {name: [score(name, bound) for bound in BOUNDS] for name in case.names}


def expected_ratios(case: Case, tensors: Tensors) -> list[Row]:
    """The best accuracy in an archive of at most so many bytes."""
    rows = []
    for ratio in RATIOS:
        row: Row = {"wanted": ratio}
        try:
            plan = nz.tune(
                case.tail(tensors), method="deepsz", strategy="deepsz", options={"keep": 1.0},
                evaluate=lambda found: case.validation({**tensors, **found}), max_bytes=case.fc_bytes() // ratio,
            )  # fmt: skip
        except BudgetError as error:
            row["nothing"] = str(error)
        else:
            archive = nz.compress(case.tail(tensors), plan=plan, threads=1)
            row |= {"bounds": bounds_of(plan.chosen.codings), **measured(case, archive, tensors)}
        rows.append(row)
        print(row, file=sys.stderr, flush=True)
    return rows


def clock(case: Case, images: Any, seconds_pruning: float, tensors: Tensors) -> dict[str, dict[str, float]]:
    """Processor seconds of every step of each method: pruning with its retraining, then what is its own."""
    found: dict[str, dict[str, float]] = {}
    for method in ("deepsz", "deepsz-nearzip"):
        begin = time.process_time()
        tuned(case, tensors, method)
        found[method] = {"pruning": seconds_pruning, "search and compression": time.process_time() - begin}
    for name, work in (
        ("deep-compression", lambda: others.shared(case, tensors, images, 5, others.EPOCHS)),
        ("weightless", lambda: others.filtered(case, tensors, images, 16, 9, others.EPOCHS)),
    ):
        begin = time.process_time()
        work()
        found[name] = {"pruning": seconds_pruning, "retraining and compression": time.process_time() - begin}
    return found


def _milliseconds(work: Callable[[], object]) -> float:
    """Of one processor, the median; the first round is left out."""
    return 1000 * statistics.median([record.timed(work)[1] for _ in range(50)][1:])


def architecture(case: Case) -> Row:
    """Table 1: layers, sizes in bytes, and processor milliseconds of 50 images through both parts."""
    module, images = pruning.load(case.subject, case.original), torch.zeros(50, 1, 28, 28)
    front, fully_connected = module[: case.subject.tail], module[case.subject.tail :]
    sizes = {name: array.nbytes for name, array in case.original.items()}
    convolutions = sum(isinstance(layer, torch.nn.Conv2d) for layer in module)
    with torch.no_grad():
        features = front(images)
        times = {
            "convolutions_ms": _milliseconds(lambda: front(images)) if convolutions else 0.0,
            "fully_connected_ms": _milliseconds(lambda: fully_connected(features)),
        }
    layers = {paper: list(case.original[name].shape) for paper, name in case.subject.layers}
    own = sum(sizes[name] for name in case.tail(case.original))
    return {"convolutions": convolutions, "layers": layers, "bytes": sum(sizes.values()), "fc_bytes": own, **times}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench deepsz_more", description=__doc__)
    parser.add_argument("--data", help="folder of the data sets (or NEARZIP_DATA)")
    parser.add_argument("--networks", nargs="+", choices=list(pruning.SUBJECTS), default=list(pruning.SUBJECTS))
    parser.add_argument("--seed", type=int, default=10)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="the others keep their figures")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    images = pruning.dataset(options.data)
    found: dict[str, Any] = record.load("deepsz_more").get("networks", {})
    for network in options.networks:
        case = case_of(replace(pruning.SUBJECTS[network], seed=options.seed), images)
        begin = time.process_time()
        tensors = pruned(case, images)
        seconds = time.process_time() - begin
        makers: dict[str, Callable[[], Any]] = {
            "matrices": lambda: matrices(case, tensors), "curve": lambda: curve(case, tensors),  # noqa: B023
            "expected_ratios": lambda: expected_ratios(case, tensors),  # noqa: B023
            "seconds": lambda: clock(case, images, seconds, tensors),  # noqa: B023
            "architecture": lambda: architecture(case),  # noqa: B023
        }  # fmt: skip
        before = found.get(network, {})
        commits = {**before.get("commits", {}), **dict.fromkeys(options.parts, record.commit())}
        found[network] = {
            **before, "seed": options.seed, "original": case.validation(case.original),
            "pruned": case.validation(tensors), "layers": dict(case.subject.layers), "bounds": BOUNDS,
            **{part: makers[part]() for part in options.parts}, "commits": commits,
        }  # fmt: skip
        record.save("deepsz_more", {"networks": found}, ("nearzip", "numpy", "torch", "pysz"))
