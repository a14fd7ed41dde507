"""Which bound each tensor of a version was committed under, as the version's objects say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from nearzip.bounds import Bound, NoPromise, bound_spelling, parse_bound
from nearzip.coding_index import codings_in, written_bounds
from nearzip.container import Index
from nearzip.errors import Error
from nearzip.store.labels import label_of
from nearzip.store.manifest import Manifest, Part

__all__ = ["bound_of", "committed_bounds", "folded"]


def bound_of(text: str) -> Bound | None:
    """The bound that `bound_spelling` wrote; None if this release does not know it."""
    if text == NoPromise.key:
        return NoPromise()
    try:
        return parse_bound(text)
    except Error:
        return None


def committed_bounds(manifest: Manifest, index_of: Callable[[Part], Index]) -> dict[str, str]:
    """The bound of each tensor of a version; tensors whose objects do not say are left out.

    Raises what `index_of`, which reads the index of a part's object, raises.
    """
    found: dict[str, str] = {}
    for part in manifest.parts:
        of_part = _of_index(index_of(part))
        names = of_part if part.names is None else part.names
        found.update({name: of_part[name] for name in names if name in of_part})
    return found


def _of_index(index: Index) -> dict[str, str]:
    names = [spec.name for spec in index.tensors]
    label = label_of(index)
    if label is not None and label.bounds is not None:
        return {name: text for name in names if (text := label.bounds.get(name, label.bounds.get("*"))) is not None}
    codings = codings_in(index)
    found = {name: bound_spelling(bound) for name in names if (bound := codings[name].bound) is not None}
    # A share of the update that was: only what it came to can be checked now.
    found.update({name: f"abs:{value!r}" if value else "lossless" for name, value in written_bounds(index).items()})
    return found


def folded(bounds: Mapping[str, str]) -> dict[str, str]:
    """The same with the most frequent bound under "*", for a label."""
    if not bounds:
        return {}
    ((most, _),) = Counter(bounds.values()).most_common(1)
    return {"*": most, **{name: text for name, text in bounds.items() if text != most}}
