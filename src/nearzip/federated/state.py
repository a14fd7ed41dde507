"""The state of a client or server between processes: an archive of arrays with JSON in its metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from nearzip.errors import CorruptError
from nearzip.limits import Limits
from nearzip.reading import Reader
from nearzip.sources import BytesSource
from nearzip.tensors import Array

__all__ = ["below", "read_state"]


def read_state(data: bytes, what: str, kind: str, limits: Limits | None) -> tuple[Mapping[str, Any], dict[str, Array]]:
    """The JSON and the arrays of a state of that kind. Raises CorruptError: a disk is not trusted."""
    with Reader(BytesSource(data, what), None, limits) as reader:
        found = {name: np.array(array) for name, array in reader.stream()}
        tensors = {name: found[name] for name in reader}
        try:
            state = json.loads(reader.metadata()["federated"])
            is_it = state["kind"] == kind
        except (KeyError, TypeError, ValueError, RecursionError):
            is_it = False
    if not is_it:
        raise CorruptError(f"{what}: is no {kind!r}")
    return dict(state), tensors


def below(tensors: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    """The arrays whose names start with a prefix, by the rest of their names."""
    return {name.removeprefix(prefix): array for name, array in tensors.items() if name.startswith(prefix)}
