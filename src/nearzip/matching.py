"""Which tensor of a base each tensor of a new version comes from, where names, dtypes or rows differ.

The reader holds the base as it is. `matched` shows it as the version sees it: under the version's names, in its dtypes
and shapes. An archive's index records the matches, so that both sides see the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field, replace

import numpy as np

from nearzip.digests import content_id, tensor_digest
from nearzip.errors import UsageError
from nearzip.names import matching_names
from nearzip.tensors import Array, Checkpoint, TensorSpec, dtype_of, keeping_last, round_to

__all__ = [
    "Matches",
    "Reference",
    "can_serve",
    "converted",
    "match_tensors",
    "matched",
    "matches_text",
    "n_new_bytes",
    "new_name",
    "renamed",
]

#: Names of a version's tensors, each with the tensor of the base that it comes from. Those that the base has under the
#: same name, in the same dtype and shape, are not in it.
Matches = Mapping[str, TensorSpec]


def can_serve(base: TensorSpec, spec: TensorSpec) -> bool:
    """Whether a tensor of a base can serve `spec`: the same shape but for the number of rows, and the same dtype or
    both floating point.

    Examples
    --------
    >>> can_serve(TensorSpec("w", "float32", (3, 8)), TensorSpec("w", "bfloat16", (4, 8)))
    True
    >>> can_serve(TensorSpec("w", "int8", (3,)), TensorSpec("w", "float32", (3,)))
    False
    """
    if base.dtype != spec.dtype and not (base.is_float and spec.is_float):
        return False
    if base.shape == spec.shape:
        return True
    same_rows = len(base.shape) == len(spec.shape) > 0 and base.shape[1:] == spec.shape[1:]
    return same_rows and base.n_elements > 0 and spec.n_elements > 0


def n_new_bytes(specs: Iterable[TensorSpec], base: Checkpoint | None, matches: Matches) -> dict[str, int]:
    """Bytes of each tensor that `base`, as the version sees it, has nothing for: all, or those of added rows."""
    held = base.specs if base else {}
    found = {}
    for spec in specs:
        origin = matches.get(spec.name, spec)
        if not spec.same_kind(held.get(spec.name)):
            found[spec.name] = spec.n_bytes
        elif origin.shape == spec.shape:
            found[spec.name] = 0
        else:
            found[spec.name] = spec.n_bytes // spec.shape[0] * max(0, spec.shape[0] - origin.shape[0])
    return found


def match_tensors(
    source: Checkpoint, base: Checkpoint, rename: Mapping[str, str] | None = None
) -> dict[str, TensorSpec]:
    """Find the base of every tensor of `source` whose base has another name, dtype or number of rows.

    Names match if they are equal, if `rename` says so, or if it is certain (`names.matching_names`).

    Raises
    ------
    UsageError
        `rename` names tensors that are not there.
    """
    if not rename and base.specs == source.specs:
        return {}
    told = _told(source, base, rename or {})
    taken = set(told.values())
    new = {name: s for name, s in source.specs.items() if name not in base.specs and name not in told}
    old = {name: s for name, s in base.specs.items() if name not in source.specs and name not in taken}
    found = told
    if new and old:
        found = {**told, **_certain(source, base, new, old)}
    matches = {}
    for name, spec in source.specs.items():
        theirs = base.specs.get(found.get(name, name))
        if theirs is None or theirs == spec or not can_serve(theirs, spec):
            continue
        # Bytes of a file that grew are not those of its old rows.
        if name not in source.attached or theirs.shape == spec.shape:
            matches[name] = theirs
    return matches


def _certain(
    source: Checkpoint, base: Checkpoint, new: Mapping[str, TensorSpec], old: Mapping[str, TensorSpec]
) -> dict[str, str]:
    def fits(name: str, theirs: str) -> bool:
        return old[theirs].shape == new[name].shape and can_serve(old[theirs], new[name])

    # Bytes of files have names of their own.
    some = [name for name in new if name not in source.attached]
    others = [name for name in old if name not in base.attached]
    return matching_names(some, others, fits)


def _told(source: Checkpoint, base: Checkpoint, rename: Mapping[str, str]) -> dict[str, str]:
    """The names that `rename` gives to tensors of the base: new name to the base's."""
    if not rename:
        return {}
    found: dict[str, str] = {}
    used = set()
    for name in base.specs:
        old = _rule_for(name, rename)
        new = new_name(name, rename)
        if new in found:
            raise UsageError(f"rename: {found[new]!r} and {name!r} of the base would both be called {new!r}")
        found[new] = name
        if old is not None and new in source.specs:
            used.add(old)
    for old, new in rename.items():
        if old not in used:
            raise UsageError(
                f"rename: no tensor of the base that begins with {old!r} is found in the new version with {new!r} in "
                f"its place; see the names with 'nearzip inspect'"
            )
    return {new: name for new, name in found.items() if new != name and new in source.specs}


def _rule_for(name: str, rename: Mapping[str, str]) -> str | None:
    """The rule for a name: the one for the whole name, else the longest beginning."""
    if name in rename:
        return name
    return max((old for old in rename if name.startswith(old)), key=len, default=None)


def new_name(name: str, rename: Mapping[str, str]) -> str:
    """What a tensor is called by the rules of `rename`; the same name if there is none for it.

    Examples
    --------
    >>> rename = {"encoder.": "backbone.", "e": "x"}
    >>> new_name("encoder.0.w", rename), new_name("head.w", rename)
    ('backbone.0.w', 'head.w')
    """
    old = _rule_for(name, rename)
    return name if old is None else rename[old] + name[len(old) :]


def renamed(base: Checkpoint, rename: Mapping[str, str]) -> Checkpoint:
    """The base under other names, those of `rename`."""
    names = {new_name(name, rename): name for name in base.specs}
    specs = {new: replace(base.specs[name], name=new) for new, name in names.items()}
    return replace(base, specs=specs, read=lambda new: base.read(names[new]))


def matched(
    base: Checkpoint,
    specs: Mapping[str, TensorSpec],
    matches: Matches,
    added: Callable[[str], Array] | None = None,
) -> Checkpoint:
    """`base` as a version with these tensors sees it. What is not in `matches` stays as it is.

    Rows that the base does not have are zeros, or those of `added`.
    """
    if not matches:
        return base
    seen = {**base.specs, **{name: specs[name] for name in matches}}

    def adapted(name: str) -> Array:
        array = converted(base.read(matches[name].name), specs[name].dtype)
        return _with_rows(array, specs[name], added(name) if added else None)

    adapted_once = keeping_last(adapted)

    def read(name: str) -> Array:
        origin = matches.get(name)
        if origin is None or replace(origin, name=name) == specs[name]:
            return base.read(name if origin is None else origin.name)
        return adapted_once(name)

    steps = {name: base.steps[origin.name] for name, origin in matches.items() if origin.name in base.steps}
    return replace(base, specs=seen, read=read, steps={**base.steps, **steps})


@dataclass(frozen=True)
class Reference:
    """What a version is coded against, as the version sees it.

    Parameters
    ----------
    given : Checkpoint or None
        The base as it was given; None if no base takes part.
    base : Checkpoint or None
        The same under the version's names, in its dtypes and shapes.
    before : Checkpoint or None
        What the reader has had so far, the base or not: changes, and bounds relative to them, count from it.
    matches : mapping of str to TensorSpec
    grown : set of str
        Tensors with more rows than in the base. Added rows count as unchanged, like tensors that are new.
    """

    given: Checkpoint | None = None
    base: Checkpoint | None = None
    before: Checkpoint | None = None
    matches: Matches = field(default_factory=dict)
    grown: Set[str] = frozenset()

    @staticmethod
    def of(
        source: Checkpoint,
        base: Checkpoint | None,
        before: Checkpoint | None = None,
        rename: Mapping[str, str] | None = None,
    ) -> Reference:
        """For the tensors of `source`. `before`: where it is not the base. Raises UsageError as `match_tensors`."""
        matches = {} if base is None else match_tensors(source, base, rename)
        seen = None if base is None else matched(base, source.specs, matches)
        grown = {name for name, origin in matches.items() if origin.shape[:1] < source.specs[name].shape[:1]}
        if before is not None and before is not base:
            before = matched(before, source.specs, match_tensors(source, before), source.read)
        elif base is not None:
            before = matched(base, source.specs, matches, source.read) if grown else seen
        return Reference(base, seen, before, matches, grown)

    def gone(self, source: Checkpoint) -> tuple[str, ...]:
        """Tensors of the base that `source` no longer has, under whatever name."""
        if self.given is None:
            return ()
        origins = {origin.name for origin in self.matches.values()}
        return tuple(name for name in self.given.specs if name not in source.specs and name not in origins)

    def id_of(self, contents: Mapping[str, bytes]) -> str | None:
        """Identity of the whole base as it was given, None if no tensor of it was used.

        `contents`: digests of the tensors that were, as the version sees them.
        """
        if self.given is None or not contents:
            return None
        known = {name: content for name, content in contents.items() if name not in self.matches}
        return content_id(
            (spec, known.get(name) or tensor_digest(self.given.read(name))) for name, spec in self.given.specs.items()
        )


def _with_rows(array: Array, spec: TensorSpec, added: Array | None) -> Array:
    """`array` in the shape of `spec`: the first rows, and others from `added` or zeros."""
    if array.shape == spec.shape:
        return array
    rows = min(spec.shape[0], array.shape[0])
    if rows == spec.shape[0]:
        return np.ascontiguousarray(array[:rows])
    result = np.zeros(spec.shape, array.dtype) if added is None else np.array(added)
    result[:rows] = array
    return result


def converted(values: Array, dtype: str) -> Array:
    """Floating-point values in another precision, the same bits on every machine (docs/format.md, "Matches").

    Examples
    --------
    >>> converted(np.float32([1.00390625, np.nan, 1e9]), "float16")
    array([1.004,   nan,   inf], dtype=float16)
    """
    target = dtype_of(dtype)
    if values.dtype == target:
        return values
    with np.errstate(invalid="ignore"):
        wide = values if values.dtype.itemsize >= 4 else values.astype(np.float32)
        result = round_to(target, wide)
        # Machines differ in the bits of a NaN that is converted.
        is_nan = np.isnan(result)
        if is_nan.any():
            result[is_nan] = np.full((), np.nan, target)
    return result


def matches_text(matches: Matches, specs: Mapping[str, TensorSpec]) -> str | None:
    """What was matched, for people; None if nothing was."""
    names = [(name, origin.name) for name, origin in matches.items() if origin.name != name]
    dtypes = {
        (origin.dtype, specs[name].dtype) for name, origin in matches.items() if origin.dtype != specs[name].dtype
    }
    parts = []
    if names:
        new, old = names[0]
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        parts.append(f"{new!r} with {old!r}{more}")
    n_rows = sum(origin.shape != specs[name].shape for name, origin in matches.items())
    if n_rows:
        parts.append(f"{n_rows} with more or fewer rows")
    parts += [f"{old} converted to {new}" for old, new in sorted(dtypes)]
    return "; ".join(parts) or None
