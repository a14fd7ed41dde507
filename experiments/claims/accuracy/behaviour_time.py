"""What measuring a network's behaviour takes: all measures of some images, a certificate beside an evaluation, logs.

Processor seconds, which a busy machine changes least; with one thread they are the seconds of one idle core. An
evaluation runs both networks once over the images and computes the metrics that the certificate has by default.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
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


def answers(tasks: int, lines: int) -> dict[str, Any]:
    """`compare_answers` in a process of its own, on made-up logs of a harness; its processor seconds."""
    with tempfile.TemporaryDirectory() as folder:
        for side in ("base", "quantized"):
            (Path(folder) / side).mkdir()
            for task in range(tasks):
                text = "".join(json.dumps(_line(side, task, i)) + "\n" for i in range(lines // tasks))
                (Path(folder) / side / f"samples_task{task}_2026-01-02T03-04-05.678901.jsonl").write_text(text)
        run = subprocess.run([sys.executable, "-c", _ANSWERS, folder], capture_output=True, text=True, check=True)
    seconds, n, with_torch = json.loads(run.stdout)
    return {"tasks": tasks, "lines": n, "seconds": round(seconds, 2), "imports_torch": with_torch}


_ANSWERS = """
import json, sys, time
from nearzip.correctness import compare_answers
report = compare_answers(sys.argv[1] + "/base", sys.argv[1] + "/quantized", max_loss=0.02)
print(json.dumps([time.process_time(), sum(row.n for row in report.tasks), "torch" in sys.modules]))
"""


def _line(side: str, task: int, i: int) -> dict[str, Any]:
    """A sample as lm-evaluation-harness logs it; one in fifty answers changes."""
    right = (i * 7 + task) % 4 > 0
    right ^= side == "quantized" and (i + task) % 50 == 0
    best = 2 if right else 1
    return {
        "doc_id": i, "doc": {"query": f"question {i} of task {task}: " + "words of a question " * 12}, "target": "2",
        "arguments": {}, "resps": [], "filtered_resps": [[str(-1.0 if k == best else -4.0), "False"] for k in range(4)],
        "filter": "none", "metrics": ["acc"], "doc_hash": f"d{task}.{i}", "prompt_hash": f"p{task}.{i}",
        "target_hash": "t", "acc": float(right),
    }  # fmt: skip


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench behaviour_time", description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--certified", type=int, default=2000, help="images of the certificate")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only-answers", action="store_true", help="print what logs take, record nothing")
    options = parser.parse_args(arguments)
    if options.only_answers:
        print(answers(60, 100_020))
        return
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
        "answers": answers(60, 100_020),
    }, ("nearzip", "numpy", "torch", "captum", "foolbox"))  # fmt: skip
