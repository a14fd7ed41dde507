"""Searches under one accuracy budget: ours beside Delta-DNN's and DeepSZ's, on five trained networks.

All searches vary the same method (`nearzip`) on the same network, evaluator and budget; ours once more with calibrated
rounding, on batches of training data. Every chosen plan is applied again from its file, restored from the bytes and
evaluated again, also on data that the search did not see.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

import nearzip as nz
from experiments.lab import data, evaluate, record, traces
from experiments.lab.networks import NETWORKS, data_of
from experiments.lab.traces import Tensors
from nearzip import calibrate
from nearzip.errors import BudgetError
from nearzip.torch import evaluator
from nearzip.torch.evaluator import Evaluator

#: Samples that the search sees, and those that only the report sees. Text: windows of 128 characters. Of fewer images,
#: 0.2 points of accuracy would be one or two, and which search is ahead a matter of luck; there are no more digits.
SAMPLES = {
    "digits": (500, 500),
    "lenet-300-100": (5000, 5000),
    "lenet-5": (5000, 5000),
    "vgg-small": (5000, 5000),
    "transformer": (40, 80),
}
#: Network to its pair of versions; the digits network is trained here.
NETWORKS_TUNED = {
    "digits": None,
    "lenet-300-100": "quick lenet-300-100",
    "lenet-5": "quick lenet-5",
    "vgg-small": "vgg-small late",
    "transformer": "transformer late",
}
BUDGETS = {"top1": 0.002, "kl": 1e-3}
_TIME = 128
_WHAT = ("alone", "update")


@dataclass(frozen=True)
class Case:
    """One search to make: a network, alone or as an update, with an evaluator for the search and one for unseen data.

    `module` and `batches`, of its training data and without targets, are what calibration takes.
    """

    network: str
    module: nn.Module
    batches: list[Any]
    new: Tensors
    base: Tensors | None
    metric: str
    max_loss: float
    evaluate: Evaluator
    evaluate_unseen: Evaluator


def held_out(network: str, folder: Path) -> tuple[list[Any], list[Any]]:
    """Batches for the search and for the report, none of them seen in training."""
    n, m = SAMPLES[network]
    name = data_of(network)
    if name == "tinyshakespeare":
        text = data.load(name, folder)
        return _windows(text.validation, n), _windows(text.test, m)
    images = data.held_out_images(name, folder)
    return _batches(images[:n]), _batches(images[n : n + m])


def _batches(split: data.Split) -> list[Any]:
    return list(zip(split.inputs.split(500), split.targets.split(500), strict=True))


def _windows(split: data.Split, n: int) -> list[Any]:
    inputs, targets = (x[: n * _TIME].view(n, _TIME) for x in (split.inputs, split.targets))
    return list(zip(inputs.split(5), targets.split(5), strict=True))


def digits() -> tuple[nn.Module, Tensors, Tensors, list[Any], list[Any], list[Any]]:
    """A network of two layers on scikit-learn's digits: module, older and newer version, batches for all three uses."""
    images, labels = load_digits(return_X_y=True)
    inputs, targets = torch.from_numpy(images / 16).float(), torch.from_numpy(labels).long()
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    inputs, targets = inputs[order], targets[order]
    n, m = SAMPLES["digits"]
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.Adam(module.parameters(), 2e-3)
    versions = []
    for _ in range(20):
        for x, y in zip(inputs[n + m :].split(32), targets[n + m :].split(32), strict=True):
            optimizer.zero_grad()
            functional.cross_entropy(module(x), y).backward()
            optimizer.step()
        versions.append({name: tensor.numpy().copy() for name, tensor in module.state_dict().items()})
    splits = [data.Split(inputs[:n], targets[:n]), data.Split(inputs[n : n + m], targets[n : n + m])]
    return (
        module,
        versions[-2],
        versions[-1],
        _batches(splits[0]),
        _batches(splits[1]),
        list(inputs[n + m :].split(128)),
    )


def cases(name: str, folder: Path, shared: Path) -> Iterator[Case]:
    """The network alone and as an update, with every metric."""
    kept = NETWORKS_TUNED[name]
    if kept is None:
        module, old, new, for_search, for_report, batches = digits()
    else:
        pair = traces.load_pair(kept, shared)
        old, new = pair.old, pair.new
        module = NETWORKS[name]()
        module.load_state_dict({key: torch.from_numpy(value.copy()) for key, value in new.items()})
        for_search, for_report = held_out(name, folder)
        batches = evaluate.batches_of(name, folder)
    for base in (None, old):
        for metric, max_loss in BUDGETS.items():
            searched, unseen = evaluator(module, for_search, metric), evaluator(module, for_report, metric)
            yield Case(name, module, batches, new, base, metric, max_loss, searched, unseen)


def strategies(case: Case) -> tuple[str, ...]:
    """DeepSZ packs a network, not an update."""
    return ("nearzip", "delta-dnn", "deepsz") if case.base is None else ("nearzip", "delta-dnn")


def loss_of(evaluate: Evaluator, original: Tensors, restored: Tensors) -> float:
    """Loss of one metric."""
    before, after = evaluate(original), evaluate(restored)
    assert isinstance(before, float)
    assert isinstance(after, float)
    return before - after


def searches(case: Case, only: str | None = None) -> dict[str, dict[str, Any]]:
    """All searches, ours also with half of DeepSZ's evaluations, and calibrated; or `only` one strategy."""
    if only:
        return {only: measure(case, _uncalibrated(case, only), nz.compress)} if only in strategies(case) else {}
    found = {strategy: measure(case, _uncalibrated(case, strategy), nz.compress) for strategy in strategies(case)}
    if "evaluations" in found.get("deepsz", {}):
        more = _uncalibrated(case, "nearzip", found["deepsz"]["evaluations"] // 2)
        found["nearzip, more"] = measure(case, more, nz.compress)
    found["nearzip, calibrated"] = calibrated(case)
    return found


def _uncalibrated(case: Case, strategy: str, evaluations: int | None = None) -> Callable[[], nz.Plan]:
    return lambda: nz.tune(
        case.new, case.base, evaluate=case.evaluate, max_loss=case.max_loss, strategy=strategy, evaluations=evaluations
    )


def calibrated(case: Case) -> dict[str, Any]:
    """Our search over calibrated archives."""

    def find() -> nz.Plan:
        return calibrate.tune(case.module, case.batches, case.base, evaluate=case.evaluate, max_loss=case.max_loss)

    def apply(tensors: Tensors, base: Tensors | None, plan: nz.Plan) -> nz.Archive:
        return calibrate.compress(case.module, case.batches, base, plan=plan)

    return measure(case, find, apply)


def measure(case: Case, find: Callable[[], nz.Plan], apply: Callable[..., nz.Archive]) -> dict[str, Any]:
    """One search, and its plan applied again from the plan's file."""
    started = time.perf_counter()
    try:
        plan = find()
    except BudgetError as error:
        return {"nothing_fits": str(error), "seconds": round(time.perf_counter() - started, 2)}
    seconds = time.perf_counter() - started
    with tempfile.TemporaryDirectory() as folder:
        plan.save(Path(folder) / "plan.json")
        archive = apply(case.new, case.base, plan=nz.Plan.load(Path(folder) / "plan.json"))
        archive.save(Path(folder) / "a.nz")
        restored = nz.decompress(Path(folder) / "a.nz", case.base)
    n = sum(w.size for w in case.new.values())
    return {
        "evaluations": len(plan.trials),
        "bytes": archive.nbytes,
        "bits_per_parameter": round(8 * archive.nbytes / n, 4),
        "stated_loss": plan.losses[case.metric],
        "measured_again": loss_of(case.evaluate, case.new, restored),
        "loss_on_unseen_data": loss_of(case.evaluate_unseen, case.new, restored),
        "setting": str(plan.chosen.codings),
        "trials": [[str(t.codings.default), t.n_bytes, round(t.usage, 4)] for t in plan.trials],
        "seconds": round(seconds, 2),
    }


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench budget", description=__doc__)
    parser.add_argument("--data", help="folder with the data, the traces beside it (or NEARZIP_DATA)")
    parser.add_argument("--only", nargs="*", choices=NETWORKS_TUNED, default=list(NETWORKS_TUNED))
    parser.add_argument("--what", nargs="*", choices=_WHAT, default=_WHAT, help="the network alone, the update to it")
    parser.add_argument("--metrics", nargs="*", choices=BUDGETS, default=list(BUDGETS))
    parser.add_argument(
        "--strategy", choices=("nearzip", "delta-dnn", "deepsz"), help="only this one; what others found is kept"
    )
    options = parser.parse_args(arguments)
    shared = traces.folder(options.data)
    folder = options.data or os.environ.get("NEARZIP_DATA")
    if shared is None or folder is None:
        raise SystemExit("bench budget needs data and traces: --data DIR or NEARZIP_DATA")
    torch.set_num_threads(1)
    path = record.RESULTS / "budget.json"
    rows = json.loads(path.read_text())["rows"] if path.is_file() else []
    order = list(NETWORKS_TUNED)
    for name in options.only:
        for case in cases(name, Path(folder), shared):
            what = _WHAT[case.base is not None]
            if what not in options.what or case.metric not in options.metrics:
                continue
            found, commit = searches(case, options.strategy), record.commit()
            # Only now: an interrupted run leaves the figures of the one before.
            old = [row for row in rows if (row["network"], row["what"], row["metric"]) == (name, what, case.metric)]
            rows = [row for row in rows if row not in old]
            if options.strategy and old:
                found = {**old[0]["searches"], **{key: {**one, "commit": commit} for key, one in found.items()}}
                commit = old[0]["commit"]
            rows.append({
                "network": name, "what": what, "metric": case.metric,
                "max_loss": case.max_loss, "parameters": sum(w.size for w in case.new.values()),
                "commit": commit,
                "searches": found,
            })  # fmt: skip
            print(json.dumps(rows[-1]), file=sys.stderr)
            rows.sort(key=lambda row: (order.index(row["network"]), _WHAT.index(row["what"]), row["metric"] != "top1"))
            record.save("budget", {"samples": SAMPLES, "rows": rows}, ("nearzip", "numpy", "torch"))
