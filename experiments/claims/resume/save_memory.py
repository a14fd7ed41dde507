"""Memory that a save takes beyond its snapshot: the peak of anonymous memory, by size of the network.

Every size is a process of its own: a network of 1024 x 1024 matrices and AdamW, one step of training, then saves.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from experiments.lab import record
from experiments.lab.anonymous import anonymous, peak_of

_SIDE = 1024


def child(layers: int, bound: str, folder: str) -> dict[str, int]:
    """Bytes before the first save, at the peaks of three saves and between them."""
    import torch

    from nearzip.torch import Saver

    torch.set_num_threads(1)
    network = torch.nn.Sequential(*(torch.nn.Linear(_SIDE, _SIDE, bias=False) for _ in range(layers)))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        network(torch.randn(8, _SIDE)).square().mean().backward()
        optimizer.step()

    # Libraries are loaded and thread stacks are there before the first figure is taken.
    with Saver(Path(folder) / "first", bound=bound) as saver:
        saver.save(torch.nn.Linear(4, 4))
    step()
    found = {"parameters": layers * _SIDE**2}
    with Saver(Path(folder) / "run", bound=bound) as saver:

        def save(number: int) -> None:
            saver.save(network, optimizer, step=number)
            saver.wait()

        found["before"] = anonymous()
        for number, name in enumerate(("first", "second", "third")):
            step()
            found[name] = peak_of(lambda at=number: save(at))  # type: ignore[misc]
            found[f"after {name}"] = anonymous()
        found["snapshot"] = saver.report.snapshot_bytes
    return found


def measure(layers: int, bound: str) -> dict[str, int]:
    """One size, in a fresh process."""
    code = (
        "import sys, json, tempfile\nfrom experiments.claims.resume.save_memory import child\n"
        "with tempfile.TemporaryDirectory() as folder:\n"
        "    print(json.dumps(child(int(sys.argv[1]), sys.argv[2], folder)))"
    )
    run = subprocess.run([sys.executable, "-c", code, str(layers), bound], stdout=subprocess.PIPE, check=True)
    row: dict[str, int] = json.loads(run.stdout)
    most = max(row[name] for name in ("first", "second", "third"))
    return row | {"beyond": most - row["before"] - row["snapshot"]}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench save_memory", description=__doc__)
    parser.add_argument("--layers", default="4,16,64", help="matrices of 1024 x 1024")
    parser.add_argument("--bound", default="rms:0.05")
    chosen = parser.parse_args(arguments)
    rows = []
    for layers in chosen.layers.split(","):
        rows.append(measure(int(layers), chosen.bound))
        print(rows[-1], file=sys.stderr)
    record.save("save_memory", {"bound": chosen.bound, "rows": rows}, ("nearzip", "numpy", "torch"))
