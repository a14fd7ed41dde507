"""Folders of image files; folders below them are the classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nearzip.datasets.images import read_image
from nearzip.datasets.samples import PartSamples, Samples
from nearzip.errors import UsageError
from nearzip.fileio import naming_errors
from nearzip.tensors import Array

__all__ = ["FileSamples", "read", "recognizes"]

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif", ".jxl")


def recognizes(path: Path) -> bool:
    """Any folder."""
    return path.is_dir()


@dataclass(frozen=True)
class FileSamples(Samples):
    """Image files, decoded when asked for."""

    folder: Path
    files: Sequence[str]
    mode: str | None
    columns: Mapping[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> Array:
        path = self.folder / self.files[i]
        with naming_errors("read", path):
            data = path.read_bytes()
        return read_image(data, str(path), self.mode)

    def part(self, begin: int, end: int) -> Samples:
        return PartSamples(FileSamples(self.folder, self.files[begin:end], self.mode), 0, end - begin)


def read(path: Path, *, mode: str | None, **_: Any) -> FileSamples:
    """Images in name order. Raises UsageError if there is none, or some have a class and others not."""
    found = sorted(
        each.relative_to(path) for each in path.rglob("*") if each.suffix.lower() in ENDINGS and each.is_file()
    )
    if not found:
        raise UsageError(f"{path}: holds no image ({', '.join(ENDINGS[:4])}, ..)")
    names = [each.as_posix() for each in found]
    columns: dict[str, Any] = {"name": names}
    parents = [each.parent.as_posix() for each in found]
    if set(parents) == {"."}:
        return FileSamples(path, names, mode, columns)
    if "." in parents:
        bare = names[parents.index(".")]
        raise UsageError(f"{path}: {bare!r} has no label: it is in no class's folder, and others are")
    classes = sorted(set(parents))
    columns["label"] = [classes.index(parent) for parent in parents]
    return FileSamples(path, names, mode, columns, tuple(classes))
