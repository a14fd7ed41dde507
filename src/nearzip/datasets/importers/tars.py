"""WebDataset: tar files in which the members of a sample share their name up to the first dot."""

from __future__ import annotations

import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nearzip import strictjson
from nearzip.datasets.images import read_image
from nearzip.datasets.importers.folders import ENDINGS
from nearzip.datasets.samples import PartSamples, Samples
from nearzip.errors import CorruptError, LimitError, UsageError
from nearzip.fileio import naming_errors
from nearzip.tensors import Array

_MAX_MEMBERS = 50_000_000
_MAX_LABEL = 1 << 20


def recognizes(path: Path) -> bool:
    """Whether the name ends in .tar. Compressed archives have no random access: unpack them first."""
    return path.is_file() and path.suffix.lower() == ".tar"


@dataclass(frozen=True)
class TarSamples(Samples):
    """Images of a tar file; `places` are their offsets and lengths."""

    path: Path
    names: Sequence[str]
    places: Sequence[tuple[int, int]]
    mode: str | None
    columns: Mapping[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> Array:
        at, length = self.places[i]
        with naming_errors("read", self.path), self.path.open("rb") as stream:
            stream.seek(at)
            data = stream.read(length)
        return read_image(data, f"{self.path}: {self.names[i]}", self.mode)

    def part(self, begin: int, end: int) -> Samples:
        cut = TarSamples(self.path, self.names[begin:end], self.places[begin:end], self.mode)
        return PartSamples(cut, 0, end - begin)


def read(path: Path, *, mode: str | None, labels: str | None, **_: Any) -> TarSamples:
    """Images, and labels from `.cls`, or from the field "label" (or `labels`) of `.json`."""
    members, texts = _members(path)
    images = [(key, end) for key, end in members if f".{end}" in ENDINGS]
    if not images:
        raise UsageError(f"{path}: holds no image (key.jpg, key.png, ..)")
    if len({key for key, _ in images}) < len(images):
        raise UsageError(f"{path}: a sample has two images; a data set here has one for each sample")
    names = [f"{key}.{end}" for key, end in images]
    columns: dict[str, Any] = {"name": [key for key, _ in images]}
    found = [_label(path, key, texts, labels) for key, _ in images]
    if any(label is not None for label in found):
        missing = [key for (key, _), label in zip(images, found, strict=True) if label is None]
        if missing:
            raise UsageError(f"{path}: sample {missing[0]!r} has no label, and others have one")
        columns["label"] = found
    return TarSamples(path, names, [members[image] for image in images], mode, columns)


def _members(path: Path) -> tuple[dict[tuple[str, str], tuple[int, int]], dict[tuple[str, str], bytes]]:
    """Places of all members by key and ending, and the content of labels."""
    places: dict[tuple[str, str], tuple[int, int]] = {}
    texts: dict[tuple[str, str], bytes] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                folder, slash, base = member.name.rpartition("/")
                stem, _, end = base.partition(".")
                name = (f"{folder}{slash}{stem}", end.lower())
                if name in places or len(places) >= _MAX_MEMBERS:
                    raise CorruptError(f"{path}: member {member.name[:80]!r} is there twice")
                places[name] = (member.offset_data, member.size)
                if name[1] in ("cls", "json"):
                    if member.size > _MAX_LABEL:
                        raise LimitError(f"{path}: label {member.name[:80]!r} takes {member.size} bytes")
                    stream = tar.extractfile(member)
                    texts[name] = b"" if stream is None else stream.read()
    except tarfile.TarError as error:
        raise CorruptError(f"{path}: is no tar file, or damaged: {error}") from None
    return places, texts


def _label(path: Path, key: str, texts: Mapping[tuple[str, str], bytes], name: str | None) -> Any:
    if (key, "cls") in texts:
        said = texts[key, "cls"].decode("utf-8", "replace").strip()
        return int(said) if said.lstrip("-").isdecimal() else said
    if (key, "json") in texts:
        where = f"{path}: {key}.json"
        return strictjson.as_dict(strictjson.load(texts[key, "json"], where), where).get(name or "label")
    return None
