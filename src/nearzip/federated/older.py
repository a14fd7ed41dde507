"""An older model in little memory: what differs from the newest one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from nearzip.tensors import Array, Checkpoint, bits_of

__all__ = ["Old", "Older"]


@dataclass(frozen=True)
class Old:
    """A tensor as it was: the bits that differ from the newest, or all of it where that takes less memory.

    Attributes
    ----------
    mask : array of uint8 or None
        One bit for each of the tensor's numbers (`bits_of`), 1 where it differs; None: all of it is in `values`.
    values : array
        The bits of those that differ, in order; or the tensor.
    """

    mask: Array | None
    values: Array

    @staticmethod
    def of(old: Array, new: Array) -> Old:
        """Two tensors of one dtype and shape; `old` itself is kept where most of it differs."""
        before = _bits(old)
        return Old._packed(before != _bits(new), before, old)

    @staticmethod
    def _packed(differs: Array, bits: Array, whole: Array) -> Old:
        if np.count_nonzero(differs) * bits.itemsize + differs.size // 8 >= whole.nbytes:
            return Old(None, whole)
        return Old(np.packbits(differs), bits[differs])

    def _differs(self, n: int) -> Array:
        assert self.mask is not None
        return np.unpackbits(self.mask, count=n).view(bool)

    def restored(self, new: Array) -> Array:
        """The tensor as it was; its memory may be that of `values`, and is not to be written to."""
        if self.mask is None:
            return self.values
        found = np.array(new)
        bits = _bits(found)
        bits[self._differs(bits.size)] = self.values
        return found

    def before(self, later: Old, new: Array) -> Old:
        """The same tensor against a newer one: `self` against a tensor that was `later` before it became `new`."""
        if self.mask is None:
            return self
        whole = self.restored(later.restored(new))
        bits = _bits(whole)
        differs = self._differs(bits.size)
        if later.mask is None:
            return Old.of(whole, new)
        return Old._packed(differs | later._differs(bits.size), bits, whole)


def _bits(array: Array) -> Array:
    return bits_of(array.reshape(-1))


class Older:
    """The oldest model that some client may hold, against the newest. Equal to it at first."""

    def __init__(self) -> None:
        self._tensors: dict[str, Old] = {}

    @staticmethod
    def of(older: Checkpoint, newest: Checkpoint) -> Older:
        """Of the same names, dtypes and shapes."""
        found = Older()
        found._tensors = {name: Old.of(older.read(name), newest.read(name)) for name in newest.specs}
        return found

    def model(self, newest: Checkpoint) -> Checkpoint:
        """The older model, of which nothing is to be written to."""
        known = self._tensors
        arrays = {
            name: known[name].restored(newest.read(name)) if name in known else newest.read(name)
            for name in newest.specs
        }
        return Checkpoint(newest.specs, arrays.__getitem__)

    def moved(self, later: Mapping[str, Old], newest: Checkpoint) -> None:
        """`newest` has taken the place of a model that was `later`."""
        for name, old in later.items():
            own = self._tensors.get(name)
            self._tensors[name] = old if own is None else own.before(old, newest.read(name))
