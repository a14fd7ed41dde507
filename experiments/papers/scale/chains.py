"""Every saved version of a training coded against the decoded one before it; it goes on where it was stopped."""

from __future__ import annotations

import json
import lzma
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from safetensors.numpy import load_file, save_file

import nearzip as nz
from experiments.papers.scale.choosing import algorithm_1, compressed
from experiments.papers.scale.training import PLAIN

Tensors = dict[str, np.ndarray]
Score = Callable[[Tensors], float]
Row = dict[str, Any]


@dataclass(frozen=True)
class Coding:
    """How versions are coded, and in which way the network was trained."""

    method: str
    bound: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    with_base: bool = True
    way: str = PLAIN

    def first(self, new: Tensors, base: Tensors | None) -> tuple[Row, Tensors]:
        """A version's bytes, and what a reader gets from them."""
        base = base if self.with_base else None
        archive = compressed(new, base, self.method, self.bound, self.options)
        return {"bytes": archive.nbytes}, nz.decompress(archive.to_bytes(), base, threads=1)


#: QD-Compressor's Table 5 and Figure 12 (16 bits: its Table 4). SZ's and Delta-DNN's bounds are not given there: those
#: of docs/papers/qd-compressor.md.
CODINGS: dict[str, Coding] = {
    "Zstd": Coding("zstd", None, {"level": 3}, with_base=False),
    "SZ": Coding("sz3", "rel:1e-3", with_base=False),
    "Delta-DNN": Coding("delta-dnn", None, {"mode": "relative", "eps": 0.05}),
    "LC": Coding("lc-checkpoint", None, {"bits": 3}),
    "QD, 8 bits": Coding("qd-compressor", None, {"bits": 8}, way="8 bits, M"),
    "QD, 4-8 bits": Coding("qd-compressor", way="4-8 bits, M"),
    "nearzip, abs 0.1 %": Coding("nearzip", "abs:1e-3"),
}
SIXTEEN = {"QD, 16 bits": Coding("qd-compressor", None, {"bits": 16}, way="16 bits, M")}
#: Delta-DNN's Tables 1 to 3: Algorithm 1 for every version.
CHOSEN = {"Δ-DNN relative": "relative", "Δ-DNN absolute": "absolute", "SZ": "sz"}
LOSSLESS: dict[str, Callable[[bytes], bytes]] = {
    "LZMA": lzma.compress,
    "Zstd": lambda raw: zstandard.ZstdCompressor(level=3).compress(raw),
}


@dataclass(frozen=True)
class Followed:
    """A folder with one file of rows, and one with the last decoded version, for each label."""

    folder: Path
    label: str

    @property
    def _path(self) -> Path:
        safe = "".join(letter if letter.isalnum() else "_" for letter in self.label)
        return self.folder / f"{safe}.json"

    def rows(self, names: Sequence[str], settings: str) -> list[Row]:
        """Those of an earlier run on these versions with these settings."""
        document = json.loads(self._path.read_text()) if self._path.is_file() else {}
        found: list[Row] = document.get("rows", [])
        same = document.get("settings") == settings and [row["file"] for row in found] == list(names[: len(found)])
        return found if same and self._path.with_suffix(".safetensors").is_file() else []

    def base(self) -> Tensors:
        return load_file(self._path.with_suffix(".safetensors"))

    def write(self, rows: list[Row], settings: str, restored: Tensors) -> None:
        """The decoded version last: rows without it are measured again."""
        self.folder.mkdir(parents=True, exist_ok=True)
        base, part = self._path.with_suffix(".safetensors"), self._path.with_suffix(".part")
        save_file({name: np.ascontiguousarray(value) for name, value in restored.items()}, part)
        part.replace(base)
        part.write_text(json.dumps({"settings": settings, "rows": rows}, indent=1) + "\n")
        part.replace(self._path)


def follow(
    versions: Sequence[Path],
    place: Followed,
    code: Callable[[Tensors, Tensors | None], tuple[Row, Tensors]],
    settings: str,
    score: Score,
) -> list[Row]:
    """A row for each version: file, bytes as they are and coded, accuracy of what is restored."""
    rows = place.rows([path.name for path in versions], settings)
    base = place.base() if rows else None
    for path in versions[len(rows) :]:
        new = load_file(path)
        row, base = code(new, base)
        raw = sum(value.nbytes for value in new.values())
        rows = [*rows, {"file": path.name, "raw": raw, **row, "accuracy": score(base)}]
        place.write(rows, settings, base)
        print(f"{place.label}: {rows[-1]}", file=sys.stderr, flush=True)
    return rows


def coded(versions: Sequence[Path], folder: Path, label: str, coding: Coding, score: Score) -> list[Row]:
    """A chain of one of `CODINGS`."""
    return follow(versions, Followed(folder, label), coding.first, repr(coding), score)


def chosen(versions: Sequence[Path], folder: Path, label: str, score: Score) -> list[Row]:
    """A chain in which Algorithm 1 chooses every bound; the first version is kept whole, as in section 4.2."""
    how = CHOSEN[label]

    def code(new: Tensors, base: Tensors | None) -> tuple[Row, Tensors]:
        if base is None:
            return {"bytes": sum(value.nbytes for value in new.values()), "whole": True}, new
        point, restored = algorithm_1(new, None if how == "sz" else base, how, score)
        return {"bytes": point["bytes"], "eps": point["eps"], "change": point["accuracy_change"]}, restored

    return follow(versions, Followed(folder, label), code, how, score)


def lossless(versions: Sequence[Path]) -> dict[str, list[int]]:
    """Bytes of each version by LZMA and by Zstd."""
    raws = (b"".join(value.tobytes() for value in load_file(path).values()) for path in versions)
    sizes = [[len(pack(raw)) for pack in LOSSLESS.values()] for raw in raws]
    return {name: [row[i] for row in sizes] for i, name in enumerate(LOSSLESS)}
