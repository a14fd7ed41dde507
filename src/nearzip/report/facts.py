"""What a report of a store tells, gathered from manifests and from the indexes of objects."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from nearzip.bounds import NoPromise, Statistics, Tolerance
from nearzip.errors import Error, UsageError
from nearzip.inputs import open_input
from nearzip.limits import Limits
from nearzip.store import Store, Version
from nearzip.store.backends.backend import Backend
from nearzip.store.chain import Progress, open_part
from nearzip.store.graph import needed_objects
from nearzip.store.keep import kept, parse_rules
from nearzip.store.log import version_rows
from nearzip.store.manifest import Manifest
from nearzip.store.promises import bound_of, committed_bounds
from nearzip.store.reading import VersionReader
from nearzip.store.settings import StoreSettings
from nearzip.tensors import Array, Checkpoint, is_float

__all__ = ["ErrorRow", "Freed", "StoreFacts", "TensorSpace", "gather"]

#: Values compared at a time.
_PIECE = 1 << 20
#: How often the store is looked at again because others changed it meanwhile.
_ATTEMPTS = 10
#: Rules whose gain is shown, where the caller names none; those of metrics and tags are added where there are any.
_RULES = ("last:1", "last:5", "last:10", "every:10")


@dataclass(frozen=True)
class TensorSpace:
    """A tensor's share of the space: values in one version, and bytes in all objects that were looked at."""

    name: str
    n_values: int
    n_stored: float


@dataclass(frozen=True)
class Freed:
    """What `prune` with a rule would free without re-encoding anything."""

    rule: str
    n_kept: int
    n_dropped: int
    n_freed: int


@dataclass(frozen=True)
class ErrorRow:
    """A tensor's largest error beside what was promised.

    Parameters
    ----------
    version, name
    promise : str
        As a person reads it.
    largest : float
        |x - x'|, or |x - x'| / |x| for a promise by element; number of values that differ for an exact one.
    share : float or None
        `largest` over what was promised; more than 1 would be a broken promise. None where nothing was.
    """

    version: int
    name: str
    promise: str
    largest: float
    share: float | None


@dataclass(frozen=True)
class StoreFacts:
    """All that a report shows.

    Parameters
    ----------
    rows : tuple of Version
        Pruned ones included.
    n_stored : int
        Bytes of the objects that live versions need, each once.
    spaces, n_looked_at : tuple of TensorSpace, int
        Over the objects of so many of the newest versions.
    n_described : float
        Bytes of those objects that belong to no tensor.
    freed : tuple of Freed
    errors : tuple of ErrorRow
        Of the versions whose originals were given.
    damage : tuple of str
        What could not be read.
    """

    url: str
    settings: StoreSettings
    rows: tuple[Version, ...]
    n_stored: int
    spaces: tuple[TensorSpace, ...]
    n_looked_at: int
    n_described: float
    freed: tuple[Freed, ...]
    errors: tuple[ErrorRow, ...]
    damage: tuple[str, ...]
    #: What each section of the page shows, as JSON, by the section's name.
    sections: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    #: Sections of plug-ins that could not be made, and why.
    failed_sections: Mapping[str, str] = field(default_factory=dict)

    @property
    def live(self) -> tuple[Version, ...]:
        return tuple(row for row in self.rows if row.pruned is None)

    @property
    def n_bytes(self) -> int:
        return sum(row.n_bytes for row in self.live)

    @property
    def ratio(self) -> float:
        return self.n_bytes / self.n_stored if self.n_stored else 0.0


def gather(
    store: Store,
    originals: Mapping[str, str | os.PathLike[str]] | None = None,
    rules: Sequence[str] = (),
    newest: int = 100,
    progress: Progress | None = None,
) -> StoreFacts:
    """Look at a store.

    Parameters
    ----------
    originals : mapping of selector to path
        Files that were committed, to measure errors against.
    rules : sequence of str
        As for `Store.prune`; default: some usual ones.
    newest : int
        Versions whose objects are looked at for the space of each tensor.

    Raises
    ------
    UsageError, NotFoundError
        Rules, selectors or files that make no sense.
    CorruptError
        Manifests are damaged.
    """
    for left in reversed(range(_ATTEMPTS)):
        manifests = store.reader.snapshot()
        live = [manifest for manifest in manifests.values() if manifest.pruned is None]
        looked_at = live[max(0, len(live) - newest) :]
        spaces, n_described, damage = _spaces(store.reader.backend, looked_at, progress)
        # What is missing may have been re-encoded or dropped since the manifests were read.
        if not damage or left == 0 or store.reader.snapshot() == manifests:
            break
    # An empty store has nothing that is needed.
    n_stored = sum(needed_objects(manifests)[0].values())
    return StoreFacts(
        url=store.url,
        settings=store.settings,
        rows=tuple(version_rows(manifests.values())),
        n_stored=n_stored,
        spaces=spaces,
        n_looked_at=len(looked_at),
        n_described=n_described,
        freed=tuple(_freed(rule, manifests, n_stored) for rule in (rules or _usual_rules(live))),
        errors=tuple(row for item in (originals or {}).items() for row in _errors(store, *item)),
        damage=damage,
    )


def _usual_rules(live: Sequence[Manifest]) -> list[str]:
    metrics = sorted({name for manifest in live for name in manifest.metrics})[:3]
    tagged = ["tagged"] if any(manifest.tags for manifest in live) else []
    return [*_RULES, *tagged, *(f"{'min' if _is_loss(name) else 'best'}:{name}" for name in metrics)]


def _is_loss(metric: str) -> bool:
    """Whether smaller values are better, guessed from the name."""
    return any(word in metric.lower() for word in ("loss", "error", "perplexity"))


def _freed(rule: str, manifests: Mapping[int, Manifest], n_stored: int) -> Freed:
    live = {number: manifest for number, manifest in manifests.items() if manifest.pruned is None}
    keeps = kept(parse_rules(rule), live)
    after = {n: m if n in keeps or m.pruned else replace(m, pruned=m.time) for n, m in manifests.items()}
    left = sum(needed_objects(after)[0].values())
    return Freed(rule, len(keeps), len(live) - len(keeps), n_stored - left)


# ---- space -----------------------------------------------------------------------------------------------------


def _spaces(
    backend: Backend, manifests: Sequence[Manifest], progress: Progress | None
) -> tuple[tuple[TensorSpace, ...], float, tuple[str, ...]]:
    parts = {part.object: (manifest.number, part) for manifest in manifests for part in manifest.parts}
    total = sum(part.n_bytes for _, part in parts.values())
    stored: dict[str, float] = {}
    values: dict[str, int] = {}
    n_described, done, damage = 0.0, 0, []
    for number, part in parts.values():
        try:
            with open_part(backend, part, None, Limits(output_bytes=1 << 62), 1) as reader:
                reports = reader.tensor_reports()
        except Error as error:
            damage.append(f"version {number}: {error}")
            continue
        for report in reports:
            stored[report.spec.name] = stored.get(report.spec.name, 0.0) + report.n_bytes
            values[report.spec.name] = report.spec.n_elements
        n_described += part.n_bytes - sum(report.n_bytes for report in reports)
        done += part.n_bytes
        if progress:
            progress(done, total)
    found = [TensorSpace(name, values[name], n_bytes) for name, n_bytes in stored.items()]
    return tuple(sorted(found, key=lambda space: -space.n_stored)), n_described, tuple(damage)


# ---- errors ----------------------------------------------------------------------------------------------------


def _errors(store: Store, selector: str, path: str | os.PathLike[str]) -> Iterable[ErrorRow]:
    original = open_input(path)
    try:
        reader = store.reader
        return reader.read(selector, lambda number: _errors_of(reader, number, original, os.fspath(path)))[1]
    finally:
        original.close()


def _errors_of(reader: VersionReader, number: int, original: Checkpoint, path: str) -> list[ErrorRow]:
    rows = []
    bounds = committed_bounds(reader.live(number), reader.index)
    with reader.stream(number) as restored:
        lacking = set(restored.specs) ^ set(original.specs)
        if lacking:
            raise UsageError(
                f"{path}: is not what version {number} was made of: they differ in tensor {min(lacking)!r}"
            )
        for name, spec in original.specs.items():
            values, theirs = original.read(name), restored.read(name)
            if not spec.same_kind(restored.specs[name]):
                raise UsageError(f"{path}: tensor {name!r} has another dtype or shape in {number}")
            tolerance = _tolerance(bounds.get(name), values)
            rows.append(_error(number, name, tolerance, values.reshape(-1), theirs.reshape(-1)))
    return rows


def _tolerance(bound: str | None, values: Array) -> Tolerance:
    """What was promised of a tensor when it was committed."""
    if not is_float(values.dtype):
        return Tolerance("exact")
    known = None if bound is None else bound_of(bound)
    return (NoPromise() if known is None else known).tolerance(Statistics.of(values))


def _error(number: int, name: str, tolerance: Tolerance, original: Array, restored: Array) -> ErrorRow:
    if tolerance.kind == "exact":
        mine, theirs = original.view(np.uint8), restored.view(np.uint8)
        n = int(np.count_nonzero(mine != theirs))
        return ErrorRow(number, name, "every bit", float(n), float("inf") if n else 0.0)
    largest = 0.0
    for at in range(0, original.size, _PIECE):
        a = original[at : at + _PIECE].astype(np.float64)
        b = restored[at : at + _PIECE].astype(np.float64)
        ok = np.isfinite(a) & np.isfinite(b)
        error = np.abs(a[ok] - b[ok])
        if tolerance.kind == "pointwise":
            with np.errstate(divide="ignore", invalid="ignore"):
                error = np.where(error == 0, 0.0, error / np.abs(a[ok]))
        largest = max(largest, float(error.max(initial=0.0)))
    if tolerance.kind == "finite":
        return ErrorRow(number, name, "nothing", largest, None)
    unit = " of each value" if tolerance.kind == "pointwise" else ""
    return ErrorRow(number, name, f"{tolerance.value:.3g}{unit}", largest, largest / tolerance.value)
