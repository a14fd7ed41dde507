"""Pickles read as data. No class is imported and nothing is called: what is not known becomes an `Unknown`.

A small machine over the opcodes of `pickletools`. It builds lists, dicts, numbers and strings, and the values of
`BUILDERS`, which are harmless; PyTorch's tensors become descriptions of where their bytes are.
"""

from __future__ import annotations

import argparse
import collections
import pickletools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

from nearzip.checkpoints.builders import (
    BUILDERS,
    Global,
    PendingArray,
    PendingType,
    PickleError,
    StorageRef,
    Unknown,
    checked_keys,
    filled_array,
)

__all__ = ["read_pickle", "torch_storage"]

_MARK = object()
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False, "EMPTY_DICT": dict, "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple, "EMPTY_SET": set,
}  # fmt: skip
_LITERALS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "UNICODE", "BINUNICODE",
    "SHORT_BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES",
    "BINBYTES8",
}  # fmt: skip
_SKIPPED = {"PROTO", "FRAME"}


class _Machine:
    def __init__(self, load: Callable[[Any], Any], find: Callable[[Global], Any]):
        self._load = load
        self._find = find
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self, source: bytes | BinaryIO) -> Any:
        for opcode, argument, _ in pickletools.genops(source):
            name = opcode.name
            if name == "STOP":
                return self._stack.pop()
            if name in _LITERALS:
                self._stack.append(argument)
            elif name in _CONSTANTS:
                self._stack.append(_CONSTANTS[name]())
            elif name not in _SKIPPED:
                step = getattr(self, f"_do_{name.lower()}", None)
                if step is None:
                    raise PickleError(f"opcode {name}")
                step(argument)
        raise PickleError("ends early")

    def _to_mark(self) -> list[Any]:
        stack, i = self._stack, len(self._stack) - 1
        while stack[i] is not _MARK:
            i -= 1
            if i < 0:
                raise PickleError("no mark")
        items = stack[i + 1 :]
        del stack[i:]
        return items

    def _do_mark(self, _: Any) -> None:
        self._stack.append(_MARK)

    def _do_pop(self, _: Any) -> None:
        self._stack.pop()

    def _do_pop_mark(self, _: Any) -> None:
        self._to_mark()

    def _do_dup(self, _: Any) -> None:
        self._stack.append(self._stack[-1])

    # memo

    def _do_memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _do_put(self, index: Any) -> None:
        self._memo[int(index)] = self._stack[-1]

    _do_binput = _do_long_binput = _do_put

    def _do_get(self, index: Any) -> None:
        self._stack.append(self._memo[int(index)])

    _do_binget = _do_long_binget = _do_get

    # containers

    def _do_tuple(self, _: Any) -> None:
        self._stack.append(tuple(self._to_mark()))

    def _do_tuple1(self, _: Any) -> None:
        self._last_as_tuple(1)

    def _do_tuple2(self, _: Any) -> None:
        self._last_as_tuple(2)

    def _do_tuple3(self, _: Any) -> None:
        self._last_as_tuple(3)

    def _last_as_tuple(self, n: int) -> None:
        items = tuple(self._stack[-n:])
        if len(items) != n:
            raise PickleError("stack is short")
        self._stack[-n:] = [items]

    def _do_list(self, _: Any) -> None:
        self._stack.append(self._to_mark())

    def _do_dict(self, _: Any) -> None:
        items = self._to_mark()
        checked_keys(items[::2])
        self._stack.append(dict(zip(items[::2], items[1::2], strict=True)))

    def _do_frozenset(self, _: Any) -> None:
        self._stack.append(frozenset(checked_keys(self._to_mark())))

    def _do_append(self, _: Any) -> None:
        self._extend([self._stack.pop()])

    def _do_appends(self, _: Any) -> None:
        self._extend(self._to_mark())

    def _do_additems(self, _: Any) -> None:
        items, target = checked_keys(self._to_mark()), self._stack[-1]
        (target.update if isinstance(target, set) else target.items.extend)(items)

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        (target.extend if isinstance(target, list) else target.items.extend)(items)

    def _do_setitem(self, _: Any) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set([key, value])

    def _do_setitems(self, _: Any) -> None:
        self._set(self._to_mark())

    def _set(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, Unknown):
            target.items.extend(items)
            return
        if not isinstance(target, dict):
            raise PickleError(f"items for a {type(target).__name__}")
        for key, value in zip(checked_keys(items[::2]), items[1::2], strict=True):
            target[key] = value

    # objects

    def _do_global(self, argument: str) -> None:
        module, name = argument.split(" ", 1)
        self._stack.append(self._find(Global(module, name)))

    def _do_stack_global(self, _: Any) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if type(name) is not str or type(module) is not str:
            raise PickleError("a name that is no text")
        self._stack.append(self._find(Global(module, name)))

    def _do_reduce(self, _: Any) -> None:
        args, function = self._stack.pop(), self._stack.pop()
        self._stack.append(self._made(function, args))

    _do_newobj = _do_reduce

    def _do_newobj_ex(self, _: Any) -> None:
        options, args, kind = self._stack.pop(), self._stack.pop(), self._stack.pop()
        self._stack.append(Unknown(kind, (args, options)) if options else self._made(kind, args))

    def _do_obj(self, _: Any) -> None:
        kind, *args = self._to_mark()
        self._stack.append(self._made(kind, tuple(args)))

    def _do_inst(self, argument: str) -> None:
        self._stack.append(self._made(self._find(Global(*argument.split(" ", 1))), tuple(self._to_mark())))

    def _made(self, function: Any, args: Any) -> Any:
        if str(function) == "copyreg._reconstructor" and args and str(args[0]) in BUILDERS:
            function, args = args[0], ()
        builder = BUILDERS.get(str(function)) if isinstance(function, Global) else None
        if builder is None:
            return Unknown(function.kind if isinstance(function, Unknown) else function, args)
        return builder(*args)

    def _do_build(self, _: Any) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if isinstance(target, PendingArray):
            made = filled_array(state)
            self._stack[-1] = made
            for index, value in self._memo.items():
                if value is target:
                    self._memo[index] = made
        elif isinstance(target, PendingType):
            target.order = state[1] if isinstance(state[1], str) and state[1] in "<>=|" else "="
        elif isinstance(target, argparse.Namespace) and isinstance(state, Mapping):
            vars(target).update((str(key), value) for key, value in state.items())
        elif isinstance(target, collections.OrderedDict) and isinstance(state, Mapping):
            # What Module.state_dict() hangs on its dict: the versions of the modules.
            if "_metadata" in state:
                target._metadata = state["_metadata"]  # type: ignore[attr-defined]
        elif isinstance(target, Unknown):
            target.state = state

    def _do_persid(self, argument: Any) -> None:
        self._stack.append(self._load(argument))

    def _do_binpersid(self, _: Any) -> None:
        self._stack.append(self._load(self._stack.pop()))


def read_pickle(
    source: bytes | BinaryIO, load: Callable[[Any], Any] = lambda pid: pid, find: Callable[[Global], Any] = lambda g: g
) -> Any:
    """The value of one pickle, as data.

    Parameters
    ----------
    source : bytes or binary stream
        A stream is left behind the pickle.
    load : callable
        The object for a persistent id.
    find : callable
        May replace a name.

    Raises
    ------
    PickleError
        It is damaged.
    """
    try:
        return _Machine(load, find).run(source)
    except PickleError:
        raise
    except KeyError as e:
        raise PickleError(f"it refers to value {str(e)[:40]}, which it does not hold") from None
    except (
        ValueError,
        IndexError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
        MemoryError,
    ) as e:
        raise PickleError(str(e)[:200] or type(e).__name__) from None


def storage_refs(pid: Any) -> Iterator[Any]:
    """The fields of PyTorch's persistent id for a storage."""
    if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
        raise PickleError("a reference to something that is no storage")
    yield from pid[1:5]


def torch_storage(pid: Any) -> StorageRef:
    """Resolve PyTorch's persistent ids."""
    kind, key, _, n = storage_refs(pid)
    if not isinstance(kind, Global) or type(n) is not int or n < 0:
        raise PickleError("a storage without a type or length")
    return StorageRef(kind.name, str(key), n)
