"""What calibration costs for language models, up to the size of GPT-2: time, passes and memory by number of parameters.

The transformer of these experiments in the shape of GPT-2 (50 257 tokens, tied head) at three widths, trained for some
steps on tinyshakespeare, whose characters are tokens anywhere in the vocabulary. The update is the last steps. Training
and every calibration are processes of their own, on one thread.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from experiments.lab import record
from experiments.lab.anonymous import anonymous, peak_of

#: Width, layers, heads.
_SIZES = {"12 M": (192, 6, 3), "41 M": (384, 12, 6), "124 M": (768, 12, 12)}
_VOCABULARY, _CONTEXT, _ROWS, _TIME = 50257, 1024, 2, 128
#: Steps of the base, and of the update.
_TRAINED, _UPDATE = 5, 3
_BATCHES = 4
#: Moments of each network in memory, in the second run.
_MEMORY = 64 << 20
_STEP = 1e-3
_THREADS = 1


def network(size: str) -> Any:
    import torch

    from experiments.lab.networks.transformer import Transformer

    width, layers, heads = _SIZES[size]
    torch.manual_seed(0)
    module = Transformer(_VOCABULARY, width, layers, heads, _CONTEXT)
    for embedding in (module.e, module.pe):
        torch.nn.init.normal_(embedding.weight, std=0.02)
    module.h.weight = module.e.weight
    return module.eval()


def windows(data: Path, n: int, seed: int) -> list[Any]:
    """Batches of text, shape (rows, time) int64."""
    import torch

    text = (data / "tinyshakespeare" / "input.txt").read_bytes()
    tokens = torch.randperm(_VOCABULARY, generator=torch.Generator().manual_seed(0))[torch.tensor(list(text))]
    tokens = tokens[: int(0.9 * len(tokens))]
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(tokens) - _TIME, (n, _ROWS), generator=generator).tolist()
    return [torch.stack([tokens[s : s + _TIME] for s in some]) for some in starts]


def train(size: str, folder: Path, data: Path) -> dict[str, Any]:
    """Two versions into the folder."""
    from safetensors.torch import save_model
    from torch.nn import functional
    from torch.optim import AdamW

    module, began = network(size), time.perf_counter()
    optimizer = AdamW(module.parameters(), lr=3e-4)
    losses = []
    for i, batch in enumerate(windows(data, _TRAINED + _UPDATE, seed=1)):
        if i == _TRAINED:
            save_model(module, str(folder / "old.safetensors"))
        loss = functional.cross_entropy(module(batch)[:, :-1].flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    save_model(module, str(folder / "new.safetensors"))
    return {"loss_first": losses[0], "loss_last": losses[-1], "seconds": time.perf_counter() - began}


def calibrated(size: str, folder: Path, data: Path, memory: int | None) -> dict[str, Any]:
    """One call of `calibrate.compress`, beside evaluation passes over the same batches."""
    import torch
    from safetensors.torch import load_model

    from nearzip import calibrate

    module, base = network(size), network(size)
    load_model(module, str(folder / "new.safetensors"))
    load_model(base, str(folder / "old.safetensors"))
    batches = windows(data, _BATCHES, seed=2)
    # The first call loads what is needed.
    tiny = torch.nn.Linear(4, 3)
    calibrate.compress(tiny, [torch.randn(8, 4)], step=0.1, threads=_THREADS)

    def evaluation_pass() -> float:
        began = time.process_time()
        with torch.inference_mode():
            for batch in batches:
                module(batch)
        return time.process_time() - began

    evaluation_pass()
    pass_s = min(evaluation_pass() for _ in range(2))
    old, before, found = dict(base.state_dict()), anonymous(), []
    began, processor = time.perf_counter(), time.process_time()
    peak = peak_of(
        lambda: found.append(
            calibrate.compress(module, batches, old, step=_STEP, n_batches=_BATCHES, memory=memory, threads=_THREADS)
        )
    )
    seconds, processor_s = time.perf_counter() - began, time.process_time() - processor
    (archive,) = found
    return {
        "seconds": seconds,
        "processor_seconds": processor_s,
        "evaluation_pass_s": pass_s,
        "passes": processor_s / pass_s,
        "memory_bytes": peak - before,
        "process_bytes": peak,
        "bytes": archive.nbytes,
        "divergence": archive.report.divergence,
        "uncalibrated": dict(archive.report.uncalibrated),
        "id": archive.id,
    }


def child(options: argparse.Namespace) -> dict[str, Any]:
    import torch

    torch.set_num_threads(_THREADS)
    work, size, folder = options.work
    if work == "train":
        return train(size, Path(folder), options.data)
    return calibrated(size, Path(folder), options.data, None if work == "all" else _MEMORY)


def in_process(work: str, size: str, folder: Path, data: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "experiments", "calibration_scale", "--data", str(data)]
    done = subprocess.run([*command, "--work", work, size, str(folder)], stdout=subprocess.PIPE, check=True)
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(work, size, row, file=sys.stderr)
    return row


def measured(size: str, data: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        trained = in_process("train", size, Path(name), data)
        everything, limited = (in_process(work, size, Path(name), data) for work in ("all", "limited"))
    if everything.pop("id") != limited.pop("id"):
        raise SystemExit(f"{size}: the archive differs with a limit of memory")
    width, layers, heads = _SIZES[size]
    n = (_VOCABULARY + _CONTEXT) * width + layers * (12 * width + 13) * width + 2 * width
    shape = {"width": width, "layers": layers, "heads": heads}
    return {"parameters": n, **shape, "training": trained, "all in memory": everything, "limited": limited}


def main(arguments: list[str]) -> None:
    from experiments.lab import traces

    parser = argparse.ArgumentParser(prog="bench calibration_scale", description=__doc__)
    parser.add_argument("--data", type=Path, help="folder with the data (or NEARZIP_DATA)")
    parser.add_argument("--sizes", nargs="+", choices=list(_SIZES), default=list(_SIZES))
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.work:
        print(json.dumps(child(options)))
        return
    where = traces.folder(options.data)
    if where is None:
        raise SystemExit("bench calibration_scale needs data: --data DIR or NEARZIP_DATA")
    rows = {size: measured(size, where.parent / "data") for size in options.sizes}
    settings = {"memory": _MEMORY, "step": _STEP, "threads": _THREADS, "predictions": _BATCHES * _ROWS * _TIME}
    record.save("calibration_scale", {**settings, "sizes": rows}, ("nearzip", "numpy", "torch"))
