"""Run and record the long fault tests of the store: how often each ran, and whether it passed.

Each selection is a process of its own; `--only` runs some and keeps the records of the others.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

from experiments.lab import record

_TESTS = Path(__file__).parents[3] / "tests" / "store"
#: Name: file and -k expression.
SELECTIONS = {
    "ended at every operation, commit, forward": ("test_faults.py", "ended and commit and forward"),
    "ended at every operation, commit, backward": ("test_faults.py", "ended and commit and backward"),
    "ended at every operation, prune and re-base, forward": ("test_faults.py", "ended and prune and forward"),
    "ended at every operation, prune and re-base, backward": ("test_faults.py", "ended and prune and backward"),
    "ended at every operation, shards, forward": ("test_faults.py", "ended and shards and forward"),
    "ended at every operation, shards, backward": ("test_faults.py", "ended and shards and backward"),
    "ended at every operation, repair and configure": ("test_faults.py", "ended and (repair or configure)"),
    "ended at every operation, repair of a damaged store": ("test_repair_faults.py", "every_operation and end"),
    "every operation fails once, repair of a damaged store": (
        "test_repair_faults.py",
        "every_operation and (EIO or EACCES or short)",
    ),
    "ended at every operation, pull": ("test_pull_faults.py", "process_ended"),
    "every operation fails once, pull": ("test_pull_faults.py", "every_operation_failing"),
    "the connection cut at every block of a pull": ("test_pull_faults.py", "cut_at_every_block"),
    "every operation fails once, commit": ("test_faults.py", "fails_once and commit"),
    "every operation fails once, prune": ("test_faults.py", "fails_once and prune"),
    "disk full from every operation on": ("test_faults.py", "disk_is_full or no_byte_free"),
    "disk full from every operation on, repair": ("test_repair_faults.py", "every_operation and full"),
    "power fails at every operation": ("test_faults.py", "power"),
    "8 writers x 250, disk": ("test_writers.py", "many_writers_on_a_disk and 8-250"),
    "2 writers x 1000, disk": ("test_writers.py", "many_writers_on_a_disk and 2-1000"),
    "8 writers x 250, memory": ("test_writers.py", "many_writers_in_memory and 8-250"),
    "2 writers x 1000, memory": ("test_writers.py", "many_writers_in_memory and 2-1000"),
    "8 writers x 250, S3": ("test_writers.py", "many_writers_on_s3 and 8-250"),
    "2 writers x 1000, S3": ("test_writers.py", "many_writers_on_s3 and 2-1000"),
    "killed at random, 501 times": ("test_writers.py", "500_times"),
    "every file damaged in turn": ("test_damage.py", "every_file_in_turn"),
    "against a dict": ("test_state_machine.py", "TestStore"),
    "10 000 versions": ("test_scale.py", "ten_thousand"),
}


def run(name: str, timeout: float) -> dict[str, Any]:
    """One selection; its tests, how many operations they went through, and the time."""
    file, expression = SELECTIONS[name]
    commit = record.commit()
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        options = ["--long", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", "-o", "junit_family=xunit1"]
        command = [sys.executable, "-m", "pytest", *options, str(_TESTS / file), "-k", expression]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
        except subprocess.TimeoutExpired:
            return {"passed": False, "problem": f"not done after {timeout:g} s", "commit": commit}
        suite = ET.parse(report).getroot()[0]  # noqa: S314 (our own)
    n = int(suite.attrib["tests"]) - int(suite.attrib["skipped"])
    operations = [int(p.attrib["value"]) for p in suite.iter("property") if p.attrib["name"] == "operations"]
    seconds = float(suite.attrib["time"])
    found: dict[str, Any] = {"passed": done.returncode == 0, "tests": n, "seconds": seconds, "commit": commit}
    if operations:
        found["operations"] = sum(operations)
    if done.returncode:
        found["problem"] = done.stdout.strip().splitlines()[-1][:300]
    return found


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench store_faults", description=__doc__)
    parser.add_argument("--only", nargs="+", default=list(SELECTIONS), choices=SELECTIONS, metavar="NAME")
    parser.add_argument("--timeout", type=float, default=3600, help="seconds for each selection")
    options = parser.parse_args(arguments)
    path = record.RESULTS / "store_faults.json"
    for name in options.only:
        found = run(name, options.timeout)
        # Read late: another process may be recording other runs.
        before = json.loads(path.read_text())["runs"] if path.exists() else {}
        print(name, found, file=sys.stderr)
        record.save("store_faults", {"runs": {**before, name: found}}, ("nearzip", "numpy", "fsspec", "s3fs", "moto"))
