"""Names of tensors in two networks that should match and do not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

__all__ = ["likely_prefix"]

#: What wrappers put into names, and which.
_WRAPPERS = {
    "_orig_mod.": "torch.compile",
    "_fsdp_wrapped_module.": "FSDP",
    "_checkpoint_wrapped_module.": "activation checkpointing",
    "module.": "DataParallel",
}
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
