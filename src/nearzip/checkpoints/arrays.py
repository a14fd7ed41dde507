"""NumPy's files: .npz, a zip of arrays, and .npy, one array."""

from __future__ import annotations

import contextlib
import lzma
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from nearzip.checkpoints.base import CheckpointWriter, mapped, naming_file
from nearzip.checkpoints.pytorch import zip_names
from nearzip.errors import CorruptError, Error, UsageError
from nearzip.tensors import Array, Checkpoint, TensorSpec, as_array, keeping_last

__all__ = ["Npy", "Npz"]

#: What zip and NumPy raise on damaged, encrypted or unknown content.
_DAMAGE = (ValueError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error, lzma.LZMAError)


def _header(path: str, name: str, stream: Any) -> tuple[TensorSpec, np.dtype[Any], bool]:
    """What an array's header says, and whether it is in column-major order."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    if dtype.names:
        raise UsageError(
            f"{path}: array {name!r} has several fields ({', '.join(dtype.names)[:80]}); save each by itself"
        )
    if dtype.kind == "V":
        raise UsageError(
            f"{path}: array {name!r} reads as raw bytes ({dtype}): NumPy's files cannot hold bfloat16 or float8, its "
            "real type is lost. Save as .safetensors or .pt"
        )
    if dtype.kind == "O":
        raise UsageError(f"{path}: array {name!r} holds Python objects, which would have to be unpickled")
    with naming_file(path):
        return (
            TensorSpec(name, as_array(name, np.empty(0, dtype.newbyteorder("="))).dtype.name, tuple(shape)),
            dtype,
            fortran,
        )


def _check_dtypes(path: str, specs: Mapping[str, TensorSpec], ending: str) -> None:
    for spec in specs.values():
        if spec.numpy_dtype.isbuiltin != 1:
            raise UsageError(
                f"{path}: {ending} cannot hold tensor {spec.name!r} of dtype {spec.dtype}; write .safetensors or .pt"
            )


@dataclass(frozen=True)
class Npz:
    """numpy.savez."""

    name: str = "npz"
    endings: tuple[str, ...] = (".npz",)

    def recognizes(self, path: str, head: bytes) -> bool:
        if not head.startswith(b"PK"):
            return False
        names = zip_names(path)
        return bool(names) and all(name.endswith(".npy") for name in names)

    def open(self, path: str) -> Checkpoint:
        try:
            # Not by numpy.load: with "a" and "a.npy" in one file, it reads the first for both.
            zipped = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, ValueError, EOFError) as error:
            raise CorruptError(f"{path}: not a readable .npz file: {error}") from None
        try:
            members = {member.removesuffix(".npy"): member for member in zipped.namelist()}
            specs = {}
            for name, member in members.items():
                with zipped.open(member) as stream:
                    specs[name] = _header(path, name, stream)[0]
        except BaseException as error:
            zipped.close()
            if isinstance(error, _DAMAGE) and not isinstance(error, Error):
                raise CorruptError(f"{path}: not a readable .npz file: {error}") from None
            raise

        def read(name: str) -> Array:
            try:
                with zipped.open(members[name]) as stream:
                    return as_array(name, np.lib.format.read_array(stream, allow_pickle=False))
            except Error:
                raise
            except (OSError, *_DAMAGE) as error:
                raise CorruptError(f"{path}: array {name!r}: {error}") from None

        return Checkpoint(specs, keeping_last(read), close=zipped.close)

    def check(self, path: str, specs: Mapping[str, TensorSpec], tree: str | None) -> None:
        for name in specs:
            # zip ends names at NUL; NumPy reads "a.npy" where "a" is there too.
            if "\0" in name or f"{name}.npy" in specs:
                raise UsageError(f"{path}: .npz cannot hold a tensor of the name {name!r}; write another format")
        _check_dtypes(path, specs, ".npz")

    @contextlib.contextmanager
    def writing(
        self, stream: BinaryIO, specs: Mapping[str, TensorSpec], metadata: Mapping[str, str], tree: str | None
    ) -> Iterator[CheckpointWriter]:
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            yield _NpzWriter(archive)


class _NpzWriter:
    def __init__(self, archive: zipfile.ZipFile):
        self._archive = archive

    def write(self, name: str, array: Array) -> None:
        with self._archive.open(zipfile.ZipInfo(name + ".npy"), "w", force_zip64=True) as stream:
            np.lib.format.write_array(stream, array, allow_pickle=False)


@dataclass(frozen=True)
class Npy:
    """numpy.save: one array, named "array"."""

    name: str = "npy"
    endings: tuple[str, ...] = (".npy",)

    def recognizes(self, path: str, head: bytes) -> bool:
        return head.startswith(b"\x93NUMPY")

    def open(self, path: str) -> Checkpoint:
        try:
            with open(path, "rb") as stream:
                spec, dtype, fortran = _header(path, "array", stream)
                start = stream.tell()
        except Error:
            raise
        except _DAMAGE as error:
            raise CorruptError(f"{path}: not a readable .npy file: {error}") from None
        raw = mapped(path)[start:]
        n_bytes = spec.n_elements * dtype.itemsize
        if raw.size != n_bytes:
            raise CorruptError(f"{path}: not a readable .npy file: holds {raw.size} bytes of values, not {n_bytes}")

        def read(name: str) -> Array:
            flat = np.asarray(raw) if raw.ctypes.data % dtype.itemsize == 0 else raw.copy()
            return as_array(name, flat.view(dtype).reshape(spec.shape, order="F" if fortran else "C"))

        return Checkpoint({"array": spec}, read)

    def check(self, path: str, specs: Mapping[str, TensorSpec], tree: str | None) -> None:
        if len(specs) != 1:
            raise UsageError(f"{path}: .npy holds one array, not {len(specs)}; write .npz")
        _check_dtypes(path, specs, ".npy")

    @contextlib.contextmanager
    def writing(
        self, stream: BinaryIO, specs: Mapping[str, TensorSpec], metadata: Mapping[str, str], tree: str | None
    ) -> Iterator[CheckpointWriter]:
        yield _NpyWriter(stream)


class _NpyWriter:
    def __init__(self, stream: BinaryIO):
        self._stream = stream

    def write(self, name: str, array: Array) -> None:
        np.lib.format.write_array(self._stream, array, allow_pickle=False)
