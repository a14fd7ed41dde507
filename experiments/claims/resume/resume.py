"""What a resume from small checkpoints loses: bytes against the difference in final loss, with the seeds' own spread.

A network is trained to a crash and saved on the way; the last save is coded against the one before, closed loop, at
several levels. From each of them, and from the exact state, training continues with the same order of data for several
seeds (`nearzip.torch.verify_resume`). Every row is written when it is measured: an interrupted run resumes there.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

import nearzip as nz
from experiments.claims.resume.cases import CASES, Case, begin, held_out_loss, kept_to_crash, steps
from experiments.claims.resume.sizes import coded, exact_bytes, excp_like
from experiments.lab import data, record
from experiments.lab.networks import data_of
from experiments.lab.sampling import training_batches
from nearzip.torch import Moments, TrainingState, restore, verify_resume

_INF = math.inf

#: Weights' bound in units of each tensor's root mean square, and the steps of the moments; ever coarser.
LEVELS = {
    "adamw": (
        (0.02, Moments(1, 1)), (0.05, Moments(1, 1)), (0.05, Moments(2, 2)), (0.1, Moments(2, 2)),
        (0.1, Moments(2, _INF)), (0.2, Moments(2, _INF)), (0.2, Moments(_INF, _INF)), (0.3, Moments(_INF, _INF)),
    ),
    "sgd": (
        (0.02, Moments(momentum=0.5)), (0.05, Moments(momentum=1)), (0.05, Moments(momentum=2)),
        (0.05, Moments(momentum=_INF)), (0.1, Moments(momentum=_INF)), (0.2, Moments(momentum=_INF)),
        (0.3, Moments(momentum=_INF)),
    ),
}  # fmt: skip
#: First moments that keep their length along themselves, ever coarser; for `WITH_UNBIASED`, where the others end early.
UNBIASED = (
    (0.05, Moments(2, 2, unbiased=True)), (0.05, Moments(3, 2, unbiased=True)),
    (0.05, Moments(2, _INF, unbiased=True)), (0.05, Moments(3, _INF, unbiased=True)),
    (0.1, Moments(3, _INF, unbiased=True)),
)  # fmt: skip
WITH_UNBIASED = (CASES["transformer, AdamW, early"],)
_ALPHAS = (1.0, 3.0)
#: Bytes per parameter of an exact checkpoint: the weight, and one or two moments.
BYTES = {"sgd": 8, "adamw": 12}

Code = Callable[[list[TrainingState]], tuple[TrainingState, dict[str, int]]]


def trials(case: Case) -> dict[str, Code]:
    """Ways to code the chain of saves, by label."""
    found: dict[str, Code] = {}
    for fineness, moments in (*LEVELS[case.optimizer], *(UNBIASED if case in WITH_UNBIASED else ())):
        kept = f"momentum {moments.momentum:g}" if case.optimizer == "sgd" else f"m {moments.mean:g}"
        kept += " unbiased" if moments.unbiased else ""
        label = f"rms:{fineness:g}, {kept}" + ("" if case.optimizer == "sgd" else f", v {moments.variance:g}")
        found[label] = partial(coded, bound=nz.Rms(fineness), moments=moments)
    for alpha in _ALPHAS:
        found[f"ExCP-like, alpha {alpha:g}"] = partial(excp_like, alpha=alpha)
    return found


class Trainer:
    """Trains on from a state for `verify_resume`; from the exact state only once for each seed."""

    def __init__(self, case: Case, dataset: data.Dataset, exact: TrainingState, known: dict[int, tuple[float, ...]]):
        self.case, self.dataset, self.exact, self.known = case, dataset, exact, known
        self._before: tuple[TrainingState, float] | None = None

    def __call__(self, state: TrainingState, seed: int) -> tuple[float, ...]:
        if state is self.exact and seed in self.known:
            return self.known[seed]
        network, optimizer, schedule = begin(self.case)
        restore(state, network, optimizer, schedule, rng=False)
        if self._before is None or self._before[0] is not state:
            self._before = (state, held_out_loss(network, self.dataset.test))
        losses = [self._before[1]]
        torch.manual_seed(seed)
        batches = training_batches(self.dataset, self.case.batch, torch.Generator().manual_seed(1000 + seed))
        for _ in range(self.case.epochs):
            steps(network, optimizer, schedule, batches, self.case.steps)
            losses.append(held_out_loss(network, self.dataset.test))
        if state is self.exact:
            self.known[seed] = tuple(losses)
        return tuple(losses)


def measure(
    case: Case,
    dataset: data.Dataset,
    seeds: int,
    result: dict[str, Any],
    written: Callable[[], object],
    deadline: float = math.inf,
) -> bool:
    """Every level that is not in `result` yet and that fits into the time; whether all of them are there now."""
    chain = kept_to_crash(case, dataset)
    exact = chain[-1]
    rows = result.setdefault("rows", [])
    n_parameters = sum(math.prod(exact.tensors[name].shape) for name in exact.parameters)
    result |= {"case": asdict(case), "n_seeds": seeds, "parameters": n_parameters, "commit": record.commit()}
    result.setdefault("sizes", exact_bytes(exact))
    known = {seed: tuple(losses) for row in rows[:1] for seed, losses in enumerate(row["original"])}
    train = Trainer(case, dataset, exact, known)
    for label, code in trials(case).items():
        if any(row["level"] == label for row in rows):
            continue
        begun = time.perf_counter()
        restored, sizes = code(chain)
        report = verify_resume(train, exact, restored, seeds)
        times = round(BYTES[case.optimizer] * n_parameters / sizes["whole"], 1)
        rows.append({"level": label, "bytes": sizes, "times_smaller": times, **report.to_json()})
        written()
        print(label, times, report, file=sys.stderr)
        if 2 * time.perf_counter() - begun > deadline:
            return len(rows) == len(trials(case))
    return True


def fresh(result: dict[str, Any], case: Case, seeds: int) -> dict[str, Any]:
    """The earlier result, if it has this commit and these settings; else an empty one."""
    same = (result.get("case"), result.get("n_seeds"), result.get("commit")) == (asdict(case), seeds, record.commit())
    return result if same else {}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench resume", description=__doc__)
    parser.add_argument("--data", help="folder with MNIST, CIFAR-10 and tinyshakespeare (or NEARZIP_DATA)")
    parser.add_argument("--cases", help="beginnings of names, separated by ;", default="")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=math.inf, help="then end; the next run goes on from there")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    deadline = time.perf_counter() + chosen.seconds
    path = record.RESULTS / "resume.json"
    before = json.loads(path.read_text())["cases"] if path.exists() else {}
    cases = {name: before[name] for name in CASES if name in before}
    for name, case in CASES.items():
        if not any(name.startswith(part) for part in chosen.cases.split(";")):
            continue
        result = cases[name] = fresh(cases.get(name, {}), case, chosen.seeds)
        if len(result.get("rows", ())) == len(trials(case)):
            continue
        dataset = data.load(data_of(case.network), chosen.data)

        def write() -> None:
            record.save("resume", {"cases": {k: v for k, v in cases.items() if v}}, _PACKAGES)

        if not measure(case, dataset, chosen.seeds, result, write, deadline) or time.perf_counter() > deadline:
            print(f"resume: time is over in {name}; run again to go on", file=sys.stderr)
            return


_PACKAGES = ("nearzip", "numpy", "torch")
