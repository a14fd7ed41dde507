"""Codings in an archive's index: written with what their bounds came to, read back from untrusted bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nearzip.bounds import Bound, Update
from nearzip.coding import Coding, Codings, bound_from_json
from nearzip.container import Index
from nearzip.errors import CorruptError
from nearzip.strictjson import as_dict, as_list, text
from nearzip.tensors import TensorSpec
from nearzip.updates import Resolved

__all__ = ["codings_in", "codings_json", "written_bounds"]


def codings_json(
    codings: Codings, groups: Mapping[Coding, Sequence[str]], resolved: Resolved, specs: Sequence[TensorSpec]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """`method` and `bound` of an index: the default coding, and others with the numbers of their tensors (`groups`).

    Readers show it and stores go by it; decoding needs none of it.
    """
    default = codings.default
    if not codings.by_name:
        names = [spec.name for spec in specs]
        return _named(default), _bound_json(default.promise, resolved, names)
    number = {spec.name: i for i, spec in enumerate(specs)}
    others = [
        {**_named(coding), "bound": _bound_json(coding.promise, resolved, names), "tensors": [number[n] for n in names]}
        for coding, names in groups.items()
        if coding != default
    ]
    method = {**_named(default), **({"others": others} if others else {})}
    return method, _bound_json(default.promise, resolved, groups.get(default, []))


def _bound_json(bound: Bound, resolved: Resolved, names: Sequence[str]) -> dict[str, Any]:
    return resolved.to_json(bound, names) if isinstance(bound, Update) else bound.to_json()


def _named(coding: Coding) -> dict[str, Any]:
    return {"name": coding.recipe.name, "options": coding.recipe.options()}


def codings_in(index: Index) -> Codings:
    """How an archive's tensors were coded, as its index says.

    A bound relative to the update is given as it was asked for; `written_bounds` has what it came to. Methods are not
    looked up: archives can be read without the plug-in that wrote them.

    Raises
    ------
    CorruptError
        The index names a tensor that it does not have, or a bound that this release does not know.
    """
    default = _coding(index.method, index.bound, "index, method")
    by_name: dict[str, Coding] = {}
    for i, row in enumerate(as_list(index.method.get("others", []), "index, method, others")):
        where = f"index, method, others {i}"
        coding = _coding(as_dict(row, where), row.get("bound"), where)
        for n in as_list(row.get("tensors"), f"{where}, tensors"):
            if type(n) is not int or not 0 <= n < len(index.tensors):
                raise CorruptError(f"{where}: names a tensor that the index does not have")
            by_name[index.tensors[n].name] = coding
    return Codings(default, by_name)


def _coding(document: Mapping[str, Any], bound: Any, where: str) -> Coding:
    options = as_dict(document.get("options", {}), f"{where}, options")
    kept = {key: value for key, value in as_dict(bound, f"{where}, bound").items() if key != "resolved"}
    # The bound is what was kept: the method is not asked again, as an option may have led to it.
    return Coding(text(document.get("name"), f"{where}, name"), options).keeping(
        bound_from_json(kept, f"{where}, bound")
    )


def written_bounds(index: Index) -> dict[str, float]:
    """What bounds relative to the update came to, as an archive's index has it: by tensor, 0 where it is exact.

    The index is untrusted: what makes no sense is left out.
    """
    names = [spec.name for spec in index.tensors]
    others = index.method.get("others")
    rows = [row for row in others if isinstance(row, dict)] if isinstance(others, list) else []
    found: dict[str, float] = {}
    theirs: set[str] = set()
    for row in rows:
        numbers = row.get("tensors")
        known = isinstance(numbers, list) and all(type(n) is int and 0 <= n < len(names) for n in numbers)
        some = [names[n] for n in numbers] if known else []  # type: ignore[union-attr]
        theirs.update(some)
        found.update(_resolved_in(row.get("bound"), some))
    return {**_resolved_in(index.bound, [name for name in names if name not in theirs]), **found}


def _resolved_in(bound: Any, names: Sequence[str]) -> dict[str, float]:
    resolved = bound.get("resolved") if isinstance(bound, dict) and bound.get("kind") == Update.key else None
    values = resolved if isinstance(resolved, list) and len(resolved) == len(names) else [resolved] * len(names)
    return {name: value for name, value in zip(names, values, strict=True) if isinstance(value, float) and value >= 0}
