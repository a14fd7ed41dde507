"""What federated rounds cost beside the training: QD-Compressor's Table 8 for every way to store a residual, and the
memory of a server that holds many replies.

The residual is of VGG-16's size (59 MB): Laplace values, the largest hundredth of each tensor removed, and the same
with another such update added. Seconds are of the processor, so that other work on the machine does not count: with
one thread, and with two what two free cores take at least, half of all seconds or those of the busiest thread.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from experiments.lab import record

#: Label to method, options, bound.
WAYS: dict[str, tuple[str, dict[str, Any], str | None]] = {
    "nearzip rms:0.25": ("nearzip", {}, "rms:0.25"),
    "nearzip rms:0.5": ("nearzip", {}, "rms:0.5"),
    "nearzip rms:1": ("nearzip", {}, "rms:1"),
    "nearzip lossless": ("nearzip", {}, None),
    "LC, 3 bits": ("lc-checkpoint", {"bits": 3}, None),
    "QD 4-8, LZMA": ("qd-compressor", {}, None),
    "QD 4-8, gzip": ("qd-compressor", {"backend": "gzip"}, None),
    "QD 4-8, Zstd": ("qd-compressor", {"backend": "zstd"}, None),
}
#: Label to bound.
CLIENT = {f"nearzip rms:{c}, by a client": f"rms:{c}" for c in (0.25, 0.5, 1)}
#: Replies of a round, different ones among them, and values of the network.
_REPLIES, _KINDS, _VALUES = 100, 4, 12_500_000


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


def _of_threads() -> dict[str, int]:
    """Nanoseconds of the processor that each thread of this process has taken."""
    found = {}
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended
            found[thread.name] = int((thread / "schedstat").read_text().split()[0])
    return found


def _seconds(call: Callable[[], Any], threads: int) -> float:
    """Median of five calls; of one that takes more than a second, itself."""
    found: list[float] = []
    while len(found) < 5 and max(found, default=0) < 1:
        before, begin = _of_threads(), time.process_time()
        call()
        total = time.process_time() - begin
        busiest = max(taken - before.get(thread, 0) for thread, taken in _of_threads().items()) / 1e9
        found.append(max(total / threads, busiest) if threads > 1 else total)
    return round(statistics.median(found), 3)


def way(label: str, given: list[dict[str, np.ndarray]]) -> dict[str, Any]:
    """Ratio and seconds without a base and, where the method takes one, with the residual before as decoded."""
    import nearzip as nz

    method, options, bound = WAYS[label]
    n_bytes = sum(value.nbytes for value in given[0].values())
    found: dict[str, Any] = {}
    previous = nz.compress(given[0], method=method, options=options, bound=bound, threads=1).restored
    for name, base in (("alone", None), ("previous", previous)):

        def encode(threads: int, base: Any = base) -> Any:
            return nz.compress(given[1], base=base, method=method, options=options, bound=bound, threads=threads)

        archive = encode(1)
        data = archive.to_bytes()

        def decode(threads: int, data: bytes = data, base: Any = base) -> Any:
            return nz.decompress(data, base=base, threads=threads)

        back = decode(1)
        assert all(np.array_equal(back[n], archive.restored[n]) for n in back)
        found[name] = {"ratio": round(n_bytes / len(data), 2)}
        for threads in (1, 2):
            for what, call in (("encode", encode), ("decode", decode)):
                found[name][f"{what}_{threads}"] = _seconds(lambda c=call, t=threads: c(t), threads)  # type: ignore[misc]
    return found


def client_way(bound: str, given: list[dict[str, np.ndarray]]) -> dict[str, Any]:
    """The same of what a `Client` does with its residual: rounded at random, and kept as a reader decodes it."""
    from nearzip.federated.residual import Residual

    kept = Residual("nearzip", bound)

    def store() -> None:
        kept.store(given[1])
        kept.check()

    kept.store(given[0])
    store()
    n_bytes = sum(value.nbytes for value in given[0].values())
    found: dict[str, Any] = {"ratio": round(n_bytes / kept.n_bytes, 2)}
    for threads in (1, 2):
        os.environ["NEARZIP_THREADS"] = str(threads)
        found[f"encode_{threads}"] = _seconds(store, threads)
    return {"previous": found}


def _model() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {f"layer{i}": rng.normal(0, 0.05, (_VALUES // 10,)).astype(np.float32) for i in range(10)}


def write_replies(folder: Path) -> None:
    """Four replies of the server's clients in each of two rounds."""
    from nearzip.federated import Client, Server

    server = Server(_model())
    clients = [Client(residual=None) for _ in range(_KINDS)]
    for turn in range(2):
        for i, client in enumerate(clients):
            model = client.receive(server.broadcast(i))
            rng = np.random.default_rng(_KINDS * turn + i)
            reply = client.send({n: v + rng.laplace(0, 1e-3, v.shape).astype(np.float32) for n, v in model.items()})
            (folder / f"{turn}-{i}.bin").write_bytes(reply)
        if turn == 0:
            _round(server, folder, 0)


def _round(server: Any, folder: Path, turn: int) -> tuple[int, int]:
    """A hundred replies. Returns their bytes, and the peak of memory before they are averaged."""
    data = [(folder / f"{turn}-{i}.bin").read_bytes() for i in range(_KINDS)]
    for node in range(_REPLIES):
        server.broadcast(node)
        server.accept(node, bytes(bytearray(data[node % _KINDS])))
    accepted = _memory("VmHWM")
    server.average(dict.fromkeys(range(_REPLIES), 1.0))
    return sum(len(data[i % _KINDS]) for i in range(_REPLIES)), accepted


def _memory(field: str) -> int:
    """A field of /proc/self/status in bytes. `ru_maxrss` would not do: a child starts with its parent's peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{field}:"))


def _count_peak_from_here() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def serve(folder: Path) -> None:
    """Two rounds of a hundred replies; prints bytes of replies and peaks of memory of each, beyond what Python with its
    libraries and the first model take."""
    from nearzip.federated import Client, Server

    server, client = Server({"w": np.zeros(1 << 16, np.float32)}), Client()  # loads what is loaded at its first use
    server.accept(0, client.send({"w": client.receive(server.broadcast(0))["w"] + 1}))
    server.average({0: 1.0})
    model = _model()
    before = _memory("VmRSS")
    server = Server(model)
    for turn in range(2):
        _count_peak_from_here()
        n_bytes, accepted = _round(server, folder, turn)
        print(n_bytes, accepted - before, _memory("VmHWM") - before)


def server_memory() -> dict[str, Any]:
    """Peak memory of `serve` in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        for part in ("replies", "serve"):
            done = subprocess.run(
                [sys.executable, "-m", "experiments", "federated_costs", "--part", part, folder],
                check=True, capture_output=True, text=True, cwd=Path(__file__).parents[3],
            )  # fmt: skip
    rounds = [dict(zip(("reply_bytes", "accepted_bytes", "averaged_bytes"), map(int, line.split()), strict=True))
              for line in done.stdout.splitlines()]  # fmt: skip
    return {"replies": _REPLIES, "network_bytes": 4 * _VALUES, "rounds": rounds}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench federated_costs", description=__doc__)
    parser.add_argument("--part", nargs=2, metavar=("PART", "FOLDER"), help=argparse.SUPPRESS)
    parser.add_argument("--only", nargs="*", choices=[*WAYS, *CLIENT], help="these rows, beside those measured before")
    options = parser.parse_args(arguments)
    if options.part is not None:
        {"replies": write_replies, "serve": serve}[options.part[0]](Path(options.part[1]))
        return
    from experiments.lab.networks import NETWORKS

    shapes = {name: tuple(p.shape) for name, p in NETWORKS["vgg-16"]().named_parameters()}
    given = residuals(shapes)
    kept = record.load("federated_costs") if options.only else {}
    memory, ways = kept.get("memory") or server_memory(), kept.get("ways", {})
    print(memory, file=sys.stderr, flush=True)
    for label in options.only or (*WAYS, *CLIENT):
        ways[label] = client_way(CLIENT[label], given) if label in CLIENT else way(label, given)
        print(label, ways[label], file=sys.stderr, flush=True)
        n_bytes = sum(value.nbytes for value in given[0].values())
        ordered = {name: ways[name] for name in (*WAYS, *CLIENT) if name in ways}
        record.save("federated_costs", {"memory": memory, "residual_bytes": n_bytes, "ways": ordered})
