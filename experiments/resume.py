"""What a resume from small checkpoints loses: bytes against the difference in final loss, with the seeds' own spread.

A network is trained to a crash and saved on the way; the last save is coded against the one before, closed loop, at
several finenesses. From each of them, and from the exact state, training goes on with the same order of data for
several seeds (`nearzip.torch.verify_resume`).
"""

from __future__ import annotations

import argparse
import json
import lzma
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import safetensors.numpy
import torch
import zstandard
from torch import nn, optim

import nearzip as nz
from experiments import data, record
from experiments.networks import NETWORKS, data_of
from experiments.peers.excp import _nibbles, _quantize
from experiments.sampling import evaluate, loss_of, training_batches
from nearzip.torch import Moments, TrainingState, capture, restore, verify_resume
from nearzip.torch.plans import StatePlan


@dataclass(frozen=True)
class Case:
    """A network, how it is trained, when it crashes (`crash`, in steps, a multiple of `every`) and how it goes on."""

    network: str
    optimizer: str
    lr: float
    crash: int
    total: int
    every: int
    steps: int
    batch: int = 128
    epochs: int = 2


CASES = {
    "lenet-300-100, SGD, early": Case("lenet-300-100", "sgd", 0.02, 150, 1500, 50, 100, epochs=1),
    "lenet-300-100, SGD, late": Case("lenet-300-100", "sgd", 0.02, 1200, 1500, 50, 100, epochs=1),
    "lenet-300-100, AdamW, early": Case("lenet-300-100", "adamw", 1e-3, 150, 1500, 50, 100, epochs=1),
    "lenet-300-100, AdamW, late": Case("lenet-300-100", "adamw", 1e-3, 1200, 1500, 50, 100, epochs=1),
    "vgg-small, SGD, early": Case("vgg-small", "sgd", 0.02, 60, 600, 20, 20, 64, 1),
    "vgg-small, AdamW, late": Case("vgg-small", "adamw", 1e-3, 240, 300, 20, 20, 64, 1),
    "transformer, AdamW, early": Case("transformer", "adamw", 1e-3, 100, 1000, 25, 15, 8, 2),
    "transformer, AdamW, late": Case("transformer", "adamw", 1e-3, 400, 500, 25, 15, 8, 2),
}  # fmt: skip

_INF = math.inf
#: Weights' bound in units of each tensor's root mean square, and the steps of m, v and momentum; ever coarser.
LEVELS = (
    (0.02, Moments(1, 1, 0.5)),
    (0.05, Moments(1, 1, 0.5)),
    (0.1, Moments(1, 1, 1.0)),
    (0.1, Moments(2, 2, 2.0)),
    (0.2, Moments(2, 3, 2.0)),
    (0.2, Moments(2, _INF, 3.0)),
    (0.3, Moments(_INF, _INF, _INF)),
)


def begin(case: Case) -> tuple[nn.Module, optim.Optimizer, Any]:
    """Network, optimizer and schedule as they are before the first step."""
    torch.manual_seed(0)
    network = NETWORKS[case.network]()
    if case.optimizer == "sgd":
        optimizer: optim.Optimizer = optim.SGD(network.parameters(), case.lr, 0.9, weight_decay=5e-4)
    else:
        optimizer = optim.AdamW(network.parameters(), case.lr, weight_decay=0.1)
    total = case.total

    def cosine(step: int) -> float:
        return 0.5 * (1 + math.cos(math.pi * min(step, total) / total))

    return network, optimizer, optim.lr_scheduler.LambdaLR(optimizer, cosine)


def steps(network: nn.Module, optimizer: optim.Optimizer, schedule: Any, batches: Any, n: int) -> None:
    """Train for `n` batches."""
    network.train()
    for _ in range(n):
        inputs, targets = next(batches)
        loss = loss_of(network(inputs), targets)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()


def to_crash(case: Case, dataset: data.Dataset, n_saves: int = 3) -> list[TrainingState]:
    """The last saves before the crash, the crash's own state last."""
    network, optimizer, schedule = begin(case)
    batches = training_batches(dataset, case.batch, torch.Generator().manual_seed(1))
    found = []
    for at in range(case.every, case.crash + 1, case.every):
        steps(network, optimizer, schedule, batches, case.every)
        if at > case.crash - n_saves * case.every:
            state = capture(network, optimizer, schedule, step=at, rng=False)
            found.append(TrainingState.from_arrays({n: a.copy() for n, a in state.to_arrays().items()}))
    return found


def coded(chain: Sequence[TrainingState], bound: nz.Bound, moments: Moments) -> tuple[TrainingState, dict[str, int]]:
    """What a reader gets of the last state, and its bytes: of the weights, of the optimizer, of the whole archive."""
    base, predictions = None, {}
    for state in chain:
        small = state.shrunk(moments, predictions)
        archive = nz.compress(small.to_arrays(), base, plan=StatePlan.of(small, bound), threads=1)
        before, base = base, archive.restored
    with nz.open(archive.to_bytes(), base=before) as reader:
        reports = reader.tensor_reports()
    weights = sum(report.n_bytes for report in reports if report.spec.name.startswith("model/"))
    moments_bytes = sum(report.n_bytes for report in reports if report.spec.name.startswith("optimizer/"))
    sizes = {"weights": round(weights), "optimizer": round(moments_bytes), "whole": archive.nbytes}
    return TrainingState.from_arrays(archive.restored).expanded(), sizes


def excp_like(chain: Sequence[TrainingState], alpha: float) -> tuple[TrainingState, dict[str, int]]:
    """Residual of the weights pruned and clustered, moments clustered where they are large; 4 bits and LZMA."""
    held: dict[str, np.ndarray] = {}
    for state in chain:
        restored, symbols, tables = dict(state.tensors), {"model": [], "optimizer": []}, 0
        for name, value in state.tensors.items():
            if value.dtype != np.float32 or name.split("/")[0] not in symbols:
                continue
            base = held.get(name, np.zeros_like(value)) if name.startswith("model/") else np.zeros_like(value)
            chosen, table = _quantize((value - base).reshape(-1), alpha if held or "optimizer" in name else 0.0)
            restored[name] = (base.reshape(-1) + table[chosen]).reshape(value.shape).astype(np.float32)
            if name.endswith("exp_avg_sq"):
                restored[name] = np.maximum(restored[name], 0)
            symbols[name.split("/")[0]].append(chosen)
            tables += table.nbytes
        held = {name: value for name, value in restored.items() if name.startswith("model/")}
    sizes = {key: len(lzma.compress(_nibbles(np.concatenate(own)))) if own else 0 for key, own in symbols.items()}
    found = {"weights": sizes["model"], "optimizer": sizes["optimizer"], "whole": sum(sizes.values()) + tables}
    return TrainingState(restored, chain[-1].document), found


def exact_bytes(state: TrainingState) -> dict[str, int]:
    """Of the float state as it is, and of safetensors through zstd."""
    own = {n: np.asarray(a) for n, a in state.tensors.items() if np.asarray(a).dtype == np.float32}
    packed = zstandard.ZstdCompressor(19).compress(safetensors.numpy.save(own))
    return {"exact": sum(a.nbytes for a in own.values()), "safetensors + zstd": len(packed)}


def measure(case: Case, dataset: data.Dataset, seeds: int, seconds: float) -> dict[str, Any]:
    """Every level that fits into the time."""
    deadline = time.perf_counter() + seconds
    chain = to_crash(case, dataset)
    exact = chain[-1]
    known: dict[int, tuple[float, ...]] = {}

    def train(state: TrainingState, seed: int) -> tuple[float, ...]:
        if state is exact and seed in known:
            return known[seed]
        network, optimizer, schedule = begin(case)
        restore(state, network, optimizer, schedule, rng=False)
        torch.manual_seed(seed)
        batches = training_batches(dataset, case.batch, torch.Generator().manual_seed(1000 + seed))
        losses = [evaluate(network, dataset.test)["loss"]]
        for _ in range(case.epochs):
            steps(network, optimizer, schedule, batches, case.steps)
            losses.append(evaluate(network, dataset.test)["loss"])
        if state is exact:
            known[seed] = tuple(losses)
        return tuple(losses)

    n_parameters = sum(int(np.prod(exact.tensors[name].shape)) for name in exact.parameters)
    result = {"case": asdict(case), "parameters": n_parameters, **exact_bytes(exact), "rows": []}
    trials: list[tuple[str, Any]] = [
        (f"rms:{e:g}, m {m.mean:g}, v {m.variance:g}, momentum {m.momentum:g}", (nz.Rms(e), m)) for e, m in LEVELS
    ]
    trials += [("ExCP-like, alpha 1", 1.0), ("ExCP-like, alpha 3", 3.0)]
    for label, setting in trials:
        begun = time.perf_counter()
        restored, sizes = excp_like(chain, setting) if isinstance(setting, float) else coded(chain, *setting)
        report = verify_resume(train, exact, restored, seeds)
        row = {"level": label, "bytes": sizes, "times_smaller": round(result["exact"] / sizes["whole"], 1)}
        result["rows"].append(row | report.to_json())
        print(label, row["times_smaller"], report, file=sys.stderr)
        if time.perf_counter() + (time.perf_counter() - begun) > deadline:
            break
    return result


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench resume", description=__doc__)
    parser.add_argument("--data", help="folder with MNIST, CIFAR-10 and tinyshakespeare (or NEARZIP_DATA)")
    parser.add_argument("--cases", help="beginnings of names, separated by ;", default="")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=1e9, help="for each case; what does not fit is left out")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    path = record.RESULTS / "resume.json"
    cases = json.loads(path.read_text())["cases"] if path.exists() else {}
    for name, case in CASES.items():
        if any(name.startswith(part) for part in chosen.cases.split(";")):
            dataset = _small(data.load(data_of(case.network), chosen.data))
            cases[name] = measure(case, dataset, chosen.seeds, chosen.seconds)
            record.save("resume", {"cases": cases}, ("nearzip", "numpy", "torch"))


def _small(dataset: data.Dataset) -> data.Dataset:
    """Fewer test images: the loss is compared with itself, image by image."""
    if dataset.is_text:
        return dataset
    test = dataset.test
    return replace(dataset, test=type(test)(test.inputs[:2000], test.targets[:2000]))
