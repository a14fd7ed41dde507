"""From what a reader holds to the version that it wants: which objects it needs, and how they are applied."""

from __future__ import annotations

import contextlib
import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from nearzip.errors import CorruptError, Error, LimitError, NotFoundError
from nearzip.limits import Limits
from nearzip.reading import Reader
from nearzip.store.backends.backend import Backend
from nearzip.store.chain import open_part
from nearzip.store.manifest import Manifest, Part
from nearzip.store.policy import MAX_DEPTH
from nearzip.store.versions import Versions
from nearzip.tensors import Array, Checkpoint, TensorSpec, keeping_last

__all__ = ["Held", "Route", "find_held", "plan_route", "updated"]

#: Versions before and after the wanted one that are compared with what is held, besides those on the way.
NEARBY = 64
#: Versions that one version is coded against, directly or not: a chain of 64, and what it shares with others.
_MAX_BEHIND = 16 * MAX_DEPTH


@dataclass(frozen=True)
class Held:
    """A version that is at hand.

    Parameters
    ----------
    manifest : Manifest
    checkpoint : Checkpoint
        Its tensors.
    """

    manifest: Manifest
    checkpoint: Checkpoint

    def places(self) -> Mapping[str, str]:
        """The object that holds each tensor, as far as the manifest says."""
        found = {name: part.object for part in self.manifest.parts for name in part.names or ()}
        whole = [part for part in self.manifest.parts if part.names is None]
        if len(whole) == 1:
            found.update({name: whole[0].object for name in self.checkpoint.specs if name not in found})
        return found


@dataclass(frozen=True)
class Route:
    """The way to a version.

    Parameters
    ----------
    steps : tuple of Manifest
        Versions to decode, bases before what needs them; empty if the version is held already.
    held : Held or None
        Where it starts.
    """

    target: Manifest
    steps: tuple[Manifest, ...]
    held: Held | None

    def free(self, part: Part) -> bool:
        """Whether what is held has the tensors of a part: those of the same object are the same, bit for bit."""
        if self.held is None or part.names is None:
            return False
        places = self.held.places()
        return all(places.get(name) == part.object for name in part.names)

    @property
    def objects(self) -> dict[str, int]:
        """Name and length of what has to be fetched. Raises CorruptError where versions contradict each other."""
        found: dict[str, int] = {}
        for part in (part for step in self.steps for part in step.parts if not self.free(part)):
            if found.setdefault(part.object, part.n_bytes) != part.n_bytes:
                raise CorruptError(f"object {part.object} has two lengths")
        return found


def find_held(versions: Versions, target: int, identity: str) -> Manifest | None:
    """The version of that content, looked for on the way to `target` and near it; None if there is none."""
    for number in _candidates(versions, target):
        with contextlib.suppress(NotFoundError):
            manifest = versions.get(number)
            if manifest.id == identity:
                return manifest
    return None


def _candidates(versions: Versions, target: int) -> Iterator[int]:
    seen: set[int] = set()
    ahead = [-target]  # newest first
    while ahead:
        number = -heapq.heappop(ahead)
        if number in seen:
            continue
        seen.add(number)
        yield number
        if len(seen) > _MAX_BEHIND:
            raise LimitError(f"version {target} depends on more than {_MAX_BEHIND} versions")
        with contextlib.suppress(NotFoundError):
            for base in versions.get(number).bases - seen:
                heapq.heappush(ahead, -base)
    latest = versions.latest()
    for distance in range(1, NEARBY + 1):
        if target - distance >= 0:
            yield target - distance
        if latest is not None and target + distance <= latest:
            yield target + distance


def plan_route(versions: Versions, target: int, held: Held | None, where: str) -> Route:
    """What `target` needs besides what is held.

    Every version is coded in one way, so that this is the least that there is.

    Raises
    ------
    CorruptError
        Versions that are coded against themselves or against what is not there.
    LimitError
        More than 64 deltas.
    """
    wanted = versions.get(target)
    if held is not None and held.manifest.id == wanted.id:
        return Route(wanted, (), held)
    steps: dict[int, Manifest] = {}
    route = Route(wanted, (), held)

    def visit(number: int, above: tuple[int, ...]) -> None:
        if number in steps or (held is not None and number == held.manifest.number):
            return
        if number in above:
            raise CorruptError(f"{where}: version {number} is coded against itself in a circle")
        if len(above) > MAX_DEPTH or len(steps) > _MAX_BEHIND:
            raise LimitError(f"{where}: version {target} is more than {MAX_DEPTH} deltas long")
        manifest = _manifest(versions, number, target, where)
        for base in sorted({p.base for p in manifest.parts if p.base is not None and not route.free(p)}):
            visit(base, (*above, number))
        steps[number] = manifest

    visit(target, ())
    return Route(wanted, tuple(steps.values()), held)


def _manifest(versions: Versions, number: int, target: int, where: str) -> Manifest:
    try:
        return versions.get(number)
    except NotFoundError:
        raise CorruptError(
            f"{where}: version {number}, which version {target} is coded against, is missing; the host's copy of the "
            "store is not complete"
        ) from None


@contextlib.contextmanager
def updated(
    backend: Backend, route: Route, limits: Limits | None = None, threads: int | None = None
) -> Iterator[Checkpoint]:
    """The version at the end of a route; tensors are decoded when they are read, from `backend`'s objects."""
    with contextlib.ExitStack() as stack:
        opened: dict[int, Checkpoint] = {}
        if route.held is not None:
            opened[route.held.manifest.number] = route.held.checkpoint
        for manifest in route.steps:
            opened[manifest.number] = _opened(backend, route, manifest, opened, limits, threads, stack)
        yield opened[route.target.number]


def _opened(
    backend: Backend,
    route: Route,
    manifest: Manifest,
    opened: Mapping[int, Checkpoint],
    limits: Limits | None,
    threads: int | None,
    stack: contextlib.ExitStack,
) -> Checkpoint:
    specs: dict[str, TensorSpec] = {}
    sources: dict[str, Reader | None] = {}
    for part in manifest.parts:
        reader = None
        if not route.free(part):
            base = None if part.base is None else opened[part.base]
            reader = stack.enter_context(open_part(backend, part, base, limits, threads))
        for spec in _specs(route, part, reader):
            if spec.name in specs:
                raise CorruptError(f"version {manifest.number}: two parts hold tensor {spec.name!r}")
            specs[spec.name], sources[spec.name] = spec, reader
    if manifest.order is not None:
        if set(manifest.order) != set(specs):
            raise CorruptError(f"version {manifest.number}: its order names other tensors than its parts")
        specs = {name: specs[name] for name in manifest.order}

    def read(name: str) -> Array:
        reader = sources[name]
        if reader is None:
            assert route.held is not None
            return route.held.checkpoint.read(name)
        try:
            return reader.array(name)
        except Error as error:
            raise type(error)(f"version {manifest.number}: {error}") from None

    return Checkpoint(specs, keeping_last(read), dict(manifest.metadata), manifest.tree)


def _specs(route: Route, part: Part, reader: Reader | None) -> list[TensorSpec]:
    if reader is None:
        assert route.held is not None
        return [route.held.checkpoint.specs[name] for name in part.names or ()]
    known = {spec.name: spec for spec in reader.index.tensors}
    return list(known.values()) if part.names is None else [known[name] for name in part.names]
