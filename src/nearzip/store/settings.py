"""What holds for a whole store: its file `nearzip-store`, which also says that there is a store."""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nearzip.bounds import Bound, bound_spelling, parse_bound
from nearzip.coding import Codings
from nearzip.errors import CorruptError, UsageError
from nearzip.recipes import recipe_type
from nearzip.store.documents import seal, unseal
from nearzip.store.policy import Policy, parse_policy, policy_from_json
from nearzip.tensors import Checkpoint, check_text
from nearzip.updates import without_updates
from nearzip.writing import write_archive

__all__ = ["PATH", "BoundLike", "StoreSettings", "parse_settings", "requested", "settled_bound", "try_out"]

PATH = "nearzip-store"
_ID = re.compile(r"[0-9a-f]{32}")
EXCLUSIVE = ("create", "single-writer")


BoundLike = Bound | str | Mapping[str, Bound | str] | None


def settled_bound(bound: BoundLike) -> str | dict[str, str] | None:
    """A bound, or bounds by tensor name or pattern, as a store records them. Raises UsageError."""
    if isinstance(bound, Mapping):
        return {check_text("names of tensors", name): _settled(each) for name, each in bound.items()}
    return None if bound is None else _settled(bound)


def _settled(bound: Bound | str) -> str:
    if isinstance(bound, str):
        bound = parse_bound(bound)
    if not isinstance(bound, Bound):
        raise UsageError(
            f"a bound is nearzip.Lossless(), Absolute(e), .. or a string such as 'abs:1e-3', not {bound!r}"
        )
    return bound_spelling(bound)


@dataclass(frozen=True)
class StoreSettings:
    """Of one store.

    Parameters
    ----------
    id : str
        Random, tells stores apart.
    created : str
        UTC, ISO 8601.
    bound : str, dict of str to str, or None
        As the command line spells it, for all tensors or by name or pattern; None: the method's default.
    method, options : str, dict
        How versions are coded.
    policy : Policy
    exclusive : {"create", "single-writer"}
        What keeps two writers apart: a place that creates files exclusively, or a promise.
    """

    id: str
    created: str
    bound: str | Mapping[str, str] | None = None
    method: str = "nearzip"
    options: Mapping[str, Any] = field(default_factory=dict)
    policy: Policy = field(default_factory=Policy)
    exclusive: str = "create"

    def codings(self) -> Codings:
        """How versions are coded, by tensor name or pattern. Raises UnknownMethodError, UsageError."""
        return Codings.of(self.method, self.bound, self.options)

    def to_bytes(self) -> bytes:
        return seal("store", dataclasses.asdict(self))


def parse_settings(data: bytes, where: str) -> StoreSettings:
    """From untrusted bytes. Raises CorruptError, TruncatedError or NewerFormatError."""
    d = unseal("store", data, where)
    if set(d) != {f.name for f in dataclasses.fields(StoreSettings)}:
        raise CorruptError(f"{where}: fields are missing or unknown")
    texts = all(type(d[name]) is str for name in ("id", "created", "method", "exclusive"))
    if not texts or type(d["options"]) is not dict or not _ID.fullmatch(d["id"]) or d["exclusive"] not in EXCLUSIVE:
        raise CorruptError(f"{where}: a field has an impossible value")
    try:
        for text in d["bound"].values() if type(d["bound"]) is dict else [d["bound"] or "lossless"]:
            parse_bound(text)
        return StoreSettings(**{**d, "policy": policy_from_json(d["policy"])})
    except (CorruptError, UsageError, AttributeError) as error:
        raise CorruptError(f"{where}: {error}") from None


def requested(
    bound: BoundLike,
    policy: Policy | str | None,
    method: str | None,
    options: Mapping[str, Any] | None,
    exclusive: str | None,
) -> dict[str, Any]:
    """The settings that a caller gave, as fields of `StoreSettings`. Raises UsageError."""
    wanted: dict[str, Any] = {}
    if bound is not None:
        wanted["bound"] = settled_bound(bound)
    if policy is not None:
        wanted["policy"] = parse_policy(policy)
    if method is not None or options is not None:
        recipe = recipe_type(method or StoreSettings.method).from_options(options)
        wanted["method"] = recipe.name
        wanted["options"] = {key: value for key, value in recipe.options().items() if value is not None}
    if exclusive is not None:
        if exclusive not in EXCLUSIVE:
            raise UsageError(f"exclusive is 'create' or 'single-writer', not {exclusive!r}")
        wanted["exclusive"] = exclusive
    return wanted


def try_out(settings: StoreSettings) -> None:
    """Raise UsageError for a method that cannot do what is asked of it, before anything depends on it."""
    bounds = settings.bound.values() if isinstance(settings.bound, Mapping) else [settings.bound]
    probe = Checkpoint.of({"x": np.zeros(1, np.float32)})
    for bound in bounds:
        codings = without_updates(dataclasses.replace(settings, bound=bound).codings())
        write_archive(probe, None, codings, io.BytesIO(), threads=1)
