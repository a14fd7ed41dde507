"""Which versions need which: pure functions over the manifests of a store, which make a graph without circles.

Manifests are untrusted: bases may be missing and chains may be circles. None of these functions recurses.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from nearzip.errors import CorruptError
from nearzip.store.manifest import Manifest
from nearzip.store.policy import MAX_DEPTH

__all__ = [
    "behind",
    "closure",
    "decoding_order",
    "depth",
    "depths",
    "followers",
    "height",
    "is_sound",
    "needed_objects",
    "unknown_bases",
]

Manifests = Mapping[int, Manifest]


def closure(manifests: Manifests, numbers: Iterable[int]) -> set[int]:
    """The versions and all that they are coded against, directly or not; unknown versions are left out."""
    found: set[int] = set()
    waiting = list(numbers)
    while waiting:
        number = waiting.pop()
        if number not in found and number in manifests:
            found.add(number)
            waiting += manifests[number].bases
    return found


def behind(manifests: Manifests, number: int) -> set[int]:
    """What a version is coded against, directly or not; itself only in a circle."""
    return closure(manifests, manifests[number].bases)


def unknown_bases(manifests: Manifests) -> set[int]:
    """Versions that others are coded against and that are not among the manifests."""
    return {base for manifest in manifests.values() for base in manifest.bases} - set(manifests)


def followers(manifests: Manifests) -> dict[int, list[int]]:
    """The versions that are coded against each version, for those that have any."""
    found: dict[int, list[int]] = {}
    for number, manifest in manifests.items():
        for base in manifest.bases:
            found.setdefault(base, []).append(number)
    return found


def depths(manifests: Manifests) -> dict[int, int]:
    """Deltas between each version and its keyframe; -1 for a chain with a missing version or a circle.

    Examples
    --------
    >>> depths({})
    {}
    """
    found: dict[int, int] = {}
    for start in manifests:
        stack = [start]
        entered: set[int] = set()
        while stack:
            number = stack[-1]
            if number in found:
                stack.pop()
                continue
            bases = manifests[number].bases
            open_ = [base for base in bases if base in manifests and base not in found and base not in entered]
            entered.add(number)
            if open_:
                stack += open_
                continue
            below = [found.get(base, -1) for base in bases]
            found[number] = -1 if -1 in below else 1 + max(below, default=-1)
            stack.pop()
    return found


def depth(manifests: Manifests, number: int) -> int:
    """Deltas between one version and its keyframe, as `depths` has it."""
    return depths({one: manifests[one] for one in closure(manifests, [number])})[number]


def height(manifests: Manifests, number: int) -> int:
    """Deltas of the longest chain of versions that are coded against this one; more than allowed for a circle."""
    above = followers(manifests)
    found, level = -1, {number}
    while level and found <= MAX_DEPTH:
        found += 1
        level = {follower for one in level for follower in above.get(one, ())}
    return found


def is_sound(manifests: Manifests) -> bool:
    """Whether every live version leads to keyframes, over at most 64 deltas."""
    found = depths(manifests)
    return all(0 <= found[number] <= MAX_DEPTH for number, m in manifests.items() if m.pruned is None)


def needed_objects(manifests: Manifests) -> tuple[dict[str, int], set[int]]:
    """Objects that live versions need, with their lengths, and the dropped versions that they need for it.

    Raises CorruptError if a version that is needed is missing.
    """
    reached = closure(manifests, (number for number, manifest in manifests.items() if manifest.pruned is None))
    for number in reached:
        for base in manifests[number].bases - reached:
            raise CorruptError(f"version {base}, which version {number} is coded against, is missing")
    objects = {name: n for number in reached for name, n in manifests[number].objects.items()}
    return objects, {number for number in reached if manifests[number].pruned is not None}


def decoding_order(manifests: Manifests, numbers: set[int]) -> Iterator[int]:
    """Bases before what needs them, each branch to its end, so that few arrays have to be held."""
    above: dict[int, list[int]] = {}
    roots = []
    for number in sorted(numbers):
        bases = [base for base in manifests[number].bases if base in numbers]
        if bases:
            above.setdefault(max(bases), []).append(number)
        else:
            roots.append(number)
    stack = roots[::-1]
    done: set[int] = set()
    while stack:
        number = stack.pop()
        if number not in done:
            done.add(number)
            yield number
        stack += [n for n in above.get(number, ()) if n not in done][::-1]
    yield from sorted(numbers - done)  # in circles; restoring says so
