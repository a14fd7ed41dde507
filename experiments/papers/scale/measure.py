"""The papers' tables that need whole trainings, at the papers' size or smaller: one call trains, codes and evaluates.

    scripts/bench papers --device cuda --table qd-5             the papers' networks, 200 epochs
    scripts/bench papers --scale small --table delta-3          networks that a processor trains in minutes
    scripts/bench papers --tiny                                 the same code on a few images, all tables

Everything is kept in a folder as it is found, and a call that was interrupted goes on there. The result is
`results/papers_SCALE.json`; `bench docs` makes its rows of docs/papers/trainings.md.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from experiments.lab import data, record, trace_sets
from experiments.lab.networks import NETWORKS, data_of
from experiments.papers.scale.chains import CHOSEN, CODINGS, SIXTEEN, Coding, chosen, coded, lossless
from experiments.papers.scale.sizes import operations, ranges
from experiments.papers.scale.training import FROM_RESTORED, PLAIN, Training, run, scorer

Row = dict[str, Any]


@dataclass(frozen=True)
class Scale:
    """Networks of each paper, and how they are trained."""

    qd: tuple[str, ...]
    delta: tuple[str, ...]
    qd_training: Training
    delta_training: Training


_QD, _DELTA = Training("", weight_decay=5e-4), Training("", weight_decay=1e-4, saves="improved")


def _smaller(lr: float, **changes: Any) -> dict[str, Any]:
    part: dict[str, Any] = {"lr": lr, "batch": 64, **changes}
    return {"qd_training": replace(_QD, **part), "delta_training": replace(_DELTA, **part)}


SCALES = {
    "paper": Scale(
        ("vgg-16", "resnet-18", "googlenet", "mobilenet-v2", "shufflenet-v2", "shufflenet-v2-2x"),
        ("vgg-16", "resnet-101", "googlenet", "efficientnet-b0", "mobilenet-v2", "shufflenet-v2"),
        _QD, _DELTA,
    ),
    "small": Scale(
        ("lenet-300-100", "lenet-5", "strided-small", "resnet-20"), ("lenet-300-100", "lenet-5", "strided-small"),
        **_smaller(0.02, epochs=8, images=2500, test_images=2000),
    ),
    "tiny": Scale(
        ("lenet-300-100", "strided-small"), ("lenet-300-100", "strided-small"),
        **_smaller(0.05, epochs=2, images=256, test_images=200),
    ),
}  # fmt: skip

#: QD-Compressor's tables of accuracy: the ways of training.
ACCURACIES = {
    "qd-3": (PLAIN, "4 bits, M", "8 bits, M"),
    "qd-6": (PLAIN, "8 bits, M*", "8 bits, M"),  # and Figure 11
}
#: Its tables of sizes: the codings.
SIZES: dict[str, dict[str, Coding]] = {
    "qd-4": {"QD, 8 bits": CODINGS["QD, 8 bits"], **SIXTEEN},
    "qd-5": CODINGS,  # and Figure 12
}
#: Delta-DNN's, all of one chain in which Algorithm 1 chooses (Tables 1 to 3 and Figure 8), and Figure 9.
CHOSEN_TABLES = ("delta-1", "delta-2", "delta-3", "delta-8")
TABLES = ("qd-2", "qd-figure-1", *ACCURACIES, *SIZES, *CHOSEN_TABLES, "delta-9")


class Bench:
    """One scale on one device; `save` is called after every part."""

    def __init__(self, options: argparse.Namespace, save: Callable[[Row], object], found: Row):
        self.scale: Scale = SCALES[options.scale]
        self.folder: Path = options.folder / options.scale
        self.device, self.data = torch.device(options.device), options.data
        self.changes = {"epochs": options.epochs} if options.epochs else {}
        self.deadline = time.perf_counter() + options.seconds
        self.found, self._save = found, save
        self._loaded: dict[str, data.Dataset] = {}

    def table(self, name: str, networks: list[str]) -> None:
        """All parts of a table; raises TimeoutError once time is over."""
        if name == "qd-2":
            self.found["networks"] = {network: operations(network) for network in NETWORKS}
            self._save(self.found)
            return
        of_qd = name.startswith("qd")
        for network in (n for n in (self.scale.qd if of_qd else self.scale.delta) if not networks or n in networks):
            row = self.found.setdefault("qd" if of_qd else "delta", {}).setdefault(network, {})
            for part in self._parts(name, row, network):
                if time.perf_counter() > self.deadline:
                    raise TimeoutError
                part()
                self._save(self.found)

    def _parts(self, name: str, row: Row, network: str) -> list[Callable[[], None]]:
        if name in ACCURACIES:
            return [partial(self.accuracy, row, network, way) for way in ACCURACIES[name]]
        if name in SIZES:
            return [partial(self.sizes, row, network, label, coding) for label, coding in SIZES[name].items()]
        if name == "qd-figure-1":
            return [partial(self.ranges, row, network)]
        if name in CHOSEN_TABLES:
            return [partial(self.choices, row, network, label) for label in CHOSEN]
        return [partial(self.from_restored, row, network)]

    def trained(self, training: Training) -> tuple[list[Row], list[Path], Any]:
        """Rows of all epochs, saved versions, and what scores them."""
        folder, dataset = self.folder / training.label, self._dataset(training)
        rows = run(training, dataset, folder, self.device)
        test = replace(dataset, test=dataset.test[: training.test_images]).to(self.device)
        versions = [folder / row["file"] for row in rows if "file" in row]
        return rows, versions, scorer(training.network, test)

    def _dataset(self, training: Training) -> data.Dataset:
        name = data_of(training.network)
        if name not in self._loaded:
            self._loaded[name] = data.load(name, self.data)
        return self._loaded[name]

    def qd_training(self, network: str, way: str) -> Training:
        return replace(self.scale.qd_training, network=network, way=way, **self.changes)

    def delta_training(self, network: str, way: str = PLAIN) -> Training:
        return replace(self.scale.delta_training, network=network, way=way, **self.changes)

    def accuracy(self, row: Row, network: str, way: str) -> None:
        """Accuracy after each epoch, of what would be restored."""
        rows, _, _ = self.trained(self.qd_training(network, way))
        row.setdefault("accuracy", {})[way] = [one["accuracy"] for one in rows]

    def ranges(self, row: Row, network: str) -> None:
        """Of the last epoch, without compression."""
        _, versions, _ = self.trained(self.qd_training(network, PLAIN))
        row["ranges"] = ranges(versions[-1])

    def sizes(self, row: Row, network: str, label: str, coding: Coding) -> None:
        """A chain of all epochs."""
        training = self.qd_training(network, coding.way)
        rows, versions, score = self.trained(training)
        chain = coded(versions, self.folder / training.label / "chains", label, coding, score)
        row.setdefault("accuracy", {})[coding.way] = [one["accuracy"] for one in rows]
        row.setdefault("chains", {})[label] = chain

    def choices(self, row: Row, network: str, label: str) -> None:
        """A chain of what Delta-DNN's rule saves, by Algorithm 1."""
        training = self.delta_training(network)
        rows, versions, score = self.trained(training)
        row["epochs"] = [{key: one[key] for key in ("epoch", "accuracy", "file") if key in one} for one in rows]
        row.setdefault("chains", {})[label] = chosen(versions, self.folder / training.label / "chains", label, score)
        row["lossless"] = row.get("lossless") or lossless(versions)

    def from_restored(self, row: Row, network: str) -> None:
        """A second training, which goes on from what is restored of each saved version."""
        for way in (PLAIN, FROM_RESTORED):
            rows, _, _ = self.trained(self.delta_training(network, way))
            row.setdefault("trainings", {})[way] = [
                {key: one[key] for key in ("epoch", "accuracy", "delta_dnn") if key in one} for one in rows
            ]


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench papers", description=__doc__, formatter_class=_Raw)
    parser.add_argument("--table", nargs="+", choices=TABLES, default=list(TABLES), help="default: all")
    parser.add_argument("--scale", choices=SCALES, default="paper")
    parser.add_argument("--tiny", action="store_const", const="tiny", dest="scale", help="the same as --scale tiny")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--networks", nargs="+", default=[], help="only these of the scale's networks")
    parser.add_argument("--epochs", type=int, help="in place of the scale's")
    parser.add_argument("--data", help="folder with the data sets (or NEARZIP_DATA)")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin nothing then; the next call goes on")
    parser.add_argument("--folder", type=Path, default=trace_sets.traces_folder() / "papers", help="what is kept")
    parser.add_argument("--output", type=Path, help="where the result goes; default experiments/results")
    options = parser.parse_args(arguments)
    if options.device == "cpu":
        torch.set_num_threads(1)
    name = f"papers_{options.scale}"
    results = options.output or record.RESULTS
    found = record.load_from(results, name).get("tables", {}) if results.is_dir() else {}

    def save(tables: Row) -> None:
        scale = {key: asdict(getattr(SCALES[options.scale], key)) for key in ("qd_training", "delta_training")}
        said = {"device": _device(options.device), "epochs": options.epochs, **scale, "tables": tables}
        record.save(name, said, ("nearzip", "numpy", "torch", "pysz"), results)

    bench = Bench(options, save, found)
    try:
        with _alone(options.folder / options.scale):
            for table in options.table:
                bench.table(table, options.networks)
    except TimeoutError:
        print("papers: time is over; call it again to go on", file=sys.stderr)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Two processes in one folder would go on from each other's restored networks."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit(
                f"papers: another process works in {folder}; wait for it, or give another --folder"
            ) from None
        yield


def _device(name: str) -> str:
    return torch.cuda.get_device_name(name) if name.startswith("cuda") else name


class _Raw(argparse.RawDescriptionHelpFormatter):
    """The description as it is written."""
