"""Processor time and peak memory of this commit beside another one, in turns on the same data.

Both commits are built in the same way in temporary folders and run in processes of their own; the two take turns
call by call, so that whatever else the machine does slows both alike. Several pairs of processes: where a process's
memory lies changes its times by some per cent.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors.numpy import save_file

from experiments.claims.speed.memory import watch
from experiments.lab import record, traces

#: The last commit before promises per tensor, changes and choices were measured in the encoder.
BEFORE = "70ec2ec"
_ROOT = Path(__file__).parents[3]
_WORKER = Path(__file__).with_name("before_after_worker.py")
_MEMORY = """
import sys
sys.path.insert(0, {worker!r})
from before_after_worker import BOUND, import_build
nz = import_build({folder!r})
nz.compress_file({new!r}, {out!r}, {base!r}, bound=f"abs:{{BOUND}}", threads=1)
"""


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=_ROOT, check=True, capture_output=True, text=True).stdout.strip()


def build(commit: str, folder: Path) -> Path:
    """Install a commit into a folder, without what it depends on; returns the folder."""
    source = folder / f"source-{commit}"
    _git("worktree", "add", "--detach", str(source), commit)
    target = folder / f"build-{commit}"
    try:
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation",
             "--target", str(target), str(source)], check=True,
        )  # fmt: skip
    finally:
        _git("worktree", "remove", "--force", str(source))
    return target


class _Side:
    """A process that runs calls of one build."""

    def __init__(self, folder: Path, new: Path, base: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(_WORKER), str(folder), str(new), str(base)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        self.cases: list[str] = self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("a worker ended early; its error is above")
        return json.loads(line)

    def call(self, case: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(case + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = self._read()
        return answer

    def __enter__(self) -> _Side:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()


def measure(
    builds: dict[str, Path], new: Path, base: Path, rounds: int, pairs: int, only: list[str]
) -> dict[str, dict[str, Any]]:
    """Seconds and bytes of each case by build."""
    seconds: dict[str, dict[str, list[float]]] = {}
    sizes: dict[str, dict[str, int]] = {}
    for number in range(pairs):
        with contextlib.ExitStack() as stack:
            sides = {name: stack.enter_context(_Side(folder, new, base)) for name, folder in builds.items()}
            for case in next(iter(sides.values())).cases:
                if only and not any(part in case for part in only):
                    continue
                for n, name in _turns(list(sides), rounds):
                    answer = sides[name].call(case)
                    if n:  # the first call warms up
                        seconds.setdefault(case, {}).setdefault(name, []).append(answer["seconds"])
                    if answer["bytes"] is not None:
                        sizes.setdefault(case, {})[name] = answer["bytes"]
                print(number, case, _row(seconds[case], sizes.get(case)), file=sys.stderr)
    return {case: _row(found, sizes.get(case)) for case, found in seconds.items()}


def _turns(names: list[str], rounds: int) -> Iterator[tuple[int, str]]:
    """Who is next, and in which round; each side goes first in every second round."""
    for n in range(rounds + 1):
        yield from ((n, name) for name in (names if n % 2 else names[::-1]))


def _row(seconds: dict[str, list[float]], sizes: dict[str, int] | None) -> dict[str, Any]:
    before, after = (statistics.median(seconds[side]) for side in ("before", "after"))
    # Of two calls that followed each other.
    ratios = sorted(a / b for a, b in zip(seconds["after"], seconds["before"], strict=True))
    n = len(ratios)
    row: dict[str, Any] = {
        "before_ms": round(1e3 * before, 2),
        "after_ms": round(1e3 * after, 2),
        "ratio": round(statistics.median(ratios), 3),
        "quartiles": [round(ratios[n // 4], 3), round(ratios[-1 - n // 4], 3)],
    }
    return row if sizes is None else {**row, "bytes": sizes}


def peak_memory(builds: dict[str, Path], new: Path, base: Path, rounds: int) -> dict[str, float]:
    """Most anonymous memory, in MB, of compressing from file to file; medians."""
    found: dict[str, list[float]] = {name: [] for name in builds}
    for _, name in _turns(list(builds), rounds):
        with tempfile.TemporaryDirectory() as scratch:
            paths = {"folder": str(builds[name]), "new": str(new), "base": str(base), "out": f"{scratch}/a.nz"}
            code = _MEMORY.format(worker=str(_WORKER.parent), **paths)
            found[name].append(watch(code, [])["anonymous_mb"])
    return {name: statistics.median(values) for name, values in found.items()}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench speed_before_after", description=__doc__)
    parser.add_argument("--data", help="folder with the traces (or NEARZIP_DATA)")
    parser.add_argument("--against", default=BEFORE, metavar="COMMIT")
    parser.add_argument("--rounds", type=int, default=7, help="calls of each case in each process (default: 7)")
    parser.add_argument("--pairs", type=int, default=3, help="pairs of processes (default: 3)")
    parser.add_argument("--only", nargs="+", default=[], metavar="TEXT", help="cases that contain one of these")
    parser.add_argument("--builds", nargs=2, type=Path, metavar="DIR", help="installed builds; writes nothing")
    options = parser.parse_args(arguments)
    source, old, new = traces.tiled(traces.folder(options.data))
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("new.safetensors", "base.safetensors")]
        save_file(new, files[0])
        save_file(old, files[1])
        if options.builds:
            builds = dict(zip(("before", "after"), (path.resolve() for path in options.builds), strict=True))
        else:
            builds = {
                side: build(_git("rev-parse", "--short", commit), Path(folder))
                for side, commit in (("before", options.against), ("after", "HEAD"))
            }
        rows = measure(builds, files[0], files[1], options.rounds, options.pairs, options.only)
        memory = peak_memory(builds, files[0], files[1], 3)
    result = {
        "source": source,
        "megabytes": round(sum(w.nbytes for w in new.values()) / 1e6, 1),
        "against": _git("rev-parse", "--short", options.against),
        "rounds": options.rounds,
        "pairs": options.pairs,
        "load_average": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "cases": rows,
        "peak_memory_mb": memory,
    }
    print(json.dumps(result, indent=1), file=sys.stderr)
    if not options.builds:
        record.save("speed_before_after", result)
