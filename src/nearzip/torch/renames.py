"""A model whose tensors are called otherwise than in versions that were saved before: which belongs to which."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from nearzip.api import check_rename
from nearzip.matching import new_name
from nearzip.torch.wrappers import matched_names

__all__ = ["Rename", "checked", "renamed_names", "renamed_tensors"]

#: Old names or their beginnings, and the new ones; names are the model's, without wrappers.
Rename = Mapping[str, str]
#: What a state's tensors of a model and of its optimizers begin with.
_PREFIX = re.compile(r"(model|optimizer\d*)/")


def checked(rename: Rename | None) -> Rename | None:
    """Raises UsageError for what is no such mapping."""
    check_rename(rename, base=rename)
    return rename or None


def renamed_names(saved: Collection[str], live: Mapping[str, str], rename: Rename | None) -> dict[str, str]:
    """As `wrappers.matched_names`, and by `rename` for saved names that the model does not have.

    Examples
    --------
    >>> renamed_names(["a.w", "b"], {"c.w": "c.w", "b": "b"}, {"a.": "c."})
    {'b': 'b', 'a.w': 'c.w'}
    """
    found = matched_names(saved, live)
    if rename:
        left = {new_name(name, rename): name for name in saved if name not in found}
        reached = set(found.values())
        more = matched_names(left, {name: plain for name, plain in live.items() if name not in reached})
        found |= {left[new]: target for new, target in more.items()}
    return found


def renamed_tensors(old: Collection[str], new: Collection[str], rename: Rename | None) -> dict[str, str]:
    """Old names of a state's tensors and their new ones, for those that `rename` leads to a tensor of another name.

    Examples
    --------
    >>> renamed_tensors(["model/a.w", "model/b", "step"], ["model/c.w", "model/b"], {"a.": "c."})
    {'model/a.w': 'model/c.w'}
    """
    found = {}
    for name in old:
        prefix = _PREFIX.match(name)
        if prefix is None or not rename or name in new:
            continue
        now = prefix[0] + new_name(name[prefix.end() :], rename)
        if now in new and now not in old:
            found[name] = now
    return found
