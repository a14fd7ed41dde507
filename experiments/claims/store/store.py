"""The store on the traces: bytes, checkout times and accuracy under each policy; its speed; many versions.

`--storage`, `--speed`, `--scale` measure only these parts and keep the others. Hu et al., ICPP 2020, ask the same
question in section 5.4, Table 3 and Figure 9.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from safetensors.numpy import load_file

import nearzip as nz
from experiments.lab import record, trace_sets, traces
from nearzip.store.manifest import path_of
from nearzip.store.summaries import BLOCK

POLICIES = ("forward", "hop:4", "backward")
#: Bounds on the networks' values.
BOUNDS = ("rms:0.01", "rms:0.003", "lossless")
Row = dict[str, Any]


def chains(given: str | None) -> dict[str, list[Path]]:
    """Versions of networks: the traces at hand, the complete sets of twelve first."""
    found: dict[str, list[Path]] = {}
    root = trace_sets.traces_folder() / "chains"
    for settings in trace_sets.SETS["chains"]:
        files = trace_sets.version_files(root / settings.network)
        if len(files) >= 12:
            found[settings.network] = files
    shared = traces.folder(given)
    for name in ("transformer", "vgg-small"):
        if shared is not None and name not in found:
            found[name] = sorted((shared / name).glob("*.safetensors"))
    return found


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for sub in ("objects", "versions") for path in (folder / sub).iterdir())


def _seconds(work: Callable[[], object], rounds: int = 3) -> float:
    found = []
    for _ in range(rounds):
        begin = time.perf_counter()
        work()
        found.append(time.perf_counter() - begin)
    return statistics.median(found)


def _evaluators(network: str, versions: list[traces.Tensors], data: str | None) -> list[Any] | None:
    if data is None:
        return None
    from experiments.lab.data import DataError
    from experiments.lab.evaluate import Evaluator, held_out

    try:
        batches = held_out(network, Path(data), 0.2)
    except (DataError, OSError) as error:
        print(f"{network}: accuracy is not measured: {error}", file=sys.stderr)
        return None
    return [Evaluator(network, version, batches) for version in versions]


def _kept_promise(bound: str, original: traces.Tensors, restored: traces.Tensors) -> bool:
    if bound == "lossless":
        return all(np.array_equal(original[name], restored[name]) for name in original)
    share = float(bound.partition(":")[2])
    for name, x in original.items():
        if x.dtype.kind == "f" and x.size:
            wide = x.astype(np.float64)
            if np.abs(wide - restored[name]).max() > share * np.sqrt((wide**2).mean()):
                return False
    return True


def _one_policy(
    folder: Path, versions: list[traces.Tensors], bound: str, policy: str, evaluators: list[Any] | None
) -> Row:
    shutil.rmtree(folder, ignore_errors=True)
    store = nz.Store(folder, create=True, bound=bound, policy=policy)
    begin = time.perf_counter()
    for version in versions:
        store.commit(version)
    committed = time.perf_counter() - begin
    restored = [store.checkout(i) for i in range(len(versions))]
    if not all(_kept_promise(bound, a, b) for a, b in zip(versions, restored, strict=True)):
        raise SystemExit(f"{policy}, {bound}: the bound was not kept")
    some = random.Random(0).randrange(1, len(versions) - 1)
    row: Row = {
        "policy": policy,
        "bytes": _size(folder),
        "commit_seconds": committed / len(versions),
        "checkout_seconds": {
            "newest": _seconds(lambda: nz.Store(folder).checkout()),
            "oldest": _seconds(lambda: nz.Store(folder).checkout(0)),
            f"version {some}": _seconds(lambda: nz.Store(folder).checkout(some)),
        },
    }
    if evaluators is not None and bound != "lossless":
        found = [evaluator.compare(tensors) for evaluator, tensors in zip(evaluators, restored, strict=True)]
        row["accuracy"] = [evaluator.accuracy for evaluator in evaluators]
        row["accuracy_change"] = [fidelity.accuracy_change for fidelity in found]
        row["kl"] = [fidelity.kl for fidelity in found]
    before = row["bytes"]
    report = store.prune("every:4")
    row["pruned"] = {"kept": list(report.kept), "bytes": _size(folder), "bytes_before": before}
    return row


def storage(given: str | None, only: Sequence[str] = (), bounds: Sequence[str] = BOUNDS) -> list[Row]:
    """Every chain under every bound and policy, beside raw files and zstd."""
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for network, files in chains(given).items():
            if only and network not in only:
                continue
            versions = [load_file(path) for path in files]
            evaluators = _evaluators(network, versions, given)
            pack = zstandard.ZstdCompressor(19).compress
            row: Row = {
                "network": network,
                "versions": len(versions),
                "raw": sum(path.stat().st_size for path in files),
                "zstd": sum(len(pack(path.read_bytes())) for path in files),
                "bounds": {},
            }
            for bound in bounds:
                row["bounds"][bound] = [
                    _one_policy(Path(scratch) / "s", versions, bound, policy, evaluators) for policy in POLICIES
                ]
                print(network, bound, [(r["policy"], r["bytes"]) for r in row["bounds"][bound]], file=sys.stderr)
            rows.append(row)
    return rows


def merged(before: list[Row], after: list[Row]) -> list[Row]:
    """Earlier rows, replaced where the same network and bound were measured again."""
    found = {row["network"]: row for row in before}
    for row in after:
        old = found.get(row["network"])
        if old is not None and (old["versions"], old["raw"]) == (row["versions"], row["raw"]):
            bounds = {**old["bounds"], **row["bounds"]}
            row = {**row, "bounds": {bound: bounds[bound] for bound in BOUNDS if bound in bounds}}
        found[row["network"]] = row
    return list(found.values())


def speed(given: str | None) -> Row:
    """Commit and checkout beside the codec alone, and a full verify beside reading the files."""
    source, old, new = traces.tiled(traces.folder(given))
    n_bytes = sum(w.nbytes for w in new.values())
    bound = nz.Absolute(2.5e-4)
    with tempfile.TemporaryDirectory() as scratch:
        store = nz.Store(Path(scratch) / "s", create=True, bound=bound, policy="forward")
        store.commit(old)
        base = store.checkout()
        archive = nz.compress(new, base=base, bound=bound)
        data = archive.to_bytes()
        turn = [old, new]

        def commit() -> None:
            turn.reverse()
            store.commit(turn[0])

        def alone() -> None:
            nz.compress(new, base=base, bound=bound)

        def checkout() -> None:
            store.checkout(0)

        keyframe = store._backend.read(f"objects/{store._versions.get(0).parts[0].object}", 1 << 30)

        def decompress() -> None:
            nz.decompress(keyframe)

        sides = {"commit": commit, "compress": alone, "checkout of a keyframe": checkout, "decompress": decompress}
        seconds = record.interleaved(sides, 9)
        processor = record.interleaved(sides, 9, time.process_time)
        if not all(np.array_equal(a, b) for a, b in zip(
            nz.decompress(data, base=base).values(), archive.restored.values(), strict=True
        )):  # fmt: skip
            raise SystemExit("the codec did not restore what it said")
        verified = _verify_speed(Path(scratch) / "v")
    return {"source": source, "bytes": n_bytes, "seconds": seconds, "processor_seconds": processor, **verified}


def _verify_speed(folder: Path) -> Row:
    rng = np.random.default_rng(0)
    store = nz.Store(folder, create=True, policy="hop:1")
    for _ in range(4):
        store.commit({"w": rng.normal(size=16_000_000).astype(np.float32)})
    files = sorted((folder / "objects").iterdir())

    def read() -> None:
        for path in files:
            with open(path, "rb", buffering=0) as stream:
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                while stream.read(4 << 20):
                    pass

    def verify() -> None:
        for path in files:
            with open(path, "rb", buffering=0) as stream:
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if not store.verify("full").ok:
            raise SystemExit("damage?")

    sides = {"read": read, "verify": verify}
    return {
        "verify": {
            "bytes": sum(path.stat().st_size for path in files),
            "seconds": record.interleaved(sides, 9),
            "processor_seconds": record.interleaved(sides, 5, time.process_time),
        }
    }


def scale(n: int = 10_000, period: int = 20) -> Row:
    """Log and checkout among many versions: manifests of `period` versions again and again, over the same objects."""
    with tempfile.TemporaryDirectory() as scratch:
        store = nz.Store(scratch, create=True, policy=f"hop:{period}")
        for i in range(period):
            store.commit({"w": np.random.default_rng(i).normal(size=1000).astype(np.float32)}, metrics={"accuracy": i})
        manifests = [store._versions.get(i) for i in range(period)]
        for number in range(period, n):
            first = manifests[number % period]
            shift = number - first.number
            parts = tuple(replace(p, base=None if p.base is None else p.base + shift) for p in first.parts)
            again = replace(first, number=number, parts=parts, metrics={"accuracy": number % 1000})
            (Path(scratch) / path_of(number)).write_bytes(again.to_bytes())
        opened = nz.Store(scratch)
        opened._versions.sum_up(range(n // BLOCK))
        opened._versions.point_to(n - 1)
        newest = store.checkout((n - 1) % period)["w"]
        if not np.array_equal(nz.Store(scratch).checkout()["w"], newest) or len(nz.Store(scratch).log()) != n:
            raise SystemExit("a version is missing")
        return {
            "versions": n,
            "log_seconds": _seconds(lambda: nz.Store(scratch).log()),
            "log_processor_seconds": record.timed(lambda: nz.Store(scratch).log(), 3)[1],
            "checkout_newest_seconds": _seconds(lambda: nz.Store(scratch).checkout()),
            "checkout_best_seconds": _seconds(lambda: nz.Store(scratch).checkout("best:accuracy")),
            "checkout_best_processor_seconds": record.timed(lambda: nz.Store(scratch).checkout("best:accuracy"), 3)[1],
        }


PARTS: dict[str, Callable[[str | None], Any]] = {"storage": storage, "speed": speed, "scale": lambda given: scale()}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench store", description=__doc__)
    parser.add_argument("--data", default=os.environ.get("NEARZIP_DATA"), help="folder with data sets and traces")
    for part in PARTS:
        parser.add_argument(f"--{part}", action="store_true", help="only this part")
    parser.add_argument("--only", nargs="+", default=[], metavar="NETWORK", help="of --storage, these networks")
    parser.add_argument("--bounds", nargs="+", default=list(BOUNDS), choices=BOUNDS, help="of --storage, these bounds")
    options = parser.parse_args(arguments)
    chosen = [part for part in PARTS if getattr(options, part)] or list(PARTS)
    path = record.RESULTS / "store.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    found = {part: before.get(part) for part in PARTS}
    commits = before.get("commits", {part: before["commit"] for part in PARTS if found[part]})
    for part in chosen:
        if part == "storage":
            found[part] = merged(found[part] or [], storage(options.data, options.only, options.bounds))
        else:
            found[part] = PARTS[part](options.data)
    commits |= dict.fromkeys(chosen, record.commit())
    record.save("store", {**found, "commits": commits}, ("nearzip", "numpy", "zstandard"))
