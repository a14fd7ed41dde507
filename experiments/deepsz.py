"""DeepSZ's Tables 2 to 5 and Figures 2 to 7 on the LeNets trained here, with Deep Compression and Weightless beside.

Shares and error bounds are chosen on 10 000 held-out training images; the test images are looked at once, for the
report. `docs/papers/deepsz.md` is made from the result by `bench papers`.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

import nearzip as nz
from experiments import pruning, record
from experiments.pruning import Judge, Subject, Tensors
from nearzip.budget.assess import assess
from nearzip.budget.knapsack import Option, best_accuracy, smallest
from nearzip.errors import BudgetError
from nearzip.recipes import Hold
from nearzip.stages import Blosc, Chain, Context, Gzip, Lzma, Rans, RawBytes, Sparse, Sz3, Zfp, Zstd

#: What may be lost of the original's accuracy on the test images, the paper's expected loss: a share of 1.
MAX_LOSS = 0.002
#: What the searches may lose on the held-out images: these tell a loss to within 0.08 points (one standard error, with
#: one answer in 150 changed), and a search picks what looks good on them.
BUDGET = 0.001
Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A network, its original, and the judges."""

    subject: Subject
    original: Tensors
    validation: Judge
    test: Judge

    @property
    def names(self) -> list[str]:
        return [tensor for _, tensor in self.subject.layers]

    def fc_bytes(self) -> int:
        return sum(self.original[name].nbytes for name in self.names)


def layer_bytes(archive: nz.Archive) -> dict[str, int]:
    """Bytes of each tensor's block, without the archive's header and index."""
    with nz.open(archive) as reader:
        return {report.spec.name: round(report.n_bytes) for report in reader.tensor_reports()}


def kept(tensors: Tensors, names: list[str]) -> dict[str, float]:
    return {name: float((tensors[name] != 0).mean()) for name in names}


# ---- DeepSZ ----------------------------------------------------------------------------------------------------


def compressed(method: str, tensors: Tensors, bounds: Mapping[str, float]) -> nz.Archive:
    """The layers of `bounds` under their bounds. They are pruned already: all nonzero weights are kept."""
    layers = {name: tensors[name] for name in bounds}
    named = {name: nz.Absolute(bound) for name, bound in bounds.items()}
    return nz.compress(layers, method=method, bound=named, options={"keep": 1.0}, threads=1)


def tuned(case: Case, tensors: Tensors, method: str, max_loss: float) -> Row:
    """Algorithms 1 and 2 on the held-out images, and the choice measured from its bytes; over budget, a tighter one.

    `max_loss` counts from the original; what pruning has lost of it already is taken off.
    """
    begin, before = time.perf_counter(), case.validation(tensors)
    room = max(0.0, max_loss - (case.validation(case.original) - before))
    trials: list[Row] = []

    @functools.cache
    def test(layer: str, bound: float) -> tuple[float, int]:
        archive = compressed(method, tensors, {layer: bound})
        loss = before - case.validation({**tensors, layer: archive.restored[layer]})
        trials.append({"layer": layer, "bound": bound, "loss": loss, "bytes": layer_bytes(archive)[layer]})
        return loss, trials[-1]["bytes"]

    expected = room
    while True:
        choice = choose(case.names, test, room, expected)
        archive = compressed(method, tensors, {name: o.bound for name, o in choice.items()})
        restored = nz.decompress(archive.to_bytes())
        loss = before - case.validation({**tensors, **restored})
        if loss <= room or expected == 0:
            break
        expected = expected / 2 if expected > room / 8 else 0.0
    return {
        "method": method, "seconds": time.perf_counter() - begin, "trials": trials, "room": room,
        "expected_loss": sum(max(0.0, o.loss) for o in choice.values()), "measured_loss": loss,
        "bounds": {name: o.bound for name, o in choice.items()}, "evaluations": len(trials) + 1,
        **measured(case, archive, tensors, restored),
    }  # fmt: skip


def choose(
    names: list[str], test: Callable[[str, float], tuple[float, int]], room: float, expected: float
) -> dict[str, Option]:
    """Algorithms 1 and 2; where no bound loses as little as expected, the assessment begins further down, as the paper
    says that it can."""
    for lowest in (-3, -4, -5, -6):
        starts = [float(f"1e{exponent}") for exponent in range(lowest, 0)]
        try:
            return smallest(assess(names, test, room, starts), expected)
        except BudgetError:
            if lowest == -6:
                raise
    raise AssertionError("unreachable")


def measured(case: Case, archive: nz.Archive, tensors: Tensors, restored: Tensors) -> Row:
    """Sizes and accuracies of a network whose layers an archive holds."""
    sizes = layer_bytes(archive)
    final = {**tensors, **restored}
    fc = sum(sizes[name] for name in case.names)
    return {
        "layers": {name: {"bytes": sizes[name], "ratio": tensors[name].nbytes / sizes[name]} for name in case.names},
        "bytes": fc, "ratio": case.fc_bytes() / fc, "archive_bytes": archive.nbytes,
        "archive_ratio": case.fc_bytes() / archive.nbytes, "validation": case.validation(final),
        "test": case.test(final),
    }  # fmt: skip


def csr_bytes(tensors: Tensors, name: str) -> int:
    """DeepSZ's two arrays before coding: 5 bytes for each weight and padding."""
    flat = tensors[name].reshape(-1)
    values, _ = Sparse(Chain((RawBytes(),)), Chain((Rans(),))).split(flat, Context.alone(flat))[0]
    return 5 * values.size


# ---- the others ------------------------------------------------------------------------------------------------


def retraining(case: Case, images: Any, epochs: int, seconds: list[float]) -> Callable[[Tensors, Hold], Tensors]:
    def retrain(tensors: Tensors, hold: Hold) -> Tensors:
        begin = time.perf_counter()
        rate = case.subject.retraining_rate / 5
        trained = pruning.retrained(case.subject, images, tensors, hold, epochs, rate, 99)
        seconds.append(time.perf_counter() - begin)
        return trained

    return retrain


def deep_compression(case: Case, tensors: Tensors, images: Any, bits: int, epochs: int) -> Row:
    """5 bits a weight and centroids trained, on the network that DeepSZ's figures use: its pruning is shared."""
    seconds: list[float] = []
    begin = time.perf_counter()
    options = {"keep": dict.fromkeys(case.names, 1.0), "bits": bits}
    retrain = retraining(case, images, epochs, seconds) if epochs else None
    archive = nz.compress(tensors, method="deep-compression", options=options, retrain=retrain, threads=1)
    restored = nz.decompress(archive.to_bytes())
    row = measured(case, archive, tensors, restored)
    return {"bits": bits, "epochs": epochs, "seconds": time.perf_counter() - begin, "training": seconds, **row}


def weightless(case: Case, tensors: Tensors, images: Any, clusters: int, bits: int, epochs: int) -> Row:
    """The largest layer in a filter, those behind retrained; they are stored as they are."""
    seconds: list[float] = []
    begin = time.perf_counter()
    largest = max(case.names, key=lambda name: tensors[name].size)
    options = {"keep": {largest: 1.0}, "clusters": clusters, "bits": bits}
    retrain = retraining(case, images, epochs, seconds) if epochs else None
    archive = nz.compress(tensors, method="weightless", options=options, retrain=retrain, threads=1)
    restored = nz.decompress(archive.to_bytes())
    row = measured(case, archive, tensors, restored)
    for name in case.names:
        if name != largest:
            row["layers"][name] = {"bytes": tensors[name].nbytes, "ratio": 1.0}
    fc = sum(layer["bytes"] for layer in row["layers"].values())
    row |= {"bytes": fc, "ratio": case.fc_bytes() / fc}
    zeros = int((tensors[largest] == 0).sum())
    return {
        "clusters": clusters, "bits": bits, "layer": largest, "epochs": epochs, "training": seconds,
        "false_positives": archive.report.false_positives[largest], "zeros": zeros,
        "seconds": time.perf_counter() - begin, **row,
    }  # fmt: skip


# ---- figures ---------------------------------------------------------------------------------------------------


def data_array(tensors: Tensors, name: str) -> np.ndarray:
    flat = tensors[name].reshape(-1)
    return Sparse(Chain((RawBytes(),)), Chain((Rans(),))).split(flat, Context.alone(flat))[0][0]


def index_array(tensors: Tensors, name: str) -> np.ndarray:
    flat = tensors[name].reshape(-1)
    return Sparse(Chain((RawBytes(),)), Chain((Rans(),))).split(flat, Context.alone(flat))[0][1]


def sz_against_zfp(case: Case, tensors: Tensors) -> list[Row]:
    """Figure 2: ratios on the data arrays."""
    rows = []
    for name, bound in itertools.product(case.names, (1e-2, 1e-3, 1e-4)):
        values = data_array(tensors, name)
        context = Context.alone(values)
        sizes = {}
        for stage in (Sz3(bound), Sz3(bound, "INTERP_LORENZO"), Sz3(bound, "NOPRED"), Zfp(bound)):
            key = stage.id + (f" {stage.algorithm}" if isinstance(stage, Sz3) and stage.algorithm != "smaller" else "")
            sizes[key] = len(stage.encode(values, context).data)
        rows.append({"layer": name, "bound": bound, "ratios": {k: values.nbytes / s for k, s in sizes.items()}})
    return rows


def index_coders(case: Case, tensors: Tensors) -> list[Row]:
    """Figure 4: ratios on the index arrays; and nearzip's coder on gaps without padding, bytes against bytes."""
    rows = []
    for name in case.names:
        gaps = index_array(tensors, name)
        context = Context(gaps.dtype, (gaps.size,))
        coders = {"gzip": Gzip(), "zstd": Zstd(), "blosc": Blosc(typesize=1), "lzma": Lzma()}
        sizes = {key: len(stage.encode(gaps.tobytes(), context).data) for key, stage in coders.items()}
        flat = tensors[name].reshape(-1)
        unpadded = Sparse(Chain((RawBytes(),)), Chain((Rans(),)), gap_bits=32, fill=False)
        symbols = unpadded.split(flat, Context.alone(flat))[0][1]
        sizes["rans"] = len(Rans().encode(symbols, Context(symbols.dtype, (symbols.size,))).data)
        rows.append({"layer": name, "ratios": {key: gaps.nbytes / size for key, size in sizes.items()}})
    return rows


def linearity(case: Case, tensors: Tensors, trials: list[Row], n: int = 40) -> list[Row]:
    """Figure 6: the sum of the layers' own losses against the loss of all together, at random bounds."""
    rng = np.random.default_rng(0)
    by_layer: dict[str, list[Row]] = {}
    for trial in trials:
        by_layer.setdefault(trial["layer"], []).append(trial)
    before, rows = case.validation(tensors), []
    for _ in range(n):
        picked = [options[rng.integers(len(options))] for options in by_layer.values()]
        restored = compressed("deepsz", tensors, {t["layer"]: t["bound"] for t in picked}).restored
        actual = before - case.validation({**tensors, **restored})
        rows.append({"expected": sum(t["loss"] for t in picked), "actual": actual})
    return rows


def decode_parts(archive: nz.Archive, rounds: int = 15) -> dict[str, float]:
    """Median milliseconds of DeepSZ's three parts over all layers: gaps, values, and the matrix."""
    parts: dict[str, list[float]] = {"gaps": [], "values": [], "matrix": [], "whole": []}
    with nz.open(archive, threads=1) as reader:
        for _ in range(rounds):
            row = reader.decode_times()
            for key in ("gaps", "values", "matrix"):
                parts[key].append(1000 * sum(getattr(times, key) for times in row.values()))
            begin = time.perf_counter()
            for name in reader:
                reader[name]
            parts["whole"].append(1000 * (time.perf_counter() - begin))
    return {key: float(np.median(values)) for key, values in parts.items()}


def decode_seconds(archive: nz.Archive, name: str, rounds: int = 9) -> float:
    """Median milliseconds to decode one layer."""
    times = []
    with nz.open(archive, threads=1) as reader:
        for _ in range(rounds):
            begin = time.perf_counter()
            reader[name]
            times.append(1000 * (time.perf_counter() - begin))
    return float(np.median(times))


# ---- everything ------------------------------------------------------------------------------------------------


def smallest_within_budget(result: Row) -> str:
    """The pruning step whose archive is the smallest of those that keep the budget on the held-out images."""
    reference, steps = result["original"]["validation"], result["steps"]
    fine = [name for name, step in steps.items() if reference - step["deepsz"]["validation"] <= BUDGET + 1e-9]
    return min(fine or steps, key=lambda name: steps[name]["deepsz"]["bytes"])


def step_figures(case: Case, step: pruning.Trained, name: str) -> Row:
    """One pruning step through both methods; with the paper's shares through DeepSZ's other modes as well."""
    print(f"{case.subject.network}, {name}", file=sys.stderr, flush=True)
    tensors = step.tensors
    row = {
        "keep": kept(tensors, case.names), "csr_bytes": {n: csr_bytes(tensors, n) for n in case.names},
        "retraining_seconds": step.seconds, "validation": case.validation(tensors), "test": case.test(tensors),
        "deepsz": tuned(case, tensors, "deepsz", BUDGET),
        "deepsz-nearzip": tuned(case, tensors, "deepsz-nearzip", BUDGET),
    }  # fmt: skip
    if name == "paper":
        row["zero_loss"] = tuned(case, tensors, "deepsz", 0.0)
        row["no_margin"] = tuned(case, tensors, "deepsz", MAX_LOSS)
    return row


def network(subject: Subject, images: Any) -> Row:
    """All figures of one network."""
    original = pruning.original(subject, images)
    case = Case(subject, original.tensors, Judge(subject, images.validation), Judge(subject, images.test))
    steps = pruning.pruned(subject, images)
    result: Row = {
        "network": subject.network, "layers": dict(subject.layers), "fc_bytes": case.fc_bytes(),
        "fc_layers": {name: case.original[name].nbytes for name in case.names},
        "original": {"validation": case.validation(original.tensors), "test": case.test(original.tensors)},
        "training_seconds": original.seconds,
        "steps": {name: step_figures(case, step, name) for name, step in steps.items()},
    }  # fmt: skip
    return result | {"chosen": smallest_within_budget(result)} | others(case, images, steps, result)


def others(case: Case, images: Any, steps: Mapping[str, pruning.Trained], result: Row) -> Row:
    """What Tables 4 and 5 and the figures need, on the pruned network with the paper's shares."""
    tensors, deepsz = steps["paper"].tensors, result["steps"]["paper"]["deepsz"]
    bits = 8 * sum(deepsz["layers"][n]["bytes"] for n in case.names)
    weights = sum(int((tensors[n] != 0).sum()) for n in case.names)
    gaps = sum(len(Zstd().encode(index_array(tensors, n).tobytes()).data) for n in case.names)
    value_bits = max(1, round((bits - 8 * gaps) / weights))
    archive = compressed("deepsz", tensors, deepsz["bounds"])
    ours = compressed("deepsz-nearzip", tensors, result["steps"]["paper"]["deepsz-nearzip"]["bounds"])
    options = options_of(deepsz)
    least = sum(min(o.n_bytes for o in layer) for layer in options.values())
    wanted = min(60, int(case.fc_bytes() / least))
    ratio_mode = best_accuracy(options, int(case.fc_bytes() / wanted))
    largest = max(case.names, key=lambda name: tensors[name].size)
    dc_archive = nz.compress(
        {n: tensors[n] for n in case.names}, method="deep-compression", options={"keep": 1.0, "bits": 5}, threads=1
    )
    filtered = nz.compress({largest: tensors[largest]}, method="weightless", options={"keep": 1.0}, threads=1)
    return {
        "deep_compression": deep_compression(case, tensors, images, 5, 2),
        "deep_compression_at_our_bits": deep_compression(case, tensors, images, value_bits, 0),
        "bits_per_weight": (bits - 8 * gaps) / weights,
        "weightless": [
            weightless(case, tensors, images, clusters, slot_bits, 2) for clusters, slot_bits in ((16, 9), (8, 11))
        ],
        "weightless_without_retraining": weightless(case, tensors, images, 16, 9, 0),
        "expected_ratio": {
            "wanted": wanted, "bounds": {n: o.bound for n, o in ratio_mode.items()},
            **measured(case, a := compressed("deepsz", tensors, {n: o.bound for n, o in ratio_mode.items()}), tensors,
                       nz.decompress(a.to_bytes())),
        },
        "sz_against_zfp": sz_against_zfp(case, tensors), "index_coders": index_coders(case, tensors),
        "linearity": linearity(case, tensors, deepsz["trials"]),
        "decode_ms": {
            "deepsz": decode_parts(archive), "deepsz-nearzip": decode_parts(ours),
            "deep-compression": decode_parts(dc_archive),
            "weightless": {"whole": decode_seconds(filtered, largest), "layer": largest},
            "forward": forward_ms(case, tensors),
        },
    }  # fmt: skip


def options_of(tuned_row: Row) -> dict[str, list[Option]]:
    found: dict[str, list[Option]] = {}
    for t in tuned_row["trials"]:
        found.setdefault(t["layer"], []).append(Option(t["bound"], t["loss"], t["bytes"]))
    return found


def forward_ms(case: Case, tensors: Tensors, rounds: int = 9) -> float:
    """Median milliseconds of a forward pass of 50 images."""
    import torch

    module, images = pruning.load(case.subject, tensors), torch.zeros(50, 1, 28, 28)
    times = []
    with torch.no_grad():
        for _ in range(rounds + 1):
            begin = time.perf_counter()
            module(images)
            times.append(1000 * (time.perf_counter() - begin))
    return float(np.median(times[1:]))


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench deepsz", description=__doc__)
    parser.add_argument("--data", help="Folder of the data sets; default NEARZIP_DATA.")
    parser.add_argument("--networks", nargs="+", choices=list(pruning.SUBJECTS), default=list(pruning.SUBJECTS))
    parser.add_argument("--train-only", action="store_true", help="Fill the cache with pruned networks and stop.")
    options = parser.parse_args(arguments)
    images = pruning.dataset(options.data)
    if options.train_only:
        for name in options.networks:
            pruning.pruned(pruning.SUBJECTS[name], images)
        return
    for name in options.networks:
        found = _measured_before() | {name: {**network(pruning.SUBJECTS[name], images), "commit": record.commit()}}
        rows = [found[each] for each in pruning.SUBJECTS if each in found]
        record.save(
            "deepsz", {"max_loss": MAX_LOSS, "budget": BUDGET, "n_validation": pruning.N_VALIDATION, "networks": rows},
            ("nearzip", "numpy", "torch", "pysz", "zfpy", "blosc2", "zstandard"),
        )  # fmt: skip


def _measured_before() -> dict[str, Row]:
    path = record.RESULTS / "deepsz.json"
    rows: list[Row] = json.loads(path.read_text())["networks"] if path.is_file() else []
    return {row["network"]: row for row in rows}
