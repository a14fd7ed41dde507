"""Every change of every byte of little archives of all methods, and what refusing each hostile file takes.

The long forms of `tests/test_damage.py` and `tests/test_hostile.py`, written down with their circumstances.
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
                *(sys.executable, "-m", "pytest", "-q", "--long", "tests/test_damage.py", "tests/test_hostile.py"),
                *("-k", "every_change_of_every_byte or test_measure", *arguments),
            ],
            env={**os.environ, "NEARZIP_RESULTS": folder},
            check=True,
        )
        found = {name: json.loads((Path(folder) / f"{name}.json").read_text()) for name in ("damage", "hostile")}
    record.save("damage", found, ("nearzip", "numpy", "ml_dtypes", "zstandard", "xxhash"))
