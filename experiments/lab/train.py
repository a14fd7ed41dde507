"""Train one network and write its trace: `python -m experiments train vgg-small --epochs 3 --data DIR`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from experiments.lab.data import DataError, load
from experiments.lab.networks import NETWORKS, data_of
from experiments.lab.schedules import RULES, SCHEDULES
from experiments.lab.trace_sets import build, is_complete, read, traces_folder
from experiments.lab.training import Settings, preset


def _every(text: str) -> int:
    return 0 if text == "epoch" else int(text)


def _parser() -> argparse.ArgumentParser:
    """Options named like the fields of `Settings` replace the network's usual ones."""
    parser = argparse.ArgumentParser(
        prog="bench train", description=__doc__, argument_default=argparse.SUPPRESS,
        epilog="What is not given is the network's own preset (experiments/lab/training.py).",
    )  # fmt: skip
    parser.add_argument("network", choices=NETWORKS)
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=int)
    length.add_argument("--steps", type=int)
    parser.add_argument("--every", type=_every, metavar="epoch|N", help="evaluate and save once an epoch or N steps")
    parser.add_argument("--saving-rule", dest="rule", choices=RULES, help="which of these are saved")
    parser.add_argument("--optimizer", choices=["sgd", "adamw"])
    parser.add_argument("--schedule", choices=SCHEDULES)
    for name in ("lr", "momentum", "weight-decay"):
        parser.add_argument(f"--{name}", type=float)
    for name in ("batch", "seed"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--device", help="cpu, cuda, ...")
    parser.add_argument("--state", action="store_true", help="also write the optimizer's state")
    parser.add_argument("--limit", type=int, help="train on the first so many samples only")
    parser.add_argument(
        "--validation", dest="n_validation", type=int, help="training images held out, 5000 if not given"
    )
    parser.add_argument(
        "--data", default=None, help="folder with the data sets (or NEARZIP_DATA); fetched if not given"
    )
    parser.add_argument("--output", type=Path, default=None, help="folder of the trace; in the cache if not given")
    parser.add_argument("--force", action="store_true", default=False, help="replace another trace in that folder")
    return parser


def _settings(given: dict[str, Any]) -> Settings:
    if "epochs" in given:
        given = {"steps": None, **given}
    return preset(**given)


def main(arguments: list[str]) -> None:
    given = vars(_parser().parse_args(arguments))
    data, output, force = given.pop("data"), given.pop("output"), given.pop("force")
    settings = _settings(given)
    folder = output or traces_folder() / "single" / settings.network
    if read(folder) is not None and not force and not is_complete(folder, settings):
        raise SystemExit(f"train: {folder} holds another trace; give another --output, or --force to replace it")
    try:
        built = build(settings, folder, lambda: load(data_of(settings.network), data, settings.n_validation))
    except DataError as error:
        raise SystemExit(f"train: {error}") from None
    print(f"{folder}: {'written' if built else 'was there with the same settings'}")
