"""Five thousand damaged archives of every method, one after the other in one process of little memory.

The long form of `tests/test_storm.py`, written down with its circumstances: for each method the smallest limit of
addresses in which sound archives decode, the errors by name, and the threads, child processes and open files beyond
those at the start.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from experiments.lab import record


def main(arguments: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "-q", "--long", "tests/test_storm.py"),
                *("-k", "test_measure_thousands", *arguments),
            ],
            env={**os.environ, "NEARZIP_RESULTS": folder},
            check=True,
        )
        found = json.loads((Path(folder) / "damaged_many.json").read_text())
    record.save("damaged_many", found, ("nearzip", "numpy", "zstandard", "pysz", "zfpy", "blosc2"))
