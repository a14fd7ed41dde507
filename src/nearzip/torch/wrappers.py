"""Names of tensors without what wrappers put into them: `torch.compile`, DDP, DataParallel, Lightning's Fabric."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TypeVar

from torch import nn

from nearzip.errors import UsageError

__all__ = ["check_whole", "is_extra_state", "matched_names", "plain_names", "plain_parameters", "unwrapped"]

#: Classes of wrappers, and what each calls the module in it.
_WRAPPERS = {
    "OptimizedModule": "_orig_mod",
    "DistributedDataParallel": "module",
    "DataParallel": "module",
    "_FabricModule": "_forward_module",
}
_PACKAGES = ("torch.", "lightning.", "lightning_fabric.")
#: Nobody else uses these names. PyTorch itself leaves the last two out of state dicts, but not of a module's path.
_CERTAIN = frozenset({"_orig_mod", "_forward_module", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"})
#: As PyTorch calls what `get_extra_state` returns.
_EXTRA_STATE = "_extra_state"

Value = TypeVar("Value")


def is_extra_state(name: str) -> bool:
    """Whether a name is that of a module's extra state, whose shape may change from save to save."""
    return name.rpartition(".")[2] == _EXTRA_STATE


def check_whole(model: nn.Module) -> None:
    """Raise UsageError for FSDP's flat parameters: no process has them whole."""
    for module in model.modules():
        if "FullyShardedDataParallel" in _classes(module):
            raise UsageError(
                "the model is spread over processes (FullyShardedDataParallel); save it with "
                "torch.distributed.checkpoint and nearzip.torch.dcp.NearzipWriter"
            )


def _classes(module: nn.Module) -> set[str]:
    """Names of a module's classes that are PyTorch's or Lightning's."""
    return {kind.__name__ for kind in type(module).__mro__ if kind.__module__.startswith(_PACKAGES)}


def _wrapper_paths(model: nn.Module) -> list[str]:
    """Prefixes that wrappers put before the names of a module's tensors; longest first."""
    found = []
    for path, module in model.named_modules(remove_duplicate=False):
        kinds = _classes(module) & _WRAPPERS.keys()
        if kinds:
            found.append(".".join(part for part in (*path.split("."), _WRAPPERS[kinds.pop()]) if part) + ".")
    return sorted(found, key=len, reverse=True)


def plain_names(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Names of the model's tensors, and what they would be without wrappers; the same names if two became one."""
    given, paths = list(names), _wrapper_paths(model)
    if not paths:
        return {name: name for name in given}
    # A path may hold wrappers that PyTorch leaves out of the names.
    paths = sorted({*paths, *map(_without_certain, paths)}, key=len, reverse=True)
    plain = [_without_paths(name, paths) for name in given]
    return dict(zip(given, plain if len(set(plain)) == len(given) else given, strict=True))


def _without_certain(path: str) -> str:
    hidden = ("_checkpoint_wrapped_module", "_fsdp_wrapped_module")
    return ".".join(part for part in path.split(".") if part not in hidden)


def _without_paths(name: str, paths: list[str]) -> str:
    """Without the last part of every path that the name begins with; the innermost wrapper first."""
    for path in paths:
        if name.startswith(path):
            name = path.rpartition(".")[0].rpartition(".")[0] + name[len(path) - 1 :]
            name = name.removeprefix(".")
    return name


def plain_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """`dict(model.named_parameters())`, under plain names."""
    parameters = dict(model.named_parameters())
    plain = plain_names(model, parameters)
    return {plain[name]: parameter for name, parameter in parameters.items()}


def matched_names(saved: Collection[str], plain: Mapping[str, str]) -> dict[str, str]:
    """Names in a saved state, and the live names that they belong to, for those that have one.

    They may have been saved with the names of wrappers in them, or from another wrapper. What matches most names is
    right; of several, the one that changes least.

    Parameters
    ----------
    saved : names
    plain : mapping
        Live names, and what they are without wrappers.

    Examples
    --------
    >>> matched_names(["module.w", "module.x"], {"_orig_mod.w": "w", "_orig_mod.y": "y"})
    {'module.w': '_orig_mod.w'}
    """
    best: dict[str, str] = {}
    for read, write in (
        (_same, plain.__getitem__),
        (_same, _same),
        (unwrapped, plain.__getitem__),
        (_same, lambda name: unwrapped(plain[name])),
        (unwrapped, lambda name: unwrapped(plain[name])),
    ):
        found = _match(saved, plain, read, write)
        if len(found) > len(best):
            best = found
    return best


def _match(
    saved: Iterable[str], live: Iterable[str], read: Callable[[str], str], write: Callable[[str], str]
) -> dict[str, str]:
    by_key, keys = _unique(live, write), _unique(saved, read)
    return {name: by_key[key] for key, name in keys.items() if key in by_key}


def _unique(names: Iterable[str], key_of: Callable[[str], str]) -> dict[str, str]:
    """Names by key; without keys that several names have."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(key_of(name), []).append(name)
    return {key: own[0] for key, own in found.items() if len(own) == 1}


def _same(name: str) -> str:
    return name


def unwrapped(name: str) -> str:
    """A name without parts that only wrappers put into names, and without DDP's `module.` in front."""
    plain = ".".join(part for part in name.split(".") if part not in _CERTAIN)
    return plain.removeprefix("module.")
