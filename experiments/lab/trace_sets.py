"""Sets of traces, kept outside git and rebuilt by one command: `python -m experiments traces --set quick`.

The cache is `NEARZIP_TRACES` or ~/.cache/nearzip/traces, a folder for each set and network in it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from experiments.lab.data import DataError, Dataset, cache_folder, load
from experiments.lab.networks import data_of
from experiments.lab.training import Settings, preset, train

#: quick: under 10 minutes on two cores; chains: eight or twelve versions each, under 20; datasets: under 15;
#: correctness: under 10; full: under 120.
SETS: dict[str, tuple[Settings, ...]] = {
    "quick": (
        preset("lenet-300-100", epochs=4),
        preset("lenet-5", epochs=2),
        preset("transformer", steps=200, every=50),
        preset("vgg-small", epochs=3, limit=15_000),
        preset("resnet-20", epochs=2, limit=6_400),
    ),
    "chains": (
        preset("lenet-300-100", epochs=12),
        preset("vgg-small", epochs=12, limit=15_000),
        preset("transformer", steps=240, every=20),
        preset("lenet-5", epochs=8),
        preset("resnet-20", epochs=8, limit=6_400),
    ),
    "full": (
        preset("lenet-300-100"),
        preset("lenet-5"),
        preset("vgg-small"),
        preset("resnet-20", epochs=10),
        preset("mobilenet-small", epochs=8),
        preset("transformer", state=True),
    ),
    "datasets": (
        *(
            preset(name, epochs=8, rule="all", schedule="cosine", lr=0.05, weight_decay=5e-4)
            for name in ("strided-small", "strided-plain")
        ),
        preset("mobilenet-small", epochs=6),
    ),
    "correctness": (
        preset("resnet-20", epochs=4, limit=20_000),
        preset(
            "strided-small", epochs=5, limit=15_000, rule="all", schedule="cosine", lr=0.05, weight_decay=5e-4,
        ),
    ),
}  # fmt: skip


def traces_folder() -> Path:
    """Folder of the sets."""
    return Path(os.environ.get("NEARZIP_TRACES") or cache_folder() / "traces")


def read(folder: Path) -> dict[str, Any] | None:
    """The content of trace.json; None if there is none."""
    try:
        document: dict[str, Any] = json.loads((folder / "trace.json").read_text())
    except (OSError, ValueError):
        return None
    return document


def version_files(folder: Path) -> list[Path]:
    """The saved versions, oldest first."""
    return [folder / row["file"] for row in (read(folder) or {"versions": []})["versions"]]


def is_complete(folder: Path, settings: Settings) -> bool:
    """Whether a finished trace with exactly these settings exists, with all its files."""
    document = read(folder)
    if document is None or not document["complete"] or document["settings"] != asdict(settings):
        return False
    return all(path.is_file() for path in version_files(folder))


def clear(folder: Path) -> None:
    """Remove a trace's own files."""
    for path in [*folder.glob("*.safetensors"), *folder.glob("state/*.safetensors"), *folder.glob("trace.json*")]:
        path.unlink()


def build(settings: Settings, folder: Path, dataset: Callable[[], Dataset]) -> bool:
    """Train what is not there yet; False if it was."""
    if is_complete(folder, settings):
        return False
    clear(folder)
    train(settings, folder, dataset())
    return True


def build_set(name: str, root: Path, data: str | None, only: Sequence[str] = (), **changes: Any) -> dict[str, str]:
    """Build the traces of a set, or of some of its networks, one after the other; what became of each."""
    became = {}
    for settings in (replace(s, **changes) for s in SETS[name] if not only or s.network in only):
        begin = time.perf_counter()

        def dataset(settings: Settings = settings) -> Dataset:
            return load(data_of(settings.network), data, settings.n_validation)

        built = build(settings, root / name / settings.network, dataset)
        became[settings.network] = f"{time.perf_counter() - begin:.0f} s" if built else "was there"
        print(f"{settings.network}: {became[settings.network]}", file=sys.stderr)
    return became


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench traces", description=__doc__)
    parser.add_argument("--set", choices=SETS, default="quick")
    parser.add_argument("--only", nargs="+", default=[], metavar="NETWORK", help="these networks of the set")
    parser.add_argument("--data", help="folder with the data sets (or NEARZIP_DATA); fetched if not given")
    parser.add_argument("--output", type=Path, default=traces_folder(), help="the cache (or NEARZIP_TRACES)")
    parser.add_argument("--device", help="cpu, cuda, ...")
    parser.add_argument("--epochs", type=int, help="instead of the set's own")
    options = parser.parse_args(arguments)
    given = {"device": options.device, "epochs": options.epochs}
    changes = {name: value for name, value in given.items() if value is not None}
    begin = time.perf_counter()
    try:
        build_set(options.set, options.output, options.data, options.only, **changes)
    except DataError as error:
        raise SystemExit(f"traces: {error}") from None
    print(f"{options.set}: {time.perf_counter() - begin:.0f} s, in {options.output / options.set}", file=sys.stderr)
