"""What federated rounds cost beside the training: QD-Compressor's Table 8 for every way to store a residual, and the
memory of a server that holds many replies.

The residual is of VGG-16's size (59 MB): Laplace values, the largest hundredth of each tensor removed, and the same
with another such update added. Seconds are of the processor, on one core.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from experiments.lab import record

#: Label to method, options, bound.
WAYS: dict[str, tuple[str, dict[str, Any], str | None]] = {
    "nearzip rms:0.5": ("nearzip", {}, "rms:0.5"),
    "nearzip rms:1": ("nearzip", {}, "rms:1"),
    "nearzip lossless": ("nearzip", {}, None),
    "LC, 3 bits": ("lc-checkpoint", {"bits": 3}, None),
    "QD 4-8, LZMA": ("qd-compressor", {}, None),
    "QD 4-8, gzip": ("qd-compressor", {"backend": "gzip"}, None),
    "QD 4-8, Zstd": ("qd-compressor", {"backend": "zstd"}, None),
}
_REPLIES, _VALUES = 100, 12_500_000


def _removed(value: np.ndarray) -> np.ndarray:
    """Without its largest hundredth."""
    if value.size >= 100:
        threshold = np.partition(np.abs(value), value.size - value.size // 100, axis=None)
        value[np.abs(value) >= threshold[value.size - value.size // 100]] = 0
    return value


def residuals(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Two rounds' residuals."""
    rng = np.random.default_rng(seed)
    first = {name: _removed(rng.laplace(0, 1e-3, shape).astype(np.float32)) for name, shape in shapes.items()}
    second = {name: _removed(first[name] + rng.laplace(0, 1e-3, shape).astype(np.float32))
              for name, shape in shapes.items()}  # fmt: skip
    return [first, second]


def way(label: str, given: list[dict[str, np.ndarray]]) -> dict[str, Any]:
    """Ratio and seconds without a base and, where the method takes one, with the residual before as decoded."""
    import nearzip as nz

    method, options, bound = WAYS[label]
    n_bytes = sum(value.nbytes for value in given[0].values())
    found: dict[str, Any] = {}
    previous = nz.compress(given[0], method=method, options=options, bound=bound, threads=1).restored
    for name, base in (("alone", None), ("previous", previous)):
        begin = time.process_time()
        archive = nz.compress(given[1], base=base, method=method, options=options, bound=bound, threads=1)
        encode = time.process_time() - begin
        data = archive.to_bytes()
        begin = time.process_time()
        back = nz.decompress(data, base=base, threads=1)
        decode = time.process_time() - begin
        assert all(np.array_equal(back[n], archive.restored[n]) for n in back)
        found[name] = {
            "ratio": round(n_bytes / len(data), 2), "encode": round(encode, 2), "decode": round(decode, 2),
        }  # fmt: skip
    return found


def _model() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {f"layer{i}": rng.normal(0, 0.05, (_VALUES // 10,)).astype(np.float32) for i in range(10)}


def write_replies(folder: Path) -> None:
    """Four replies of the server's clients."""
    from nearzip.federated import Client, Server

    server = Server(_model())
    for i in range(4):
        client = Client(residual=None)
        model = client.receive(server.broadcast(i))
        rng = np.random.default_rng(i)
        reply = client.send({n: v + rng.laplace(0, 1e-3, v.shape).astype(np.float32) for n, v in model.items()})
        (folder / f"{i}.bin").write_bytes(reply)


def _memory(field: str) -> int:
    """A field of /proc/self/status in bytes. `ru_maxrss` would not do: a child starts with its parent's peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{field}:"))


def serve(folder: Path) -> None:
    """A round of a hundred replies; prints the memory beyond what Python and the first model take."""
    from nearzip.federated import Server

    data = [(folder / f"{i}.bin").read_bytes() for i in range(4)]
    model = _model()
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = _memory("VmRSS")
    server = Server(model)
    for node in range(_REPLIES):
        server.broadcast(node)
        server.accept(node, bytes(bytearray(data[node % 4])))
    accepted = _memory("VmHWM")
    server.average(dict.fromkeys(range(_REPLIES), 1.0))
    after = _memory("VmHWM")
    print(accepted - before, after - before, sum(len(data[i % 4]) for i in range(_REPLIES)))


def server_memory() -> dict[str, Any]:
    """Peak memory of `serve` in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        for part in ("replies", "serve"):
            done = subprocess.run(
                [sys.executable, "-m", "experiments", "federated_costs", "--part", part, folder],
                check=True, capture_output=True, text=True, cwd=Path(__file__).parents[3],
            )  # fmt: skip
    accepted, after, replies = map(int, done.stdout.split())
    return {"replies": _REPLIES, "network_bytes": 4 * _VALUES, "reply_bytes": replies,
            "accepted_bytes": accepted, "averaged_bytes": after}  # fmt: skip


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench federated_costs", description=__doc__)
    parser.add_argument("--part", nargs=2, metavar=("PART", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.part is not None:
        {"replies": write_replies, "serve": serve}[options.part[0]](Path(options.part[1]))
        return
    from experiments.lab.networks import NETWORKS

    shapes = {name: tuple(p.shape) for name, p in NETWORKS["vgg-16"]().named_parameters()}
    memory = server_memory()
    print(memory, file=sys.stderr, flush=True)
    given, ways = residuals(shapes), {}
    for label in WAYS:
        ways[label] = way(label, given)
        print(label, ways[label], file=sys.stderr, flush=True)
        n_bytes = sum(value.nbytes for value in given[0].values())
        record.save("federated_costs", {"memory": memory, "residual_bytes": n_bytes, "ways": ways})
