"""Data sets of ours as folders of images, WebDataset tars or arrays. Written whole or not at all."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from nearzip.datasets.codecs.files import Jpeg, Png, WebP
from nearzip.datasets.images import encode_image
from nearzip.datasets.reading import Reader
from nearzip.errors import UsageError
from nearzip.fileio import atomic_file, atomic_folder
from nearzip.tensors import Array

__all__ = ["export"]

Progress = Callable[[int, int], None]
_FORMATS = {"jpeg": ("jpg", Jpeg), "png": ("png", Png), "webp": ("webp", WebP)}
_DIGITS = 6


def export(
    reader: Reader,
    output: str | os.PathLike[str],
    *,
    format: str = "png",
    quality: int = 90,
    force: bool = False,
    progress: Progress | None = None,
) -> int:
    """Write all samples in a form that other programs read; the number of samples.

    Parameters
    ----------
    reader : Reader
    output : path
        `x.tar`: WebDataset, with `.cls` for labels. `x.npz`: the array `images` and the columns (samples of one
        shape).
        Anything else: a folder of image files, in one folder for each class where there are labels.
    format : str
        Of image files: "png", "jpeg" or "webp".
    quality : int
        Of JPEG (4:4:4) and WebP.
    force : bool
        Replace what is there.

    Raises
    ------
    UsageError
        Samples that are no images (give `.npz`), or something is there already.
    """
    target = Path(output)
    if target.suffix == ".npz":
        return _arrays(reader, target, force)
    if format not in _FORMATS:
        raise UsageError(f"format is one of {', '.join(_FORMATS)}, not {format!r}")
    if not reader.spec.is_image:
        raise UsageError(f"{reader.name}: holds {reader.spec}, which is no image; export to .npz")
    encoder = _Encoder(format, quality, reader.spec.channels or 3)
    if target.suffix == ".tar":
        return _tar(reader, target, encoder, force, progress)
    return _folder(reader, target, encoder, force, progress)


@dataclass(frozen=True)
class _Encoder:
    format: str
    quality: int
    channels: int

    @property
    def ending(self) -> str:
        return _FORMATS[self.format][0]

    def __call__(self, pixels: Array) -> bytes:
        if self.format == "png":
            return encode_image(pixels, "PNG")
        if self.format == "webp":
            return encode_image(pixels, "WEBP", quality=self.quality, method=6)
        if self.channels in (2, 4):
            raise UsageError("JPEG has no transparency; export to png or webp")
        return encode_image(pixels, "JPEG", quality=self.quality, subsampling="4:4:4", optimize=True)


def _each(reader: Reader, progress: Progress | None) -> Iterator[tuple[int, Array]]:
    for i, sample in enumerate(reader):
        yield i, sample
        if progress:
            progress(i + 1, len(reader))


def _labels(reader: Reader) -> Any:
    return reader.columns.get("label")


def _names(reader: Reader) -> list[str]:
    """A name for each sample that is safe as a path: its own last part where all are different."""
    own = reader.columns.get("name")
    if isinstance(own, list):
        stems = [PurePosixPath(name.replace("\\", "/")).name.split(".")[0] for name in own]
        if len(set(stems)) == len(stems) and all(_is_plain(stem) for stem in stems):
            return stems
    return [f"{i:0{_DIGITS}d}" for i in range(len(reader))]


def _is_plain(name: str) -> bool:
    return bool(name) and len(name) < 200 and all(c.isalnum() or c in "-_ ()" for c in name)


def _class_of(reader: Reader, label: Any) -> str:
    if (
        isinstance(label, (int, np.integer))
        and 0 <= label < len(reader.classes)
        and _is_plain(reader.classes[int(label)])
    ):
        return reader.classes[int(label)]
    said = str(label)
    return said if _is_plain(said) else "other"


def _folder(reader: Reader, target: Path, encoder: _Encoder, force: bool, progress: Progress | None) -> int:
    labels, names = _labels(reader), _names(reader)
    files = [
        f"{_class_of(reader, labels[i])}/{name}.{encoder.ending}" if labels is not None else f"{name}.{encoder.ending}"
        for i, name in enumerate(names)
    ]
    with atomic_folder(target, files, force) as folder:
        for i, pixels in _each(reader, progress):
            path = folder / files[i]
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(encoder(pixels))
    return len(files)


def _tar(reader: Reader, target: Path, encoder: _Encoder, force: bool, progress: Progress | None) -> int:
    labels = _labels(reader)
    others = {name: reader.columns[name] for name in reader.columns if name != "label"}
    with atomic_file(target, force=force) as stream, tarfile.open(fileobj=stream, mode="w") as tar:
        for i, pixels in _each(reader, progress):
            key = f"{i:0{_DIGITS}d}"
            _add(tar, f"{key}.{encoder.ending}", encoder(pixels))
            if labels is not None:
                _add(tar, f"{key}.cls", str(labels[i]).encode())
            if others:
                said = {name: _plain(values[i]) for name, values in others.items()}
                if labels is not None:
                    said["label"] = _plain(labels[i])
                _add(tar, f"{key}.json", json.dumps(said).encode())
    return len(reader)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else value


def _arrays(reader: Reader, target: Path, force: bool) -> int:
    if reader.same_shape is None:
        raise UsageError(f"{reader.name}: samples differ in shape; an .npz holds samples of one shape")
    arrays: Mapping[str, Array] = {name: np.asarray(reader.columns[name]) for name in reader.columns}
    renamed = {("labels" if name == "label" else name): values for name, values in arrays.items()}
    with atomic_file(target, force=force) as stream:
        np.savez(stream, images=np.stack(reader.some(0, len(reader))), **renamed)  # type: ignore[arg-type]
    return len(reader)
