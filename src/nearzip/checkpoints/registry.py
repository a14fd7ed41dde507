"""Which format a file is of: by its content, not by its name."""

from __future__ import annotations

import os

from nearzip.checkpoints.arrays import Npy, Npz
from nearzip.checkpoints.base import Format
from nearzip.checkpoints.chunked import OCDBT, ZARR
from nearzip.checkpoints.embedded import EmbeddedFormat
from nearzip.checkpoints.flax import FLAX
from nearzip.checkpoints.gguf import GGUF
from nearzip.checkpoints.hdf5 import HDF5, KERAS
from nearzip.checkpoints.onnx import ONNX
from nearzip.checkpoints.pytorch import PyTorch
from nearzip.checkpoints.safetensors import Safetensors
from nearzip.checkpoints.script import TORCHSCRIPT
from nearzip.errors import CorruptError, UsageError

__all__ = ["BY_NAME", "ENDINGS", "FORMATS", "format_for", "format_of", "read_head", "recognized"]

_SAFETENSORS = Safetensors()
#: Every format; those recognized by more of the content first.
FORMATS: tuple[Format, ...] = (_SAFETENSORS, TORCHSCRIPT, PyTorch(), KERAS, Npz(), Npy(), GGUF, ONNX, HDF5, FLAX)
BY_NAME: dict[str, Format] = {each.name: each for each in (*FORMATS, EmbeddedFormat(), OCDBT, ZARR)}
#: File name endings that can be written whatever the archive was made from.
ENDINGS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".th", ".npz")
_HEAD = 64
#: Files often found instead of a checkpoint: first bytes, what it is, what to do.
_OTHERS = {
    b"version https://git-lfs": "is a git-lfs pointer, not the file itself; fetch it: git lfs pull",
    b"<!DOCTYPE html": "is a web page, not a checkpoint; download the file itself",
    b"<html": "is a web page, not a checkpoint; download the file itself",
    b"\x89NZIP\r\n\x1a": "is a nearzip archive",
    b"\x1f\x8b": "is compressed with gzip; decompress it first",
    b"\x28\xb5\x2f\xfd": "is compressed with Zstandard; decompress it first",
    b"\xfd7zXZ\x00": "is compressed with xz; decompress it first",
}


def read_head(path: str) -> bytes:
    """The first bytes of a file."""
    with open(path, "rb") as stream:
        return stream.read(_HEAD)


def refuse_pointers(name: str, head: bytes) -> None:
    """Raise UsageError for stand-ins of a checkpoint: a Git LFS pointer, a web page."""
    for start, reason in _OTHERS.items():
        if head.lower().startswith(start.lower()) and not start.startswith(b"\x89NZIP"):
            raise UsageError(f"{name}: {reason}")


def format_of(path: str) -> Format:
    """The format of an existing file.

    Raises
    ------
    CorruptError
        It is empty, or its name promises a format that its content is not.
    UsageError
        It is something else.
    """
    head = read_head(path)
    if not head:
        raise CorruptError(f"{path}: the file is empty")
    found = recognized(path, head)
    if found is not None:
        return found
    by_name = formats_by_ending(path)
    if by_name:
        return by_name[-1]  # whose reader says what is wrong
    raise UsageError(
        f"{path}: is no checkpoint that is known, and has an unknown ending; known are {', '.join(known_endings())}"
    )


def recognized(path: str, head: bytes) -> Format | None:
    """The format that a file's content shows. Raises UsageError for stand-ins such as Git LFS pointers."""
    # First: its files begin with a length, which may look like the beginning of any other.
    if _SAFETENSORS.recognizes(path, head):
        return _SAFETENSORS
    refuse_pointers(path, head)
    return next((each for each in FORMATS if each.recognizes(path, head)), None)


def ending_of(path: str | os.PathLike[str]) -> str:
    """The ending of a file's name, lower case: the longest that a format claims, or what follows the last dot."""
    name = os.path.basename(os.fspath(path)).lower()
    claimed = [ending for each in FORMATS for ending in each.endings if name.endswith(ending)]
    return max(claimed, key=len, default=os.path.splitext(name)[1])


def formats_by_ending(path: str | os.PathLike[str]) -> list[Format]:
    """The formats that claim a file's ending; the one that is written for it by default comes last."""
    ending = ending_of(path)
    found = [each for each in FORMATS if ending in each.endings]
    return sorted(found, key=lambda each: each.name in ("PyTorch", "safetensors", "npz", "npy"))


def known_endings() -> list[str]:
    return sorted({ending for each in FORMATS for ending in each.endings})


def format_for(path: str | os.PathLike[str], kind: str | None) -> Format:
    """The format to write for a file's name; `kind`: the embedded kind that the archive was made from, if any.

    Raises UsageError for an ending that is not known.
    """
    found = formats_by_ending(path)
    for each in found:
        if each.name == kind:
            return each
    if kind is not None and not found and ending_of(path) == "":
        return BY_NAME[kind] if kind in BY_NAME else EmbeddedFormat()
    if not found:
        raise UsageError(
            f"{os.fspath(path)}: unknown ending {ending_of(path)!r}; use one of {', '.join(ENDINGS)}"
            + (f", or that of the {kind} file" if kind else "")
        )
    return found[-1]
