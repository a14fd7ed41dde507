"""Results, with the machine, the commit and the versions that they were measured with."""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"
_ROOT = Path(__file__).parents[2]


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def machine() -> dict[str, Any]:
    """Processor, memory, operating system and Python."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gib": round(pages / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def commit() -> str:
    """The commit measured, with "+" if files differ from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=_ROOT, capture_output=True, text=True, check=False
        ).stdout.strip()

    changed = git("status", "--porcelain", "--", "src", "experiments/*.py")
    return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def versions(*packages: str) -> dict[str, str]:
    """Installed versions; a package that is missing is named."""
    return {package: _version(package) for package in packages}


def load(name: str) -> dict[str, Any]:
    """The content of `results/NAME.json`; empty if there is no such file."""
    return load_from(RESULTS, name)


def finished_rows(name: str, **same: Any) -> list[dict[str, Any]]:
    """Rows of a result that was saved row by row at this commit, with these fields: a run that was stopped goes on."""
    found = load(name)
    if found.get("commit") != commit() or any(found.get(key) != value for key, value in same.items()):
        return []
    rows: list[dict[str, Any]] = found["rows"]
    return rows


def load_from(folder: Path, name: str) -> dict[str, Any]:
    """The same of another folder."""
    path = folder / f"{name}.json"
    loaded: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return loaded


def save(
    name: str, result: dict[str, Any], packages: Sequence[str] = ("nearzip", "numpy"), folder: Path = RESULTS
) -> Path:
    """Write a result with its circumstances to `results/NAME.json`, or into another folder."""
    document = {
        "name": name,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "commit": commit(),
        "machine": machine(),
        "versions": versions(*packages),
        **result,
    }
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.json"
    part = path.with_suffix(".part")
    # A result with NaN or an infinity is not JSON: measurements write None.
    part.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
    part.replace(path)
    print(f"wrote {os.path.relpath(path, _ROOT)}", file=sys.stderr)
    return path


def timed(work: Callable[[], Any], rounds: int = 1) -> tuple[Any, float]:
    """The result, and the median of its processor seconds."""
    seconds = []
    for _ in range(rounds):
        begin = time.process_time()
        result = work()
        seconds.append(time.process_time() - begin)
    return result, statistics.median(seconds)


def interleaved(
    sides: dict[str, Callable[[], object]], rounds: int = 9, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Median seconds of each side; the sides take turns, so that a busy machine slows all of them alike.

    `clock`: `time.process_time` for what one core does while others use the machine as well.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for round_number in range(rounds + 1):
        for name, side in sides.items():
            begin = clock()
            side()
            if round_number:  # the first round warms up
                seconds[name].append(clock() - begin)
    return {name: statistics.median(values) for name, values in seconds.items()}
