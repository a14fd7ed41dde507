"""Names of tensors in two networks that differ although the tensors are the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

__all__ = ["likely_prefix", "matching_names"]

#: What wrappers put into names, and which.
_WRAPPERS = {
    "_orig_mod.": "torch.compile",
    "_fsdp_wrapped_module.": "FSDP",
    "_checkpoint_wrapped_module.": "activation checkpointing",
    "module.": "DataParallel",
}
#: The same as parts of names between dots.
_PARTS = frozenset(text.removesuffix(".") for text in _WRAPPERS)
#: Names that are looked at for a common prefix.
_MAX_LOOKED_AT = 200


def likely_prefix(only_in_a: Sequence[str], only_in_b: Sequence[str]) -> str | None:
    """Why names differ if one side's are the other's with something put into them, and what to do; None if not so.

    Examples
    --------
    >>> print(likely_prefix(["w"], ["_orig_mod.w"]))
    the names in b have '_orig_mod.' in them (from torch.compile), those in a do not: save the unwrapped module, or \
rename the tensors
    >>> likely_prefix(["w"], ["x"])
    """
    if not only_in_a or not only_in_b:
        return None
    for text, wrapper in _WRAPPERS.items():
        for side, one, other in (("a", only_in_a, only_in_b), ("b", only_in_b, only_in_a)):
            if any(name.replace(text, "") in other for name in one if text in name):
                return _told(side, text, f" (from {wrapper})", "save the unwrapped module, or rename the tensors")
    for side, one, other in (("a", only_in_a, only_in_b), ("b", only_in_b, only_in_a)):
        prefix = _common_prefix(one, set(other))
        if prefix is not None:
            return _told(side, prefix, "", "rename the tensors of one side")
    return None


def _told(side: str, text: str, where: str, advice: str) -> str:
    other = "b" if side == "a" else "a"
    return f"the names in {side} have {text!r} in them{where}, those in {other} do not: {advice}"


def _common_prefix(longer: Sequence[str], shorter: set[str]) -> str | None:
    """What most of the longer names begin with before a name of the other side."""
    counts: Counter[str] = Counter()
    some = longer[:_MAX_LOOKED_AT]
    for name in some:
        for at, letter in enumerate(name):
            if letter == "." and name[at + 1 :] in shorter:
                counts[name[: at + 1]] += 1
    prefix, n = counts.most_common(1)[0] if counts else ("", 0)
    return prefix if 2 * n > len(some) else None


def matching_names(new: Sequence[str], old: Sequence[str], fits: Callable[[str, str], bool]) -> dict[str, str]:
    """New names to the old names of the same tensors, as far as that is certain.

    Names that are equal but for what wrappers such as torch.compile put into them match. If none does, those match that
    are equal but for one prefix, the only one that most names of one side have; all its pairs have to fit then.

    Parameters
    ----------
    new, old : sequence of str
        The names that only one side has.
    fits : callable
        fits(new name, old name): whether the tensors are of one kind.

    Examples
    --------
    >>> matching_names(["_orig_mod.w", "_orig_mod.b"], ["w", "b"], lambda new, old: True)
    {'_orig_mod.w': 'w', '_orig_mod.b': 'b'}
    >>> matching_names(["student.w", "teacher.w"], ["w"], lambda new, old: True)
    {}
    """
    unwrapped, originals = _by_unwrapped(new), _by_unwrapped(old)
    pairs = {name: originals[key] for key, name in unwrapped.items() if key in originals}
    if pairs:
        return pairs
    prefixed = _one_prefix(new, old, fits)
    if prefixed:
        return dict(prefixed)
    return {name: theirs for theirs, name in _one_prefix(old, new, lambda longer, shorter: fits(shorter, longer))}


def _by_unwrapped(names: Iterable[str]) -> dict[str, str]:
    """Names by what is left of them without wrappers; none that two share."""
    keys = {name: ".".join(part for part in name.split(".") if part not in _PARTS) for name in names}
    counts = Counter(keys.values())
    return {key: name for name, key in keys.items() if counts[key] == 1}


def _one_prefix(
    longer: Sequence[str], shorter: Sequence[str], fits: Callable[[str, str], bool]
) -> list[tuple[str, str]]:
    """Pairs of a long name and a short one that differ in a prefix, if only one prefix will do; none otherwise."""
    known = set(shorter)
    pairs: dict[str, list[tuple[str, str]]] = {}
    for name in longer:
        at = name.find(".")
        while at >= 0:
            if name[at + 1 :] in known:
                pairs.setdefault(name[: at + 1], []).append((name, name[at + 1 :]))
            at = name.find(".", at + 1)
    most = min(len(longer), len(shorter))
    common = [found for found in pairs.values() if 2 * len(found) > most]
    if len(common) != 1 or not all(fits(*pair) for pair in common[0]):
        return []
    return common[0]
