"""HDF5 and Keras' files: the datasets that lie in one piece. Everything else of the file is kept as it is.

h5py says where they are, in a process of its own; restoring needs no library. A `.keras` file is a zip with such a file
in it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

from nearzip.checkpoints.base import mapped
from nearzip.checkpoints.embedded import Checksum, Embedded
from nearzip.checkpoints.found import FoundFormat
from nearzip.checkpoints.pytorch import zip_names
from nearzip.checkpoints.zips import stored_entries
from nearzip.errors import CorruptError, UsageError, missing_extra
from nearzip.tensors import DTYPES

__all__ = ["HDF5", "KERAS"]

_MAGIC = b"\x89HDF\r\n\x1a\n"
_WEIGHTS = ".weights.h5"
_SCRIPT = Path(__file__).with_name("hdf5_child.py")
_SECONDS = 300
#: More bytes than this in pieces or compressed are worth a warning.
_WORTH_SAYING = 1 << 20
#: What Keras calls the state of an optimizer, in its formats of today and before.
_STATES = ("optimizer/", "optimizer_weights/")


def _ask(path: str, start: int, n: int) -> dict[str, Any]:
    """What the child says. Raises CorruptError, MissingExtraError."""
    request = {"path": [each for each in sys.path if each], "file": os.path.abspath(path), "start": start, "n": n}
    # -I: neither the current folder nor the environment decide what the child imports; the parent's path does.
    try:
        run = subprocess.run(  # noqa: S603 - our own script, no shell
            [sys.executable, "-I", str(_SCRIPT)],
            input=json.dumps(request).encode(),
            capture_output=True,
            check=False,
            timeout=_SECONDS,
        )
        answer = json.loads(run.stdout)
    except (subprocess.TimeoutExpired, ValueError):
        raise CorruptError("the HDF5 library fails on it") from None
    if "missing" in answer:
        raise missing_extra("h5py", "hdf5", "reading HDF5 and Keras files")
    if "error" in answer:
        raise CorruptError(answer["error"])
    return dict(answer)


def _datasets(path: str, start: int, n: int) -> list[Embedded]:
    """The datasets of an HDF5 file that is `n` bytes from `start`."""
    answer = _ask(path, start, n)
    _mention(path, answer["others"], bool(answer["found"]))
    found = []
    for name, dtype, shape, offset in answer["found"]:
        each = Embedded(name, dtype if dtype in DTYPES else "uint8", tuple(shape), start + offset)
        if offset + each.spec.n_bytes > n:
            raise CorruptError(f"dataset {name[:80]!r} ends behind the file")
        found.append(each)
    return found


def _mention(path: str, others: list[tuple[str, int]], any_found: bool) -> None:
    """Say which datasets are not read. Raises UsageError if that is all of them."""
    large = [name for name, n_bytes in others if n_bytes]
    n_bytes = sum(n for _, n in others)
    if not large or (any_found and n_bytes < _WORTH_SAYING):
        return
    which = f"dataset {large[0][:80]!r}" + (f" and {len(large) - 1} more" if large[1:] else "")
    reason = (
        f"{which}: stored in chunks, compressed or in the file's header; "
        "to have it read as numbers: h5repack -l CONTI -f NONE in.h5 out.h5"
    )
    if not any_found:
        raise UsageError(f"{path}: {reason}")
    warnings.warn(f"{path}: {reason}; kept as it is, byte for byte", stacklevel=2)


def _in_file(path: str) -> tuple[list[Embedded], list[Checksum]]:
    return _datasets(path, 0, os.path.getsize(path)), []


def _in_zip(path: str) -> tuple[list[Embedded], list[Checksum]]:
    file = mapped(path)
    try:
        with zipfile.ZipFile(path) as zipped:
            names = [name for name in zipped.namelist() if name.endswith(_WEIGHTS)]
            entries = stored_entries(file, zipped)
    except (zipfile.BadZipFile, ValueError, EOFError) as error:
        raise CorruptError(str(error)) from None
    found: list[Embedded] = []
    checksums = []
    for name in names:
        if name not in entries:
            raise UsageError(f"entry {name[:80]!r} is compressed; save the model with Keras 3 again")
        start = "" if len(names) == 1 else f"{name.removesuffix(_WEIGHTS)}/"
        entry = entries[name]
        inner = _datasets(path, entry.start, entry.n)
        found += [Embedded(start + each.name, each.dtype, each.shape, each.offset) for each in inner]
        checksums.append(entry.checksum)
    return found, checksums


#: `model.save_weights("x.weights.h5")`, Keras' `.h5` files, and any other HDF5 file.
HDF5 = FoundFormat(
    "HDF5", (".h5", ".hdf5", ".he5"), _in_file, lambda path, head: head.startswith(_MAGIC), states=_STATES
)
#: `model.save("x.keras")`.
KERAS = FoundFormat(
    "Keras",
    (".keras",),
    _in_zip,
    lambda path, head: head.startswith(b"PK") and any(name.endswith(_WEIGHTS) for name in zip_names(path)),
    states=_STATES,
)
