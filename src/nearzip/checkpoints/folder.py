"""Folders of files: shards of a network, several networks, training state, and everything else byte for byte.

Hugging Face model folders, transformers' `checkpoint-N`, diffusers' pipelines, and folders of PyTorch (DCP) and Orbax.
Names of tensors do not depend on how a network was cut into shards; those of another network in a subfolder begin with
the subfolder, and those of other files with the file's name.
"""

from __future__ import annotations

import json
import os
import re
import stat
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nearzip.attached import attached_tree, files_of, full_tree
from nearzip.checkpoints.base import Format, mapped
from nearzip.checkpoints.chunked import ZARR, chunked_files
from nearzip.checkpoints.distributed import distributed_tensors
from nearzip.checkpoints.embedded import open_embedded
from nearzip.checkpoints.onnx import external_tensors, inner_tensors
from nearzip.checkpoints.registry import format_of, read_head, recognized
from nearzip.errors import CorruptError, UsageError
from nearzip.tensors import Array, Checkpoint, TensorSpec

__all__ = ["Member", "files_in", "is_folder", "members_of", "network_in", "open_folder"]

_INDEX = ".index.json"
#: What the network itself is called, among the files of a folder.
_NETWORKS = ("model", "pytorch_model", "diffusion_pytorch_model", "adapter_model", "consolidated")
#: What training keeps beside it: exact, unless a bound names it, since a rounded second moment of zero ends a training.
_STATES = ("optimizer", "scheduler", "rng_state", "random_states", "scaler", "trainer_state", "sampler")
_SHARD = re.compile(r"^(?P<stem>.+)-\d{5}-of-\d{5}$")
#: Version control, which holds large files a second time.
_SKIPPED = {".git"}
_MAX_FILES = 100_000
#: A larger file whose tensors cannot be read is worth a warning.
_WORTH_SAYING = 1 << 20


@dataclass(frozen=True)
class Member:
    """One file of a folder.

    Parameters
    ----------
    path : str
        Relative, parts separated by slashes.
    format : str
        Name of a `Format`; "bytes" for a file that is kept as it is.
    tensors : dict
        Names in the archive, and in the file.
    metadata, tree
        As of the file's `Checkpoint`.
    """

    path: str
    format: str
    tensors: Mapping[str, str]
    metadata: Mapping[str, str]
    tree: str | None


def is_folder(path: str) -> bool:
    """Whether a path refers to several files: a folder, or the index of shards."""
    return os.path.isdir(path) or (path.endswith(_INDEX) and os.path.isfile(path))


# ---- reading ---------------------------------------------------------------------------------------------------


def open_folder(path: str) -> Checkpoint:
    """The tensors of all files in a folder, or of the shards that an index names, and the other files as bytes.

    Raises
    ------
    UsageError
        It holds no checkpoint, or a pointer in the place of one.
    CorruptError
        One of its files is damaged, or a shard is missing.
    """
    reader = _Reader(path)
    try:
        return reader.checkpoint()
    except BaseException:
        reader.close()
        raise


class _Reader:
    def __init__(self, path: str):
        self._given = path
        self._root = path if os.path.isdir(path) else os.path.dirname(path) or "."
        self._specs: dict[str, TensorSpec] = {}
        self._sources: dict[str, tuple[Checkpoint, str]] = {}
        self._attached: list[str] = []
        self._members: list[list[Any]] = []
        self._opened: list[Checkpoint] = []
        self._exact: list[str] = []

    def close(self) -> None:
        for each in self._opened:
            each.close()

    def checkpoint(self) -> Checkpoint:
        files = list(_files(self._root)) if os.path.isdir(self._given) else self._named_by_index()
        distributed = {
            file: found for file, found in distributed_tensors(self._root, files).items() if found is not None
        }
        external, owners = _external(self._root, files)
        chunked = chunked_files(self._root, files)
        self._opened += [found for _, found in chunked.members.values()]
        files = [file for file in files if file not in chunked.parts]
        embedded = {**distributed, **external}
        opened = {file: chunked.members.get(file) or self._open(file, embedded) for file in files}
        networks = {file: each for file, each in opened.items() if each is not None}
        if not networks:
            raise UsageError(f"{self._given}: is a directory without a checkpoint in it")
        prefixes = _prefixes(self._root, networks, owners)
        for file in files:
            found = opened[file]
            if found is None:
                self._add_bytes(file)
            else:
                self._add_tensors(file, *found, prefixes[file])
        rest = {"folder": True, "members": self._members, "exact": self._exact}
        tree = attached_tree(self._attached, rest)
        return Checkpoint(self._specs, self._read, {}, tree, close=self.close)

    def _named_by_index(self) -> list[str]:
        name = os.path.basename(self._given)
        shards = sorted(set(_weight_map(self._given).values()))
        for shard in shards:
            if not os.path.isfile(os.path.join(self._root, shard)):
                raise CorruptError(f"{self._given}: names the shard {shard[:80]!r}, which is not there")
        return [*shards, name]

    def _open(self, file: str, distributed: Mapping[str, Any]) -> tuple[str, Checkpoint] | None:
        """A file's format and tensors; None for one that is kept as bytes."""
        path = os.path.join(self._root, file)
        if file in distributed:
            found = "embedded", open_embedded(path, "data", *distributed[file])
        else:
            kind = _format(path)
            if kind is None:
                return None
            try:
                found = kind.name, kind.open(path)
            except UsageError as error:
                if os.path.getsize(path) > _WORTH_SAYING:
                    warnings.warn(f"{error}; the file is kept as it is, byte for byte", stacklevel=2)
                return None
        self._opened.append(found[1])
        return found

    def _unique(self, name: str) -> str:
        while name in self._specs:
            name += "_"
        return name

    def _add_bytes(self, file: str) -> None:
        raw = mapped(os.path.join(self._root, file))
        name = self._unique(f"nearzip:file/{file}")
        self._specs[name] = TensorSpec(name, "uint8", raw.shape)
        self._sources[name] = Checkpoint.of({file: np.asarray(raw)}), file
        self._attached.append(name)
        self._members.append([file, "bytes", [[name, file]], {}, None])

    def _add_tensors(self, file: str, kind: str, source: Checkpoint, prefix: str) -> None:
        inner = set(files_of(source.tree).get("attached", ()))
        exact = set(files_of(source.tree).get("exact", ()))
        names = []
        for own, spec in source.specs.items():
            name = self._unique(f"nearzip:file/{file}/{own}" if own in inner else f"{prefix}{own}")
            self._specs[name] = TensorSpec(name, spec.dtype, spec.shape)
            self._sources[name] = source, own
            names.append([name, own])
            if own in inner:
                self._attached.append(name)
            elif own in exact or os.path.basename(file).startswith(_STATES) or (kind, own[:5]) == ("embedded", "optim"):
                self._exact.append(name)
        kind = "embedded" if "embedded" in files_of(source.tree) else kind
        self._members.append([file, kind, names, dict(source.metadata), source.tree])

    def _read(self, name: str) -> Array:
        source, own = self._sources[name]
        return source.read(own)


def _files(root: str) -> Iterator[str]:
    """All files in a folder, links to files and folders included, in order."""
    seen: set[tuple[int, int]] = set()
    n = 0
    for folder, subfolders, names in os.walk(root, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        subfolders[:] = sorted(name for name in subfolders if name not in _SKIPPED)
        for name in sorted(names):
            path = os.path.join(folder, name)
            if not os.path.exists(path):
                raise UsageError(
                    f"{path}: is a link to {os.readlink(path)!r}, which is not there; fetch that file, or remove the "
                    "link"
                )
            if not stat.S_ISREG(os.stat(path).st_mode):
                raise UsageError(f"{path}: is not a regular file; give a folder of files")
            n += 1
            if n > _MAX_FILES:
                raise UsageError(f"{root}: holds more than {_MAX_FILES} files")
            yield Path(path).relative_to(root).as_posix()


def _format(path: str) -> Format | None:
    """The format of a file, None if it is no checkpoint. Raises as `format_of` for files that should be one."""
    if os.path.getsize(path) == 0:
        return None
    return format_of(path) if path.endswith(".safetensors") else recognized(path, read_head(path))


def _weight_map(path: str) -> dict[str, str]:
    """The shard of each tensor, from an index. Raises CorruptError."""
    try:
        found = json.loads(Path(path).read_bytes())["weight_map"]
        pairs = {str(name): str(file) for name, file in found.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CorruptError(f"{path}: is not the index of a sharded checkpoint") from None
    for file in pairs.values():
        if not is_safe_path(file):
            raise CorruptError(f"{path}: names a file outside its folder: {file[:80]!r}")
    return pairs


def _external(root: str, files: list[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Files that hold tensors of ONNX graphs, and the graphs themselves; and whose data each file is."""
    found: dict[str, Any] = {}
    owners: dict[str, str] = {}
    for file in files:
        path = os.path.join(root, file)
        if not file.lower().endswith(".onnx") or _format(path) is None:
            continue
        folder = os.path.dirname(file)
        for location, tensors in external_tensors(path).items():
            data = f"{folder}/{location}" if folder else location
            if data not in files:
                raise CorruptError(f"{path}: names the file {location[:80]!r}, which is not there")
            found[data], owners[data] = (tensors, []), file
            found[file] = (inner_tensors(path), [])
    return found, owners


def _prefixes(root: str, files: Mapping[str, tuple[str, Checkpoint]], owners: Mapping[str, str]) -> dict[str, str]:
    """What the names of each file's tensors begin with."""
    groups: dict[str, dict[str, list[str]]] = {}
    prefixes = {}
    for file, (kind, _) in files.items():
        if kind == ZARR.name:  # the file describes an array that is called as its folder
            prefixes[file] = "".join(f"{part}/" for part in file.split("/")[:-2])
            continue
        folder, name = os.path.split(owners.get(file, file))
        groups.setdefault(folder, {}).setdefault(_group(name), []).append(file)
    for folder, members in groups.items():
        network = _network(members)
        for group, names in members.items():
            start = f"{folder}/" if folder else ""
            prefixes.update(dict.fromkeys(names, start if group == network else f"{start}{group}/"))
    return prefixes


def _group(name: str) -> str:
    """Files that are shards of one network have the same group: its name without the shard's number."""
    stem, ending = os.path.splitext(name)
    if ending == ".distcp":
        return "DCP"
    match = _SHARD.match(stem)
    return f"{match['stem'] if match else stem}{ending}"


def _network(groups: Mapping[str, Any]) -> str | None:
    """The group that is the network itself."""
    ranked = sorted(groups, key=lambda group: not group.endswith(".safetensors"))
    for wanted in _NETWORKS:
        for group in ranked:
            if os.path.splitext(group)[0] == wanted:
                return group
    others = [group for group in ranked if not group.startswith(_STATES)]
    return others[0] if len(others) == 1 else None


def network_in(members: Sequence[Member], folder: str) -> list[Member]:
    """The files that hold a network itself, in one subfolder ("" for the folder): one, or its shards."""
    groups: dict[str, list[Member]] = {}
    for member in members:
        where, name = os.path.split(member.path)
        if where == folder and member.format != "bytes":
            groups.setdefault(_group(name), []).append(member)
    network = _network(groups)
    return [] if network is None else groups[network]


# ---- what an archive says of a folder --------------------------------------------------------------------------


def is_safe_path(path: str) -> bool:
    """Whether a path from an untrusted document stays inside its folder, on every system."""
    parts = path.split("/")
    return (
        0 < len(path.encode("utf-8", "surrogatepass")) <= 4096
        and not any(part in ("", ".", "..") or len(part.encode("utf-8", "surrogatepass")) > 255 for part in parts)
        and not any(character in path for character in "\\\0")
        and not re.match(r"^[A-Za-z]:", path)
    )


def members_of(tree: str | None, specs: Mapping[str, TensorSpec]) -> list[Member] | None:
    """The files of a folder, from an untrusted tree; None if the tree is that of one file.

    Raises
    ------
    CorruptError
        A path leaves the folder or appears twice, a tensor belongs to no file or to two.
    """
    content = files_of(tree)
    if content.get("folder") is not True:
        return None
    try:
        members = [
            Member(path, kind, dict(names), dict(metadata), inner)
            for path, kind, names, metadata, inner in content["members"]
        ]
    except (KeyError, TypeError, ValueError):
        raise CorruptError("the description of the folder is damaged") from None
    _check(members, specs)
    return members


def _check(members: list[Member], specs: Mapping[str, TensorSpec]) -> None:
    paths = [member.path for member in members]
    for path in paths:
        if not isinstance(path, str) or not is_safe_path(path):
            raise CorruptError(f"the description of the folder names {str(path)[:80]!r}, which is no path inside it")
    folded = {path.casefold() for path in paths}
    above = {"/".join(path.split("/")[:i]) for path in folded for i in range(1, path.count("/") + 1)}
    if len(folded) != len(paths) or folded & above:
        raise CorruptError("the description of the folder names a file twice")
    names = [name for member in members for name in member.tensors]
    texts = [
        text for member in members for pair in (*member.tensors.items(), *member.metadata.items()) for text in pair
    ]
    if not all(isinstance(text, str) for text in texts) or not all(
        isinstance(member.format, str) and (member.tree is None or isinstance(member.tree, str)) for member in members
    ):
        raise CorruptError("the description of the folder is damaged")
    if len(set(names)) != len(names) or set(names) != set(specs):
        raise CorruptError("the description of the folder does not fit the tensors")


def files_in(checkpoint: Checkpoint) -> set[str]:
    """The paths of a folder's files; empty for the checkpoint of one file. Raises CorruptError."""
    tree, long_name = full_tree(checkpoint.tree, checkpoint.read)
    specs = {name: spec for name, spec in checkpoint.specs.items() if name != long_name}
    return {member.path for member in members_of(tree, specs) or ()}
