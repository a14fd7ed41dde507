"""What measuring a network's behaviour takes: all measures of some images, and a certificate beside an evaluation.

Processor seconds, which a busy machine changes least; with one thread they are the seconds of one idle core. An
evaluation runs both networks once over the images and computes the metrics that the certificate has by default.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import nearzip as nz
from experiments.lab import behaviour, data, evaluate, record, traces
from nearzip.correctness import Attribution, Boundary, Measure, Robustness, certify
from nearzip.torch import evaluator

_BATCH = 250
#: What a certificate measures unless told otherwise.
_CERTIFIED = ("top1", "class/*", "flips", "agreement", "kl/*")


def groups(n: int) -> dict[str, list[str | Measure]]:
    """All measures, each with its usual options."""
    outputs = ["top5", "perplexity", "churn", "distance", *behaviour.measures("cifar-10", 10)]
    return {
        "outputs and features": outputs,
        "saliency": [Attribution(n=n)],
        "integrated gradients": [Attribution("integrated-gradients", n=n)],
        "occlusion": [Attribution("occlusion", n=n)],
        "boundary, random": [Boundary(n=n)],
        "boundary, worst": [Boundary("worst", n=n)],
        "robustness": [Robustness(mean=data.CIFAR_MEAN, std=data.CIFAR_STD, n=n)],
    }


def batches(folder: Path, n: int) -> list[Any]:
    found = evaluate.held_out("vgg-small", folder)
    inputs, targets = torch.cat(found.inputs)[:n], torch.cat(found.targets)[:n]
    return list(zip(inputs.split(_BATCH), targets.split(_BATCH), strict=True))


def of_group(network: torch.nn.Module, rows: list[Any], measures: Any, restored: Mapping[str, Any]) -> dict[str, Any]:
    """The first trial of a search: the original is measured as well."""
    begin, wall = time.process_time(), time.perf_counter()
    before, after = evaluator(network, rows, measures).compared(restored)
    seconds, wall = time.process_time() - begin, time.perf_counter() - wall
    if not set(before.metrics) == set(after.metrics):
        raise SystemExit(f"behaviour_time: other metrics of the original, {', '.join(before.metrics)}")
    return {"seconds": round(seconds, 1), "wall_seconds": round(wall, 1), "metrics": len(after.metrics)}


def certificates(network: torch.nn.Module, rows: list[Any], archive: nz.Archive, rounds: int) -> dict[str, Any]:
    """An evaluation and a certificate in turn."""
    limits = {"top1": 0.02, "class/*": 0.1}
    seconds = record.interleaved(
        {
            "evaluation": lambda: evaluator(network, rows, list(_CERTIFIED)).evaluation(archive.restored),
            "certificate": lambda: certify(archive, network, rows, limits=limits),
            "forward": lambda: [network(x) for x, _ in rows for _ in range(2)],
        },
        rounds, time.process_time,
    )  # fmt: skip
    return {"images": sum(len(x) for x, _ in rows), "rounds": rounds, "seconds": seconds,
            "ratio": round(seconds["certificate"] / seconds["evaluation"], 3)}  # fmt: skip


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench behaviour_time", description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--certified", type=int, default=2000, help="images of the certificate")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    where = traces.folder(options.data)
    if where is None:
        raise SystemExit("behaviour_time: the shared traces are not there; give --data DIR")
    tensors = traces.load_file(where / "vgg-small" / "008.safetensors")
    network = evaluate.loaded("vgg-small", tensors)
    archive = nz.compress(tensors, bound=nz.Rms(0.05))
    found = {}
    for name, measures in groups(options.images).items():
        found[name] = of_group(network, batches(Path(options.data), options.images), measures, archive.restored)
        print(name, found[name], flush=True)
    with torch.no_grad():
        certified = certificates(network, batches(Path(options.data), options.certified), archive, options.rounds)
    print(certified)
    record.save("behaviour_time", {
        "network": "vgg-small", "images": options.images, "threads": 1, "groups": found, "certificate": certified,
    }, ("nearzip", "numpy", "torch", "captum", "foolbox"))  # fmt: skip
